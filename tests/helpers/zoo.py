"""Planted pathologies and healthy plugins, loaded as a user's own files are: `zoo.py:Name`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.cells.cells import Cell, Target, TrainingPlan
from harness.datasets.data import load
from harness.evaluation.runner import Runner
from harness.geometry import project
from harness.models.lenet import small_cnn
from harness.random import Draws, OpaqueDraws, Role
from harness.registry import models
from harness.results.records import Accuracy, Record, pack
from harness.results.summaries import flagged
from harness.spec import build, parse
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.targets import training
from harness.targets.defended import Defended
from harness.targets.model_store import ModelStore
from harness.types import Access, Attack, Batch, Defense, Perturbed, Spec, ThreatModel, Victim

HERE = Path(__file__)


def named(text: str) -> str:
    """A class of this file, as the command line names it."""
    return f"{HERE}:{text}"


# --- the pipeline, without training for every case ------------------------------------------------


@functools.cache
def weights() -> dict[str, Tensor]:
    """Of a small network, trained on digits once for all tests."""
    torch.set_num_threads(1)
    data = load("digits", "train")
    batch = data.batch(slice(0, None))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn((1, 28, 28), 10)
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(6):
            for part in torch.randperm(len(batch)).split(64):
                loss = training.cross_entropy(model(batch.images[part]), batch.labels[part]).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@functools.cache
def templates() -> Tensor:
    """(10, 1, 28, 28) one training image of each class."""
    data = load("digits", "train")
    first = [int((data.labels == label).nonzero()[0]) for label in range(10)]
    return data.batch(torch.tensor(first)).images


class Ready(ModelStore):
    """A model_store whose models are there already: the trained weights behind any defense or wrapper."""

    def _make(self, target: Target, key: str) -> Defended:
        model = build(target.model, models, shape=(1, 28, 28), classes=10)
        getattr(model, "inner", model).load_state_dict(weights())
        return Defended(model, self.defense(target), 10).frozen()


def measured(
    folder: Path,
    defense: str,
    attacks: list[str],
    *,
    model: str = "small-cnn",
    epsilon: float = 0.3,
    epsilons: list[float] | None = None,
    limit: int = 120,
    draws: int = 10,
) -> list[Record]:
    """A record for each attack on one planted target, with all flags that they raise together."""
    model_store = Ready(
        store=Store(folder), device=torch.device("cpu"), reporter=Silent(), stop=training.Stop()
    )
    target = Target(
        dataset="digits",
        model=parse(model),
        defense=parse(defense),
        training=TrainingPlan(epochs=1),
    )
    cells = [
        Cell(
            target=target,
            attack=parse(attack),
            threat=ThreatModel(epsilon=radius),
            draws=draws,
            limit=limit,
        )
        for attack, radius in zip(attacks, epsilons or [epsilon] * len(attacks), strict=True)
    ]
    results = flagged(Runner(model_store=model_store).run(cells))
    for result in results:
        assert isinstance(result, Record), result.reason
    return results


def doubts(record: Record) -> set[str]:
    """The flags of a record but for the one that says that few images were used."""
    return set(record.flags) - {"scaled-down"}


BALL = ThreatModel(epsilon=8 / 255)


def record(
    rows: list[list[bool]],
    attack: str = "pgd",
    *,
    seed: int = 0,
    votes: list[bool] | None = None,
    threat: ThreatModel = BALL,
    **changes: object,
) -> Record:
    """A record with these outcomes, by draw and image."""
    from tests.helpers.fabricated import resolved  # not known where this file is a user's plugin

    count, draws = len(rows[0]), len(rows)
    mean = sum(map(sum, rows)) / (count * draws)
    votes = [2 * sum(c) > draws for c in zip(*rows, strict=True)] if votes is None else votes
    robust = Accuracy(
        one_draw=sum(rows[0]) / count,
        mean=mean,
        vote=sum(votes) / count,
        all_draws=sum(map(all, zip(*rows, strict=True))) / count,
        count=count,
    )
    clean = Accuracy(one_draw=1.0, mean=1.0, vote=1.0, all_draws=1.0, count=count)
    target = Target(
        dataset="digits",
        model=Spec("small-cnn"),
        defense=Spec("vanilla"),
        training=TrainingPlan(epochs=1),
        seed=seed,
    )
    fields: dict[str, object] = {
        "key": f"{attack}-{threat.epsilon:.3f}-{seed}",
        "cell": Cell(target=target, attack=Spec(attack), threat=threat),
        "resolved": resolved(target, threat, attack=attack, steps=40, draws=draws, limit=count),
        "classes": 10,
        "count": count,
        "ids": "same",
        "clean": clean,
        "robust": robust,
        "returned": robust,
        "clean_outcomes": tuple(pack([True] * count) for _ in rows),
        "robust_outcomes": tuple(map(pack, rows)),
        "robust_votes": pack(votes),
        "fooled_on_the_way": 0.0,
        "fooled_outcomes": pack([False] * count),
        "randomised": draws > 1,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


# --- defenses -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounded(Defense):
    """Zero gradients: rounding, said to be differentiable."""

    levels: int = 6

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return torch.round(images * self.levels) / self.levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Straight(Rounded):
    """Healthy: the same rounding that declares the identity as its backward pass."""

    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "identity"
    differentiable: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised(Defense):
    """Quantised input: floor, whose derivative automatic differentiation calls zero."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return torch.floor(images * 3.999) / 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shattered(Defense):
    """A ripple too small to see whose slope drowns that of the image."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return images + 0.01 * torch.sin(images * 2e5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanDetector(Defense):
    """Knows an unattacked image by its 8-bit pixels; all others it shows upside down."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        grid = images.detach() * 255
        clean = ((grid - grid.round()).abs() < 1e-3).flatten(1).all(dim=1)
        return torch.where(clean[:, None, None, None], images.detach(), images.detach().flip(2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noisy(Defense):
    """Normal noise on the image. Healthy where it is small."""

    randomised: ClassVar[bool] = True
    sigma: float = 0.1

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return images + self.sigma * draws.normal(*images.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flicker(Defense):
    """Most draws show some other digit: one draw is wrong half of the time, the vote is not."""

    randomised: ClassVar[bool] = True
    share: float = 0.53

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        hidden = draws.bernoulli(self.share, 1, 1, 1, lane="flicker")
        other = templates()[draws.integers(10, lane="other")]
        return torch.where(hidden, other, images)


# --- models ---------------------------------------------------------------------------------------


class _Wrapped(nn.Module):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.inner = small_cnn(shape, classes)


class Saturated(_Wrapped):
    """Logits so large that the softmax is exactly one and its gradient exactly zero."""

    def forward(self, images: Tensor) -> Tensor:
        return 1e4 * self.inner(images)


class Restless(_Wrapped):
    """Goes back to training mode at every look."""

    def forward(self, images: Tensor) -> Tensor:
        self.train()
        return self.inner(images)


class Undecided(_Wrapped):
    """Random noise on its logits that nothing declares."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        return logits + 12 * torch.randn_like(logits)


# --- attacks --------------------------------------------------------------------------------------


def _loss(labels: Tensor, sign: float = 1.0):
    return lambda logits: sign * nn.functional.cross_entropy(logits, labels, reduction="none")


def _climb(
    victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws, steps: int, sign: float = 1.0
) -> Tensor:
    x = batch.images
    for number in range(steps):
        slope = victim.gradient(x, draws.at(step=number), _loss(batch.labels, sign)).value
        x = project(x + slope.sign() * (2.5 * threat.epsilon / steps), batch.images, threat)
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnsInput(Attack):
    """Finds adversarial examples, and returns what it was given."""

    steps: int = 10

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        _climb(victim, batch, threat, draws, self.steps)
        return Perturbed(batch.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overreaches(Attack):
    """Leaves the ball by 1/255."""

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        wider = dataclasses.replace(threat, epsilon=threat.epsilon + 1 / 255)
        return Perturbed(_climb(victim, batch, wider, draws, 10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distant(Attack):
    """Has no ball: turns every image into its negative."""

    bounded: ClassVar[bool] = False

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        victim.labels(batch.images, draws)
        return Perturbed(1 - batch.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnsNothing(Attack):
    """Returns one image that is not finite."""

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        images = batch.images.clone()
        images[0, 0, 0, 0] = float("nan")
        return Perturbed(images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditsWeights(Attack):
    """Ruins the model instead of the images, by the victim's private parts."""

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        with torch.no_grad():
            for parameter in victim._defended.model.parameters():  # type: ignore[attr-defined]
                parameter.zero_()
        return Perturbed(batch.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepsLuckyDraws(Attack):
    """Asks until the noise gives a wrong answer, and calls that an adversarial example."""

    access: ClassVar[Access] = "labels"
    steps: int = 10

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        result = batch.images.clone()
        for number in range(self.steps):
            place = draws.at(role=Role.START, step=number)
            near = batch.images + 0.01 * (place.uniform(*batch.images.shape[1:]) - 0.5)
            near = project(near, batch.images, threat)
            wrong = victim.labels(near, draws.at(step=number)) != batch.labels
            result[wrong] = near[wrong]
        return Perturbed(result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downhill(Attack):
    """Many steps, all in the wrong direction."""

    steps: int = 20

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        return Perturbed(_climb(victim, batch, threat, draws, self.steps, sign=-1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LosesItsWay(Attack):
    """Does well in a small ball and nothing in a large one."""

    steps: int = 20

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        sign = 1.0 if threat.epsilon < 0.25 else -1.0
        return Perturbed(_climb(victim, batch, threat, draws, self.steps, sign))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misadapted(Attack):
    """Made against the defense, and worse than what was not: it moves the top rows alone."""

    adaptive: ClassVar[bool] = True
    steps: int = 40

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        x = _climb(victim, batch, threat, draws, self.steps)
        return Perturbed(torch.cat((x[:, :, :4], batch.images[:, :, 4:]), dim=2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Creeps(Attack):
    """Stops early: small steps that had not got far when they ended."""

    steps: int = 10

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        far = _climb(victim, batch, threat, draws, self.steps)
        half = project(batch.images + 0.25 * (far - batch.images), batch.images, threat)
        last = project(batch.images + 0.5 * (far - batch.images), batch.images, threat)
        return Perturbed(last, {self.steps // 2: half})


@dataclasses.dataclass(frozen=True, kw_only=True)
class WalksOn(Attack):
    """Finds the answer half-way, keeps a snapshot of it, and returns to where it began."""

    steps: int = 10

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        x = _climb(victim, batch, threat, draws, self.steps)
        return Perturbed(batch.images, {self.steps // 2: x})
