"""`harness audit`: try everything that may break one defense, within a budget of time."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable

import torch

from harness.audit import binarization, randomness
from harness.audit.budget import BudgetSpent, Deadline
from harness.audit.verdict import conclude, report
from harness.cells.cells import Cell, Target
from harness.evaluation import suites
from harness.evaluation.calibrate import Pace, measure_pace
from harness.evaluation.plans import plan
from harness.evaluation.runner import Elsewhere, Runner
from harness.evaluation.suites import Entry
from harness.random import Draws, Role
from harness.registry import attacks
from harness.results import flags as audit
from harness.results.audits import Audit, Probe, Tried
from harness.results.records import Record
from harness.spec import build
from harness.storage import keys, store
from harness.storage.progress import duration
from harness.targets import own_models
from harness.targets.defended import Defended
from harness.targets.source import TargetSource
from harness.targets.training import Interrupted
from harness.types import Attack, Batch, Defense, Spec, ThreatModel

SCALES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
COUNTS = (1000, 500, 200, 100)
_READOUT_IMAGES = 32
_SHARE = 0.8
"""The share of the remaining time that may be planned for."""


@dataclasses.dataclass(frozen=True)
class _Size:
    """The size of an audit, fixed at its first run so that a second run goes on with it."""

    count: int
    scale: float


@dataclasses.dataclass(kw_only=True)
class Battery:
    """All checks and attacks of an audit of one target, cheap and informative ones first."""

    target: Target
    threat: ThreatModel
    model_store: TargetSource
    budget: float
    draws: int = 10
    limit: int | None = None
    scale: float | None = None
    """The share of the suite's budget of passes; None for as much as the time allows."""
    batch_size: int = 50
    promises: Callable[[Defense], Iterable[Probe]] = lambda defense: ()
    """Checks of the defense itself: `harness.conformance.check.probes`."""
    elsewhere: Elsewhere | None = None
    isolate: bool = False
    """Run each cell in a process of its own, by `elsewhere`."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._outer = self.model_store.stop
        self._deadline = Deadline(self._outer, self._started + self.budget, self.clock)
        self._tried: list[Tried] = []
        self._probes: list[Probe] = []
        self._records: dict[str, Record] = {}

    def run(self) -> tuple[Audit, str]:
        """Run the audit, store its results and its page, and return both.

        Raises:
            Interrupted: a signal came.
            HarnessError: the target cannot be made.
        """
        self.model_store.stop = self._deadline
        try:
            try:
                defended = self.model_store.obtain(self.target)
            except BudgetSpent:
                self._probes.append(
                    Probe(name="training", outcome="the budget was spent in it", untested=True)
                )
                return self._finish(_Size(0, 0.0))
            size = self._size(defended)
            self._stability(defended, size)
            for probe in self.promises(defended.defense):
                self._probes.append(probe)
            self._attacks(defended, size)
            return self._finish(size)
        finally:
            self.model_store.stop = self._outer

    # --- the size of the audit ----------------------------------------------------------------

    @property
    def key(self) -> str:
        """The key of the question: what is audited and how, but not the results."""
        asked = [self.target, self.threat, self.budget, self.draws, self.limit, self.scale]
        return keys.key([self.model_store.resolved(self.target), *asked])

    def _size(self, defended: Defended) -> _Size:
        """Return the largest share of the suite, and then the most images, that should fit the budget."""
        known = self.model_store.store.read_json("audit-sizes", self.key, _Size)
        if known is not None:
            return known
        available = len(self.model_store.dataset(self.target.dataset, "test"))
        most = min(available, self.limit or available)
        pace = self._pace(defended)
        allowed = self._deadline.left * _SHARE

        def fits(count: int, scale: float) -> bool:
            cost = sum(
                self._cost(entry, count, pace) for entry in self._entries(defended.defense, scale)
            )
            return cost <= allowed

        counts = [min(most, count) for count in COUNTS]
        if self.limit is not None:
            counts = [most]
        scales = SCALES if self.scale is None else (self.scale,)
        scale = next((scale for scale in scales if fits(counts[-1], scale)), scales[-1])
        count = next((count for count in counts if fits(count, scale)), counts[-1])
        size = _Size(count, scale)
        self.model_store.store.write_json("audit-sizes", self.key, size)
        return size

    def _pace(self, defended: Defended) -> Pace:
        """Return the pace measured on one batch of the test set."""
        test = self.model_store.dataset(self.target.dataset, "test").first(self.batch_size)
        batch = test.batch(slice(0, None)).to(self.model_store.device)
        return measure_pace(defended, batch, Draws(self.target.seed, batch.ids, Role.AUDIT))

    def _cost(self, entry: Entry, count: int, pace: Pace) -> float:
        """Return the seconds that an attack of the suite and its scoring take."""
        seconds, _ = pace.attack(build(entry.attack, attacks))
        return count * (seconds + pace.scoring(self.draws))

    def _entries(self, defense: Defense, scale: float) -> list[Entry]:
        """Return the attacks of the suite; those that train a source come last, since they may not fit."""
        entries = suites.expand("battery", defense, self.threat)
        entries += suites.expand("adaptive", defense, self.threat, scale=scale)
        return sorted(entries, key=lambda entry: entry.attack.inner is not None)

    # --- the checks ---------------------------------------------------------------------------

    def _attacks(self, defended: Defended, size: _Size) -> None:
        pace = self._pace(defended)
        entries = self._entries(defended.defense, size.scale)
        on_the_model = [entry for entry in entries if entry.attack.inner is None]
        compared = not defended.randomised
        for entry in on_the_model:
            self._attack(entry, self.target, size, pace)
            if not compared and (record := self._strongest(audit.MANY_STEPS)) is not None:
                self._randomness(defended, record)
                compared = True
        self._readouts(defended)
        if defended.randomised:
            self._held(size, pace)
        # Attacks that train a source may take the rest of the time.
        for entry in entries:
            if entry not in on_the_model:
                self._attack(entry, self.target, size, pace)

    def _attack(self, entry: Entry, target: Target, size: _Size, pace: Pace) -> None:
        cell = Cell(
            target=target,
            attack=entry.attack,
            threat=entry.threat,
            draws=self.draws,
            limit=size.count,
        )
        tried = Tried(
            name=entry.name,
            why=entry.why,
            attack=str(entry.attack),
            epsilon=entry.threat.epsilon,
            scaled=entry.scaled,
        )
        if own_models.is_given(target.model) and suites.needs_another_model(entry.attack):
            needs = "it needs an independently trained copy of the model"
            self._tried.append(dataclasses.replace(tried, untested=needs))
            return
        key = plan(cell, self.model_store).key
        cost, left = self._cost(entry, size.count, pace), max(0.0, self._deadline.left)
        stored = self.model_store.store.has("records", key)
        if not stored and cost > left:
            needs = f"it needs about {duration(cost)}, {duration(left)} were left"
            self._tried.append(dataclasses.replace(tried, untested=needs))
            return
        try:
            (result,) = self._runner.run([cell])
        except BudgetSpent:
            cut = "cut off by the budget; the same command again goes on with it"
            self._tried.append(dataclasses.replace(tried, untested=cut))
            return
        if isinstance(result, Record):
            self._records[result.key] = result
            self._tried.append(dataclasses.replace(tried, key=result.key))
        else:
            reason = f"{result.kind}: {result.reason}"
            self._tried.append(dataclasses.replace(tried, untested=reason))

    @functools.cached_property
    def _runner(self) -> Runner:
        """One for all cells: it knows what guests did to the process in the cells before."""
        return Runner(
            model_store=self.model_store,
            batch_size=self.batch_size,
            elsewhere=self.elsewhere,
            isolate=self.isolate,
        )

    def _stability(self, defended: Defended, size: _Size) -> None:
        """Check for randomness that the defense does not declare: two queries under one draw must agree."""
        name = "two looks at the same draw"
        test = self.model_store.dataset(self.target.dataset, "test").first(size.count)
        batch = test.batch(slice(0, None)).to(self.model_store.device)
        draws = Draws(self.target.seed, batch.ids, Role.AUDIT)
        differ = 0
        for start in range(0, len(batch), self.batch_size):
            part = slice(start, start + self.batch_size)
            with torch.no_grad():
                looks = [defended.logits(batch.images[part], draws[part]) for _ in range(2)]
            same = torch.isclose(
                looks[0], looks[1], rtol=1e-3, atol=1e-4, equal_nan=True
            )  # but for rounding
            differ += int((~same).any(dim=1).sum())
        outcome = f"{differ} of {len(batch)} images give other logits"
        reason = f"randomness that is not declared: {outcome}" if differ else ""
        self._probes.append(
            Probe(name=name, outcome=outcome, flag=reason, raises="inconsistent-defense")
        )

    def _randomness(self, defended: Defended, record: Record) -> None:
        """Check that accuracy on an attack's images does not depend on whose draws are used."""
        name = "the judge's draws, an attack's, those of no run, and one for all images"
        shard = self._runner.attack(plan(record.cell, self.model_store))[0]
        test = self.model_store.dataset(self.target.dataset, "test")
        batch = shard.batch(test, self.model_store.device)
        attacked = dataclasses.replace(batch, images=shard.images.to(batch.images))
        reason = randomness.disagreement(defended, attacked, seed=self.target.seed)
        outcome = reason or "accuracies agree"
        self._probes.append(
            Probe(name=name, outcome=outcome, flag=reason, raises="inconsistent-defense")
        )

    def _strongest(self, steps: int) -> Record | None:
        """Return the record of the strongest attack on the model with gradients and so many steps."""
        seeing = [
            record
            for record in self._records.values()
            if record.access == "gradients"
            and not record.transferred
            and record.cell.target == self.target
            and record.cell.threat == self.threat
            and audit.iterations(record) >= steps
        ]
        return min(seeing, key=lambda record: record.robust.mean, default=None)

    def _readouts(self, defended: Defended) -> None:
        """Run the binarisation test on the strongest attack with gradients."""
        name = "binarisation test"
        strongest = self._strongest(audit.MANY_STEPS)
        if strongest is None or self._deadline.left <= 0:
            outcome = "no attack with gradients was finished in time"
            self._probes.append(Probe(name=name, outcome=outcome, untested=True))
            return
        test = self.model_store.dataset(self.target.dataset, "test").first(_READOUT_IMAGES)
        batch = test.batch(slice(0, None)).to(self.model_store.device)
        found = self._guarded_readout(defended, batch, strongest.cell.attack)
        if found is None or found.refused:
            why = found.refused if found else "it did not fit into the budget"
            self._probes.append(Probe(name=name, outcome=why, untested=True))
            return
        self._probes.append(
            Probe(
                name=name,
                outcome=found.outcome,
                flag=found.flag,
                against=str(strongest.cell.attack),
                untested=bool(found.vacuous),
                raises="unsound-readout",
            )
        )

    def _guarded_readout(
        self, defended: Defended, batch: Batch, spec: Spec
    ) -> binarization.Readout | None:
        attack: Attack = build(spec, attacks)
        try:
            return binarization.binarisation_test(
                defended,
                attack,
                batch,
                self.threat,
                seed=self.target.seed,
                name=str(spec),
                on_pass=lambda images: self._deadline.check(),
            )
        except BudgetSpent:
            return None
        except Interrupted:
            raise
        except Exception as error:  # a guest's failure is not the audit's
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            return binarization.Readout(
                attack=str(spec), usable=0, found=0, random=0, refused=reason
            )

    def _held(self, size: _Size, pace: Pace) -> None:
        """Attack the same weights with fixed randomness: images that fall then are held by noise alone."""
        spec = self.target.defense
        held = dataclasses.replace(spec, parameters={**spec.parameters, "randomness": "fixed"})
        target = dataclasses.replace(self.target, defense=held)
        for entry in suites.expand("held", self.model_store.defense(target), self.threat):
            self._attack(entry, target, size, pace)

    # --- the results --------------------------------------------------------------------------

    def _finish(self, size: _Size) -> tuple[Audit, str]:
        records = list(self._records.values())
        flags: dict[str, dict[str, str]] = audit.across(records)
        for record in records:
            for probe in self._probes:
                concerned = probe.raises == "inconsistent-defense" or record.access == "gradients"
                if probe.flag and concerned and probe.against in ("", str(record.cell.attack)):
                    flags[record.key].setdefault(probe.raises, probe.flag)
        own = [record for record in records if record.cell.target == self.target]
        verdict, sentence = conclude(own, flags, self.threat)
        found = Audit(
            key=self.key,
            target=self.target,
            threat=self.threat,
            count=size.count,
            available=len(self.model_store.dataset(self.target.dataset, "test")),
            draws=self.draws if self.model_store.defense(self.target).is_random else 1,
            budget=self.budget,
            spent=self.clock() - self._started,
            scale=size.scale,
            tried=tuple(self._tried),
            probes=tuple(self._probes),
            flags=flags,
            verdict=verdict,
            sentence=sentence,
        )
        page = report(found, self._records)
        folder = self.model_store.store
        folder.write_json("audits", self.key, found)
        store.write_atomic(folder.results / "audits" / f"{self.key}.md", page.encode())
        return found, page
