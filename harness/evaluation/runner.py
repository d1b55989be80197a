"""Turn missing cells into records. Plugins are reached only through the registries."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, cast

from harness.cells import guard, matrix
from harness.cells.cells import Cell
from harness.cells.matrix import Matrix, Planned
from harness.evaluation import summary
from harness.evaluation.generation import Generation, Shard
from harness.evaluation.plans import Plan, plan
from harness.evaluation.scoring import Scoring
from harness.registry import describe
from harness.results.records import Failure, Record, Timing
from harness.storage import keys, log, store
from harness.storage.leases import Busy, Leases
from harness.targets.source import TargetSource
from harness.targets.training import Interrupted, Stop
from harness.types import Access, HarnessError, Victim

_PAUSE = 0.5
T = TypeVar("T")


class Executor(Protocol):
    """A way to divide the work of a run among processes."""

    def run(self, plans: Sequence[Plan], runner: Runner) -> dict[str, Record | Failure]:
        """Return what became of each cell, by its key.

        Raises:
            Interrupted: a signal came. StoreError: no cell can go on. What is done is kept.
        """
        ...


class InProcess:
    """An executor that does all the work in this process."""

    def run(self, plans: Sequence[Plan], runner: Runner) -> dict[str, Record | Failure]:
        """Return what became of each cell, by its key."""
        return runner.work(plans)


class Elsewhere(Protocol):
    """A way to run single cells in fresh processes, in which no guest's code has run."""

    def run(self, cell: Cell, *, batch_size: int, stop: Stop) -> int:
        """Run a cell in a fresh process until it ends; return its exit status, negative for a signal.

        Raises:
            Interrupted: a signal came; what is done is kept.
        """
        ...


class Dirty(Exception):
    """Raised where a guest changed this process, so that nothing more may be trained or judged in it."""


DIRTY = 75
"""The exit status of a process that stopped because it is dirty."""
_TRIES = 4
"""The most fresh processes for one cell: one attacks, the next one judges."""


@dataclasses.dataclass(frozen=True)
class _Facts:
    """The facts about a victim that an attack's `check` may ask for before there is a victim."""

    classes: int
    randomised: bool
    access: Access
    backward_passes: tuple[str, ...]


@dataclasses.dataclass(kw_only=True)
class Runner:
    """The runner of cells in this process, beside any number of others on the same store.

    Each training, batch and cell is leased before it is worked on. Work that another run holds is left to
    it, and looked at again when all else is done.
    """

    model_store: TargetSource
    batch_size: int = 128
    executor: Executor = dataclasses.field(default_factory=InProcess)
    elsewhere: Elsewhere | None = None
    """Runs cells once this process is dirty; without it they run here, in the restored process."""
    isolate: bool = False
    """Run every cell elsewhere."""
    alone: bool = False
    """True where this process is one of `elsewhere`, so that it stops when it is dirty."""
    announces: bool = True
    """True for the run itself, and False for its helpers."""
    _leases: Leases | None = None
    _clean: int = dataclasses.field(default_factory=lambda: len(guard.history))
    """The length of the guard's history when the runner was made."""
    _baseline: guard.Baseline | None = None

    @property
    def store(self) -> store.Store:
        return self.model_store.store

    @property
    def leases(self) -> Leases:
        if self._leases is None:
            self._leases = Leases(self.store.results / "leases")
        return self._leases

    def run(self, cells: Sequence[Cell]) -> list[Record | Failure]:
        """Return a record or a failure for each cell, in order. Cells that are stored are not run again.

        Raises:
            Interrupted: a signal came; finished work is kept.
            StoreError: the results folder cannot be read or written; finished work is kept.
        """
        plans = [plan(cell, self.model_store) for cell in cells]
        if self.announces:
            self._warn(cells)
        # Cells of one trained model run together, so that it is trained and loaded once.
        groups: dict[bytes, list[Plan]] = {}
        for each in plans:
            groups.setdefault(keys.canonical(each.cell.target), []).append(each)
        pending = list({each.key: each for group in groups.values() for each in group}.values())
        if self.announces:
            self._announce(pending)
        missing = [each for each in pending if not self.store.has("records", each.key)]
        results = self.executor.run(missing, self) if missing else {}
        results |= self.work([each for each in pending if each.key not in results])
        if self.announces:
            for folder in {self.store.results, self.store.cache}:
                Leases(folder / "leases").sweep()
        return [
            results.get(each.key)
            or self.fail(each, "it has no record, and nobody said why", "failed")
            for each in plans
        ]

    def work(self, plans: Sequence[Plan]) -> dict[str, Record | Failure]:
        """Do in this process the work that no other does, and return each cell's record or failure by key.

        Raises:
            Interrupted: a signal came. StoreError: no cell can go on. What is done is kept.
        """
        results: dict[str, Record | Failure] = {}
        pending = plans
        if plans and self._baseline is None:
            self._baseline = guard.Baseline()
        while pending:
            waiting = []
            for current in pending:
                self.model_store.stop.check()
                try:
                    results[current.key] = self._one(current)
                except Busy:
                    waiting.append(current)
            if len(waiting) == len(pending):
                self.model_store.stop.check()
                time.sleep(_PAUSE)
            pending = waiting
        return results

    def _warn(self, cells: Sequence[Cell]) -> None:
        """Warn, once for each ball, that it holds every image."""
        balls = {cell.target.dataset: cell.threat for cell in cells}
        for dataset, threat in balls.items():
            if line := threat.doubt(self.model_store.dataset(dataset, "test").shape):
                self.model_store.reporter.say(line)

    def _announce(self, plans: Sequence[Plan]) -> None:
        """Store the plan of the run, for `harness status`."""
        cells = []
        for each in plans:
            target = each.cell.target
            trainings = {self.model_store.key(target), self.model_store.key(each.source)}
            cells.append(
                Planned(
                    key=each.key,
                    generation=each.generation_key,
                    trainings=tuple(sorted(trainings)),
                    label=f"{each.cell.attack} on {target.label}, {target.dataset}",
                    images=each.resolved.limit,
                )
            )
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found = Matrix(started=started, cells=tuple(cells))
        self.store.write_json(matrix.FOLDER, found.name, found)

    def _one(self, current: Plan) -> Record | Failure:
        with log.about(current.key):
            try:
                if self.elsewhere is not None and (self.isolate or self._is_dirty):
                    raise Dirty
                found = self.guarded(current, lambda: self._recorded(current))
                if isinstance(found, Failure) and self.elsewhere is not None and self._is_dirty:
                    raise Dirty  # what an earlier guest left behind may be the reason
            except Dirty:
                if self.elsewhere is None:
                    raise
                found = self._sent(current, self.elsewhere)
        if isinstance(found, Record):
            self.store.remove("failures", current.key)
        return found

    @property
    def _is_dirty(self) -> bool:
        if self._baseline is not None:
            self._baseline.restore()
        return guard.is_dirty(self._clean)

    def _sent(self, current: Plan, elsewhere: Elsewhere) -> Record | Failure:
        """Run a cell in fresh processes, and return its record or failure."""
        status = DIRTY
        for _ in range(_TRIES):
            found = self.guarded(
                current, lambda: self.store.read_json("records", current.key, Record)
            )
            if found is not None:
                return found
            if status != DIRTY:
                break
            self.store.remove("failures", current.key)
            status = elsewhere.run(
                current.cell, batch_size=self.batch_size, stop=self.model_store.stop
            )
            self.model_store.stop.check()
            failure = self.store.read_json("failures", current.key, Failure)
            if failure is not None:
                return failure
        end = f"signal {-status}" if status < 0 else f"exit status {status}"
        return self.fail(current, f"its process ended with {end} and left no record", "failed")

    def guarded(self, current: Plan, work: Callable[[], T]) -> T | Failure:
        """Return the result of `work`, or a failure: an error in one cell does not affect the others.

        Raises:
            Interrupted: a signal came. Busy: another run is at it. StoreError: no cell can go on.
        """
        try:
            return work()
        except Busy:
            log.now_and_then("cell waits", "for what another run is at")
            raise
        except (Interrupted, Dirty, store.StoreError):
            raise
        except store.DamagedFile as error:
            line = self.model_store.mend(error)
            reason = f"{line}: the same command again makes it anew"
            return self.fail(current, reason, "damaged")
        except HarnessError as error:
            return self.fail(current, str(error), "damaged" if error.status == 1 else "refused")
        except guard.GuestError as error:
            return self.fail(current, str(error), "failed")
        except (Exception, SystemExit, GeneratorExit) as error:  # a guest's is one cell's failure
            return self.fail(current, describe(error), "failed")

    def fail(self, current: Plan, reason: str, kind: str) -> Failure:
        """Store and return the reason why a cell has no number."""
        failure = Failure(key=current.key, cell=current.cell, reason=reason, kind=kind)
        self.store.write_json("failures", current.key, failure)
        log.event("failure", f"{kind}: {reason}")
        return failure

    def _recorded(self, current: Plan) -> Record:
        record = self.store.read_json("records", current.key, Record)
        if record is not None:
            return record
        log.now_and_then("cell started", f"{current.cell.attack} on {current.cell.target.label}")
        before = time.monotonic()
        record = self._measure(current)
        log.event("cell done", seconds=time.monotonic() - before)
        return record

    def check(self, current: Plan) -> None:
        """Check that the attack can be run, before anything is trained.

        Raises:
            HarnessError: it cannot.
        """
        test = self.model_store.dataset(current.cell.target.dataset, "test")
        defense = self.model_store.defense(current.source)
        facts = _Facts(
            len(test.classes),
            defense.is_random,
            current.attack.access,
            defense.offered_backward_passes,
        )
        with guard.watched():
            guard.call(lambda: current.attack.check(cast(Victim, facts), current.cell.threat))

    def attack(self, current: Plan, leases: Leases | None = None) -> list[Shard]:
        """Return all attacked batches of a cell: stored ones are read, the others made.

        Args:
            leases: other leases than the store's own, to make some of the batches alone.

        Raises:
            Busy: others are made by other runs. Interrupted: a signal came.
            StoreError: a batch cannot be read or written.
        """
        cell, model_store = current.cell, self.model_store
        source = model_store.obtain(current.source, wait=False)
        generation = Generation(
            title=f"{cell.attack} on {cell.target.label}",
            attack=current.attack,
            threat=cell.threat,
            max_queries=cell.max_queries,
            seed=current.source.seed,
            source=source,
            test=model_store.dataset(cell.target.dataset, "test").first(cell.limit),
            device=model_store.device,
            batch_size=self.batch_size,
            folder=self.store.progress_folder(current.generation_key),
            reporter=model_store.reporter,
            stop=model_store.stop,
            mend=model_store.mend,
            leases=leases or self.leases,
        )
        return generation.shards()

    def _measure(self, current: Plan) -> Record:
        cell, model_store = current.cell, self.model_store
        self.check(current)
        test = model_store.whole(cell.target.dataset, "test").first(cell.limit)
        target = model_store.obtain(cell.target, wait=False)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        title = f"{cell.attack} on {cell.target.label}"
        shards = self.attack(current)
        if self._is_dirty and (self.alone or self.elsewhere is not None):
            raise Dirty  # the batches are stored: a fresh process goes on from here
        lease = self.leases.take(f"cell-{current.key}", f"scoring {title}")
        if lease is None:
            raise Busy(title)
        with lease:
            record = self.store.read_json("records", current.key, Record)
            if record is not None:  # another run finished it before the lease
                return record
            scoring = Scoring(
                title=title,
                target=target,
                test=test,
                threat=cell.threat,
                seed=cell.target.seed,
                draws=current.resolved.draws,
                bounded=current.attack.bounded,
                replay=current.source == cell.target,
                device=model_store.device,
                folder=self.store.scores_folder(current.key),
                reporter=model_store.reporter,
                stop=model_store.stop,
                mend=model_store.mend,
            )
            scored = scoring.score(shards)
            record = summary.record(
                key=current.key,
                cell=cell,
                attack=current.attack,
                resolved=current.resolved,
                test=test,
                shards=shards,
                scored=scored,
                device=model_store.device,
            )
            seconds = sum(shard.seconds for shard in shards) + scored.seconds
            timing = Timing(
                key=current.key,
                seconds=seconds,
                images_per_second=len(test) / max(seconds, 1e-9),
                started=started,
            )
            self.store.write_json("timings", current.key, timing)
            self.store.write_json("records", current.key, record)
            scoring.clear()
        return record
