"""Estimate the time and memory of a run by short measurements on its own models and defenses.

Costs are counted in passes: an attack states the most that an image needs, and training has as many as its
plan says. A pass of each kind is timed on this machine, at the batch size of the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.cells.cells import Target
from harness.evaluation.plans import Plan
from harness.evaluation.runner import Runner
from harness.random import Draws, Role
from harness.registry import attacks, models
from harness.spec import build
from harness.storage import keys
from harness.storage.progress import duration
from harness.targets.defended import Defended
from harness.types import Attack, Batch, Dataset, HarnessError

_UNKNOWN_PASSES = 1000
_LEAST_SECONDS, _MOST_REPEATS, _SLOW = 0.15, 5, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The needs of a run: seconds of work, as if each cell ran alone on this machine, and bytes."""

    training: float
    attacks: float
    scoring: float
    peak_bytes: int
    disk_bytes: int
    unknown: int
    """The number of cells whose attack does not state its passes, which are counted as 1,000."""
    calibration: float

    @property
    def total(self) -> float:
        return self.training + self.attacks + self.scoring

    def text(self) -> str:
        if not self.total:
            return "nothing is missing"
        lines = [
            f"estimate: {duration(self.total)}: training {duration(self.training)}, attacks "
            f"{duration(self.attacks)}, scoring {duration(self.scoring)}; memory "
            f"{self.peak_bytes / 2**30:.1f} GB at the peak, {self.disk_bytes / 2**30:.1f} GB on disk",
            f"(from {duration(self.calibration)} of calibration on this machine as busy as it is now; "
            "attacks that stop early take less)",
        ]
        if self.unknown:
            lines.append(
                f"{self.unknown} cells have attacks that do not say how many passes they take: "
                "counted as 1,000"
            )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """The seconds that an image takes in one pass through a defended model."""

    forward: float
    gradient: float
    """A forward and a backward pass."""

    def attack(self, attack: Attack) -> tuple[float, bool]:
        """Return (seconds for an image, whether the attack states the most passes that it needs)."""
        passes = attack.passes
        one = self.gradient if attack.access == "gradients" else self.forward
        return (_UNKNOWN_PASSES if passes is None else passes) * one, passes is not None

    def scoring(self, draws: int) -> float:
        """Return the seconds that an image takes in the judge: it and its original under `draws` draws."""
        return 2 * draws * self.forward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs(Pace):
    """The seconds that an image takes in a pass of each kind."""

    transform: float
    train: float
    """One training step on images that are transformed already."""
    auxiliary: float


def estimate(missing: Sequence[Plan], runner: Runner) -> Estimate:
    """Return the estimate for the missing cells, with the trainings that they still need."""
    started = time.monotonic()
    model_store = runner.model_store
    costs: dict[str, Costs] = {}
    trained: set[str] = set()
    training = attack = scoring = 0.0
    disk = unknown = 0
    with model_store.reporter.task("calibration", len(missing)) as task:
        for each in missing:
            model_store.stop.check()
            target = each.cell.target
            test = model_store.dataset(target.dataset, "test").first(each.cell.limit)
            size = min(runner.batch_size, len(test))
            try:
                for wanted in {keys.canonical(t): t for t in (target, each.source)}.values():
                    key = model_store.key(wanted)
                    if key not in trained and not model_store.is_trained(wanted):
                        batch = wanted.training.batch_size
                        training += _training(wanted, runner, _costs(wanted, runner, costs, batch))
                        disk += _disk(wanted, runner)
                    trained.add(key)
                cost = _costs(each.source, runner, costs, size)
                spent, known = cost.attack(each.attack)
                unknown += not known
                attack += spent * len(test)
                scoring += cost.scoring(each.resolved.draws) * len(test)
                disk += 4 * test.images[0].numel() * len(test)
            except HarnessError as error:
                model_store.reporter.say(f"not calibrated: {each.cell.attack}: {error}")
            task.advance(1)
    return Estimate(
        training=training,
        attacks=attack,
        scoring=scoring,
        peak_bytes=_peak(runner),
        disk_bytes=disk,
        unknown=unknown,
        calibration=time.monotonic() - started,
    )


def _training(target: Target, runner: Runner, cost: Costs) -> float:
    plan, model_store = target.training, runner.model_store
    defense = model_store.defense(target)
    images = len(model_store.dataset(target.dataset, "train").first(plan.limit))
    seen = plan.epochs * images
    seconds = seen * cost.train
    if plan.kind == "adversarial" and plan.inner is not None:
        inner = build(plan.inner, attacks)
        seconds += seen * ((inner.passes or 1) * cost.gradient + cost.transform)
    elif defense.estimates:
        seconds += defense.estimates * images * cost.transform
    else:
        seconds += seen * cost.transform
    if cost.auxiliary:
        epochs = int(defense.auxiliary_plan().get("epochs", 10))
        seconds += epochs * images * cost.auxiliary
    return seconds


def _disk(target: Target, runner: Runner) -> int:
    """Return the bytes of the fixed training versions, the largest files that a training leaves."""
    defense = runner.model_store.defense(target)
    if target.training.kind == "adversarial" or not defense.estimates:
        return 0
    dataset = runner.model_store.dataset(target.dataset, "train").first(target.training.limit)
    return defense.estimates * dataset.images[0].numel() * len(dataset)


def _costs(target: Target, runner: Runner, known: dict[str, Costs], size: int) -> Costs:
    """Return costs in batches of `size`, measured once for all targets with the same costs."""
    key = keys.key([target.dataset, target.model, target.defense, target.precision, size])
    if key not in known:
        test = runner.model_store.dataset(target.dataset, "test")
        known[key] = _measure(_untrained(target, runner, test), test, size, runner)
    return known[key]


def _untrained(target: Target, runner: Runner, dataset: Dataset) -> Defended:
    """Return the defended model with fresh weights, whose passes cost the same as those of trained ones."""
    model_store = runner.model_store
    defense = model_store.defense(target)
    shape = (defense.output_channels(dataset.shape[0]), *dataset.shape[1:])
    classes = len(dataset.classes)
    model = build(target.model, models, shape=shape, classes=classes)
    model = model.to(model_store.device, memory_format=torch.channels_last)
    auxiliary = defense.auxiliary_module(dataset.shape)
    if auxiliary is not None:
        auxiliary = auxiliary.to(model_store.device)
    return Defended(model, defense, classes, auxiliary, search=target.precision)


def _measure(defended: Defended, dataset: Dataset, size: int, runner: Runner) -> Costs:
    device = runner.model_store.device
    batch = dataset.batch(slice(0, size)).to(device)
    draws = Draws(0, batch.ids, Role.SCORE)
    quick = defended.quick(device)
    defended.model.train()
    before = time.monotonic()
    with torch.no_grad():
        seen = defended.transform(batch.images, draws)
    once = time.monotonic() - before

    def transform() -> None:
        with torch.no_grad():
            defended.transform(batch.images, draws)

    optimiser = torch.optim.SGD(defended.model.parameters(), lr=0.0, momentum=0.9)

    def train() -> None:
        optimiser.zero_grad(set_to_none=True)
        _loss(quick.classify(seen)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def auxiliary() -> None:
        module = defended.auxiliary
        assert module is not None
        module.zero_grad(set_to_none=True)
        loss = defended.defense.auxiliary_loss(module, batch.images)
        loss.mean().backward()  # type: ignore[no-untyped-call]

    seconds_train = _timed(train, device)
    seconds_auxiliary = _timed(auxiliary, device) if defended.auxiliary is not None else 0.0
    defended.frozen()

    if once > _SLOW and defended.defense.backward != "exact":
        # So slow a transformation dominates all costs, and is not run again to be measured better.
        return Costs(
            forward=(once + seconds_train / 3) / size,
            gradient=(once + seconds_train) / size,
            transform=once / size,
            train=seconds_train / size,
            auxiliary=seconds_auxiliary / size,
        )

    pace = measure_pace(defended, batch, draws)
    return Costs(
        forward=pace.forward,
        gradient=pace.gradient,
        transform=_timed(transform, device) / size,
        train=seconds_train / size,
        auxiliary=seconds_auxiliary / size,
    )


def measure_pace(defended: Defended, batch: Batch, draws: Draws) -> Pace:
    """Time the passes of a batch through a defended model, on the device of its images."""
    device = batch.images.device
    quick = defended.quick(device)

    def forward() -> None:
        with torch.no_grad():
            defended.logits(batch.images, draws)

    def gradient() -> None:
        pixels = batch.images.detach().clone().requires_grad_(True)
        loss = _loss(quick.logits(pixels, draws))
        if loss.requires_grad:  # else the defense cuts the graph, and there is no backward pass
            torch.autograd.grad(loss, pixels, allow_unused=True)

    once = _timed(forward, device)
    return Pace(
        forward=once / len(batch), gradient=max(once, _timed(gradient, device)) / len(batch)
    )


def _loss(logits: Tensor) -> Tensor:
    return logits.float().logsumexp(dim=1).sum()


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the median seconds of a few repeats, without the first, which fills caches."""
    work()
    found: list[float] = []
    while sum(found) < _LEAST_SECONDS and len(found) < _MOST_REPEATS:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.monotonic() - before)
    return sorted(found)[len(found) // 2]


def _peak(runner: Runner) -> int:
    """Return the most memory that calibration held, in bytes.

    Calibration ran full batches of every model and defense, on the datasets of the run.
    """
    if runner.model_store.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runner.model_store.device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
