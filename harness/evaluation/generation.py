"""Make the attacked images of a cell batch by batch; each batch is stored as soon as it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from harness.cells import guard
from harness.evaluation.judge import predictions
from harness.random import Draws, Role
from harness.results.records import TRACE_DRAWS
from harness.storage import log, store
from harness.storage.batches import batches
from harness.storage.leases import Busy, Leases
from harness.storage.progress import Reporter
from harness.targets import dead_pixels, memory, training
from harness.targets.defended import Defended
from harness.targets.integrity import ImageState, ModelState
from harness.targets.views import Evidence, QueryBudgetSpent, Question, View
from harness.types import Attack, Batch, Dataset, HarnessError, Perturbed, ThreatModel

_GIVEN = ("images", "labels", "ids")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One attacked batch as it is stored."""

    positions: Tensor
    images: Tensor
    evidence: Evidence
    trace: dict[int, Tensor]
    """For each step, (draws, N) bool: whether the label was predicted."""
    seconds: float
    changed: str
    """The changes that the attack made to the victim; empty where there are none."""
    process: str
    """The changes that it made to the process."""
    asked: tuple[Question, ...] = ()
    """The last queries of the attack; only in the first batch."""

    @property
    def first(self) -> bool:
        """True for the batch with which the dataset begins."""
        return int(self.positions[0]) == 0

    def batch(self, test: Dataset, device: torch.device) -> Batch:
        return test.batch(self.positions).to(device)


@dataclasses.dataclass(kw_only=True)
class Generation:
    """The attack on a dataset, run batch by batch; every batch is stored as soon as it is done.

    Several runs may work on one folder: each takes a lease on a batch before it makes it.
    """

    title: str
    attack: Attack
    threat: ThreatModel
    max_queries: int | None
    seed: int
    source: Defended
    test: Dataset
    device: torch.device
    batch_size: int
    folder: Path
    """The folder of the batches. Its name is the key of the images, which every file in it states."""
    reporter: Reporter
    stop: training.Stop
    mend: Callable[[store.DamagedFile], object]
    """Sets a damaged batch aside; it is then made again."""
    leases: Leases | None = None

    def __post_init__(self) -> None:
        self._model = ModelState(self.source)
        self._images = ImageState(self.test)
        self._shards: dict[str, Shard] = {}
        self._done = torch.zeros(len(self.test), dtype=torch.bool)

    def shards(self) -> list[Shard]:
        """Return all batches in the order of the dataset: stored ones are read, the others made.

        Raises:
            Busy: other runs are making all batches that are left.
            StoreError: a batch cannot be read or written.
            Interrupted: a signal came.
        """
        store.make_folder(self.folder)
        self._look()
        passes = self.attack.passes or 1
        busy = False
        with self.reporter.task(self.title, passes * len(self.test)) as task:
            task.advance(passes * int(self._done.sum()))
            for start in range(0, len(self.test), self.batch_size):
                # Batches lie on a grid, so that those made after a stop, or by another run, are the
                # same as if one run had made them all.
                block = torch.arange(start, min(start + self.batch_size, len(self.test)))
                if bool(self._done[block].all()):
                    continue
                lease = self._lease(start)
                if lease is None:
                    busy = True
                    continue
                with lease:
                    self._look()  # it may have been finished before the lease
                    left = block[~self._done[block]]
                    if len(left):
                        self._attack(left, task.advance)
        if busy:
            self._look()
        if not bool(self._done.all()):
            raise Busy(self.title)
        return sorted(self._shards.values(), key=lambda shard: int(shard.positions[0]))

    def _lease(self, start: int) -> contextlib.AbstractContextManager[object] | None:
        if self.leases is None:
            return contextlib.nullcontext()
        return self.leases.take(f"attack-{self.folder.name}-{start:08d}", self.title)

    def _look(self) -> None:
        """Read the batches that are new in the folder."""
        for path, tensors, metadata in batches(self.folder, self._done, self.mend, self._shards):
            try:
                self._keep(path.name, _shard(path, tensors, metadata, self.test))
            except store.DamagedFile as error:
                self.mend(error)

    def _keep(self, name: str, shard: Shard) -> None:
        self._shards[name] = shard
        self._done[shard.positions] = True

    def _attack(self, positions: Tensor, advance: Callable[[float], None]) -> None:
        try:
            shard = self._perturb(positions, advance)
        except (RuntimeError, MemoryError) as error:
            if not memory.exhausted(error) or len(positions) == 1:
                raise
            memory.release()
        else:
            name = f"{int(positions[0]):08d}-{len(positions)}.safetensors"
            _write_shard(self.folder / name, shard)
            log.event("batch done", self.title, batch=str(int(positions[0])), seconds=shard.seconds)
            self._keep(name, shard)
            return
        # Outside of the handler, the memory of the failed attempt is free.
        half = len(positions) // 2
        self.reporter.say(f"out of memory: batches of {half} from here on")
        self.batch_size = min(self.batch_size, half)
        for part in torch.split(positions, half):
            self._attack(part, advance)

    def _perturb(self, positions: Tensor, advance: Callable[[float], None]) -> Shard:
        attack, threat = self.attack, self.threat
        changed: list[str] = []
        rows = slice(int(positions[0]), int(positions[-1]) + 1)
        process = self._images.restore(rows)  # the attack on another batch may have edited them
        batch = self.test.batch(positions).to(self.device)
        started = time.monotonic()
        log.event("batch started", self.title, batch=str(int(positions[0])))

        stopped: list[BaseException] = []

        def on_pass(images: int) -> None:
            advance(images)
            try:
                self.stop.check()
            except BaseException as error:
                stopped.append(error)
                raise

        view = View(
            self.source,
            batch,
            threat,
            attack.access,
            max_queries=self.max_queries,
            probed=int((positions < dead_pixels.IMAGES).sum()),
            on_pass=on_pass,
        )
        draws = Draws(self.seed, batch.ids, Role.ATTACK)

        def passes(error: BaseException) -> bool:
            """Return whether an error came from the view, a signal or the system through the attack."""
            spent = type(error) is QueryBudgetSpent and view.candidates is not None
            stops = self.stop.meant(error) or any(error is each for each in stopped)
            return spent or stops or memory.ran_out(error)

        def perturb() -> Perturbed:
            attack.check(view, threat)
            return _checked(attack.perturb(view, batch, threat, draws))

        last = int(self._done.sum()) + len(positions) == len(self.test)
        with self._watched(changed, process, None if last else rows):
            try:
                perturbed = guard.call(perturb, passes)
            except QueryBudgetSpent:
                assert view.candidates is not None
                perturbed = Perturbed(view.candidates)
        given, batch = batch, self.test.batch(positions).to(self.device)
        if any(not torch.equal(getattr(given, name), getattr(batch, name)) for name in _GIVEN):
            process.append("the batch that the view compares with")
            guard.history.append(process[-1])
        images = perturbed.images.detach()
        if images.shape != batch.images.shape:
            raise HarnessError(
                f"{self.title} returned images of shape {tuple(images.shape)} "
                f"for {tuple(batch.images.shape)}"
            )
        trace = self._trace(batch, perturbed)
        return Shard(
            positions=positions,
            images=images.float().cpu(),
            evidence=Evidence(
                **{
                    field.name: getattr(view.evidence, field.name).cpu()
                    for field in dataclasses.fields(Evidence)
                }
            ),
            trace=trace,
            seconds=time.monotonic() - started,
            changed=guard.named(changed),
            process=guard.named(process),
            asked=tuple(view.asked.values()) if int(positions[0]) == 0 else (),
        )

    @contextlib.contextmanager
    def _watched(
        self, changed: list[str], process: list[str], rows: slice | None
    ) -> Iterator[None]:
        """Restore victim, images, attack and process after the block; name changes in the two lists.

        Args:
            rows: the images to compare; all where None.
        """
        own = dict(vars(self.attack))
        with guard.watched() as found:
            try:
                yield
            finally:
                changed += self._model.restore()
                process += self._images.restore(rows)
                now = vars(self.attack)
                if any(now.get(name) is not value for name, value in own.items()):
                    now.update(own)
                    process.append("the attack's own fields")
                guard.history.extend(process)
        process += found

    def _trace(self, batch: Batch, perturbed: Perturbed) -> dict[int, Tensor]:
        draws = TRACE_DRAWS if self.source.randomised else 1
        found = {}
        for step, images in sorted(perturbed.snapshots.items()):
            found[step] = self._right(batch, images, draws)
        if found:
            found[-1] = self._right(batch, perturbed.images, draws)
        return found

    def _right(self, batch: Batch, images: Tensor, draws: int) -> Tensor:
        predicted = predictions(
            self.source, images.float(), batch.ids, seed=self.seed, draws=draws, role=Role.TRACE
        )
        return (predicted == batch.labels).cpu()


def _checked(perturbed: Perturbed) -> Perturbed:
    """Return an attack's result as plain tensors, read once, within the guarded call of the guest.

    Raises:
        TypeError: the result is something else.
    """
    if not isinstance(perturbed.images, Tensor):
        raise TypeError(f"it returned {type(perturbed.images).__name__} in place of images")
    snapshots = {int(step): _plain(images) for step, images in perturbed.snapshots.items()}
    return Perturbed(_plain(perturbed.images), snapshots)


def _plain(images: Tensor) -> Tensor:
    """Return a copy that neither a tensor class of the guest nor a later write can change."""
    with torch._C.DisableTorchFunctionSubclass():
        return images.detach().as_subclass(Tensor).clone()


def _write_shard(path: Path, shard: Shard) -> None:
    tensors = {"positions": shard.positions, "images": shard.images}
    for field in dataclasses.fields(Evidence):
        tensors[f"evidence.{field.name}"] = getattr(shard.evidence, field.name)
    for step, right in shard.trace.items():
        tensors[f"trace.{step}"] = right
    for number, question in enumerate(shard.asked):
        tensors[f"asked.{number}.ids"] = question.draws.ids
        tensors[f"asked.{number}.images"] = question.images
        tensors[f"asked.{number}.logits"] = question.logits
    places = [question.draws for question in shard.asked]
    metadata = {
        "asked": " ".join(f"{each.seed},{each.step},{each.draw}" for each in places),
        "generation": path.parent.name,
        "seconds": shard.seconds.hex(),
        "changed": shard.changed,
        "process": shard.process,
    }
    store.write_tensors(path, tensors, metadata)


def _shard(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], test: Dataset
) -> Shard:
    """Return the batch that a file of attacked images holds.

    Raises:
        DamagedFile: evidence and trace do not fit the images, or the images do not fit the test set.
    """
    try:
        evidence = {
            field.name: tensors[f"evidence.{field.name}"] for field in dataclasses.fields(Evidence)
        }
        trace = {
            int(name.removeprefix("trace.")): value
            for name, value in tensors.items()
            if name.startswith("trace.")
        }
        shard = Shard(
            positions=tensors["positions"],
            images=tensors["images"],
            evidence=Evidence(**evidence),
            trace=trace,
            seconds=float.fromhex(metadata["seconds"]),
            changed=metadata["changed"],
            process=metadata["process"],
            asked=_asked(tensors, metadata["asked"]),
        )
        _check_shard(shard, test)
    except (KeyError, ValueError, RuntimeError) as error:
        raise store.damaged(path, error) from error
    return shard


def _asked(tensors: dict[str, Tensor], places: str) -> tuple[Question, ...]:
    found = []
    for number, place in enumerate(places.split()):
        seed, step, draw = map(int, place.split(","))
        name = f"asked.{number}"
        draws = Draws(seed, tensors[f"{name}.ids"], Role.ATTACK, step=step, draw=draw)
        found.append(Question(tensors[f"{name}.images"], draws, tensors[f"{name}.logits"]))
    return tuple(found)


def _check_shard(shard: Shard, test: Dataset) -> None:
    """Raise ValueError where counts, shapes or types do not fit."""
    count = len(shard.positions)
    if shard.images.shape != (count, *test.shape):
        raise ValueError(f"its images are {shard.images.dtype}, {tuple(shard.images.shape)}")
    seen = [getattr(shard.evidence, field.name) for field in dataclasses.fields(Evidence)]
    if any(value.shape != (count,) for value in seen):
        raise ValueError("its evidence does not fit its images")
    if any(value.ndim != 2 or value.shape[1] != count for value in shard.trace.values()):
        raise ValueError("its trace does not fit its images")
