"""`harness audit`: everything that may break one defense, within a budget of time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import torch

from harness.audit import binarization
from harness.audit.verdict import conclude, report
from harness.cells.cells import Cell, Target
from harness.evaluation import suites
from harness.evaluation.runner import Runner, plan
from harness.evaluation.suites import Entry
from harness.random import Draws, Role
from harness.registry import attacks
from harness.results import flags as audit
from harness.results.audits import Audit, Probe, Tried
from harness.results.records import Record
from harness.spec import build
from harness.storage import keys, store
from harness.storage.progress import duration
from harness.targets import objects, own_models
from harness.targets.defended import Defended
from harness.targets.source import TargetSource
from harness.targets.training import Interrupted, Stop
from harness.types import Attack, Batch, Defense, HarnessError, Spec, ThreatModel

SCALES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
COUNTS = (1000, 500, 200, 100)
_READOUT_IMAGES = 32
_SHARE = 0.8
"""Of the time that is left, what may be planned for."""


class BudgetSpent(Interrupted):
    """The time that was allowed is over. What is done is kept."""


class Deadline(Stop):
    """A stop that also asks when the budget is spent."""

    def __init__(self, inner: Stop, until: float, clock: Callable[[], float]) -> None:
        self._inner, self._until, self._clock = inner, until, clock

    @property
    def left(self) -> float:
        """Seconds."""
        return self._until - self._clock()

    @property
    def asked(self) -> bool:
        return self._inner.asked or self.left <= 0

    @asked.setter
    def asked(self, value: bool) -> None:
        self._inner.asked = value

    def check(self) -> None:
        self._inner.check()
        if self.left <= 0:
            raise BudgetSpent


@dataclasses.dataclass(frozen=True)
class _Size:
    """How much is done, fixed at the first run of an audit so that a second one goes on with it."""

    count: int
    scale: float


@dataclasses.dataclass(kw_only=True)
class Battery:
    """The whole battery for one target: cheap and telling checks first."""

    target: Target
    threat: ThreatModel
    workshop: TargetSource
    budget: float
    draws: int = 10
    limit: int | None = None
    scale: float | None = None
    """None: as large as the budget allows."""
    batch_size: int = 50
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._outer = self.workshop.stop
        self._deadline = Deadline(self._outer, self._started + self.budget, self.clock)
        self._tried: list[Tried] = []
        self._probes: list[Probe] = []
        self._records: dict[str, Record] = {}

    def run(self) -> tuple[Audit, str]:
        """(what was found, the page). Both are stored too.

        Raises:
            Interrupted: a signal came. HarnessError: the target cannot be made.
        """
        self.workshop.stop = self._deadline
        try:
            try:
                defended = self.workshop.obtain(self.target)
            except BudgetSpent:
                self._probes.append(
                    Probe(name="training", outcome="the budget was spent in it", untested=True)
                )
                return self._finish(_Size(0, 0.0))
            size = self._size(defended)
            self._stability(defended, size)
            self._attacks(defended, size)
            return self._finish(size)
        finally:
            self.workshop.stop = self._outer

    # --- how much -----------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """Of what is audited and how; not of what is found."""
        asked = [self.target, self.threat, self.budget, self.draws, self.limit, self.scale]
        return keys.key([self.workshop.resolved(self.target), *asked])

    def _size(self, defended: Defended) -> _Size:
        """The largest share of the suite and then the most images that should fit."""
        known = self.workshop.store.read_json("audit-sizes", self.key, _Size)
        if known is not None:
            return known
        available = len(self.workshop.dataset(self.target.dataset, "test"))
        most = min(available, self.limit or available)
        forward, both = self._pace(defended)
        allowed = self._deadline.left * _SHARE

        def fits(count: int, scale: float) -> bool:
            cost = sum(
                self._cost(entry, count, forward, both)
                for entry in self._entries(defended.defense, scale)
            )
            return cost <= allowed

        counts = [min(most, count) for count in COUNTS]
        if self.limit is not None:
            counts = [most]
        scales = SCALES if self.scale is None else (self.scale,)
        scale = next((scale for scale in scales if fits(counts[-1], scale)), scales[-1])
        count = next((count for count in counts if fits(count, scale)), counts[-1])
        size = _Size(count, scale)
        self.workshop.store.write_json("audit-sizes", self.key, size)
        return size

    def _pace(self, defended: Defended) -> tuple[float, float]:
        """Seconds an image takes: (a forward, a forward and backward), measured."""
        test = self.workshop.dataset(self.target.dataset, "test").first(self.batch_size)
        batch = test.batch(slice(0, None)).to(self.workshop.device)
        draws = Draws(self.target.seed, batch.ids, Role.AUDIT)

        def forward() -> None:
            with torch.no_grad():
                defended.logits(batch.images, draws).sum().item()

        def both() -> None:
            pixels = batch.images.clone().requires_grad_(True)
            logits = defended.logits(pixels, draws)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), pixels, allow_unused=True)

        seconds = []
        for work in (forward, both):
            work()
            before = time.perf_counter()
            work()
            seconds.append((time.perf_counter() - before) / len(batch))
        return seconds[0], max(seconds)

    def _cost(self, entry: Entry, count: int, forward: float, both: float) -> float:
        attack: Attack = build(entry.attack, attacks)
        each = both if attack.access == "gradients" else forward
        return count * ((attack.passes or 1) * each + 2 * self.draws * forward)

    def _entries(self, defense: Defense, scale: float) -> list[Entry]:
        """Attacks that retrain a source come last: they may not fit."""
        entries = suites.expand("battery", defense, self.threat)
        entries += suites.expand("adaptive", defense, self.threat, scale=scale)
        return sorted(entries, key=lambda entry: entry.attack.inner is not None)

    # --- what is done -------------------------------------------------------------------------

    def _attacks(self, defended: Defended, size: _Size) -> None:
        pace = self._pace(defended)
        entries = self._entries(defended.defense, size.scale)
        on_the_model = [entry for entry in entries if entry.attack.inner is None]
        for entry in on_the_model:
            self._attack(entry, self.target, size, pace)
        self._readouts(defended)
        if defended.randomised:
            self._held(size, pace)
        # Attacks that train a source may take the rest of the time.
        for entry in entries:
            if entry not in on_the_model:
                self._attack(entry, self.target, size, pace)

    def _attack(self, entry: Entry, target: Target, size: _Size, pace: tuple[float, float]) -> None:
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
        if own_models.is_given(target.model) and objects.needs_another_model(entry.attack):
            needs = "it needs an independently trained copy of the model"
            self._tried.append(dataclasses.replace(tried, untested=needs))
            return
        key = plan(cell, self.workshop).key
        cost, left = self._cost(entry, size.count, *pace), max(0.0, self._deadline.left)
        stored = self.workshop.store.has("records", key)
        if not stored and cost > left:
            needs = f"it needs about {duration(cost)}, {duration(left)} were left"
            self._tried.append(dataclasses.replace(tried, untested=needs))
            return
        try:
            runner = Runner(workshop=self.workshop, batch_size=self.batch_size)
            (result,) = runner.run([cell])
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

    def _stability(self, defended: Defended, size: _Size) -> None:
        """Randomness that a defense does not declare: two looks at one draw must agree."""
        name = "two looks at the same draw"
        test = self.workshop.dataset(self.target.dataset, "test").first(size.count)
        batch = test.batch(slice(0, None)).to(self.workshop.device)
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
        self._probes.append(Probe(name=name, outcome=outcome, flag=reason))

    def _readouts(self, defended: Defended) -> None:
        """The binarisation test of the strongest attack with gradients."""
        name = "binarisation test"
        seeing = [
            record
            for record in self._records.values()
            if record.access == "gradients"
            and not record.transferred
            and record.cell.threat == self.threat
            and audit.iterations(record) >= audit.MANY_STEPS
        ]
        if not seeing or self._deadline.left <= 0:
            outcome = "no attack with gradients was finished in time"
            self._probes.append(Probe(name=name, outcome=outcome, untested=True))
            return
        strongest = min(seeing, key=lambda record: record.robust.mean)
        test = self.workshop.dataset(self.target.dataset, "test").first(_READOUT_IMAGES)
        batch = test.batch(slice(0, None)).to(self.workshop.device)
        found = self._guarded_readout(defended, batch, strongest.cell.attack)
        if found is None or found.refused:
            why = found.refused if found else "it did not fit into the budget"
            self._probes.append(Probe(name=name, outcome=why, untested=True))
            return
        outcome = (
            f"{found.attack} finds {found.found} of {found.usable} adversarial examples that are known "
            f"to exist (random points: {found.random})"
        )
        self._probes.append(
            Probe(name=name, outcome=outcome, flag=found.flag, against=str(strongest.cell.attack))
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

    def _held(self, size: _Size, pace: tuple[float, float]) -> None:
        """The same weights with their randomness fixed: what falls then is held up by noise alone."""
        spec = self.target.defense
        held = dataclasses.replace(spec, parameters={**spec.parameters, "randomness": "fixed"})
        entry = Entry(
            name="randomness fixed",
            why="the same weights with one mask for all images: what the randomness is worth",
            attack=Spec("bpda", {"steps": "100", "keep": "best"}),
            threat=self.threat,
        )
        self._attack(entry, dataclasses.replace(self.target, defense=held), size, pace)

    # --- what came of it ----------------------------------------------------------------------

    def _finish(self, size: _Size) -> tuple[Audit, str]:
        records = list(self._records.values())
        flags: dict[str, dict[str, str]] = audit.across(records)
        for record in records:
            for probe in self._probes:
                if not probe.flag or record.access != "gradients":
                    continue
                flag = "unsound-readout" if probe.against else "masked-gradients"
                if probe.against in ("", str(record.cell.attack)):
                    flags[record.key].setdefault(flag, probe.flag)
        own = [record for record in records if record.cell.target == self.target]
        verdict, sentence = conclude(own, flags, self.threat)
        found = Audit(
            key=self.key,
            target=self.target,
            threat=self.threat,
            count=size.count,
            available=len(self.workshop.dataset(self.target.dataset, "test")),
            draws=self.draws if self._random() else 1,
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
        folder = self.workshop.store
        folder.write_json("audits", self.key, found)
        store.write_atomic(folder.results / "audits" / f"{self.key}.md", page.encode())
        return found, page

    def _random(self) -> bool:
        return suites.is_random(self.workshop.defense(self.target))


def seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `1.5h` in seconds.

    Raises:
        HarnessError: anything else.
    """
    units: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0}
    unit = units.get(text[-1:], 1.0)
    try:
        value = float(text[:-1] if text[-1:] in units else text) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise HarnessError(f"a budget of {text!r}: write 90s, 10m or 2h", page="flags")
    return value
