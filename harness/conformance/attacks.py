"""Check the promises that every attack makes, with a reason for each failure.

`harness check FILE` runs these checks on a user's plugin; `tests/contracts` runs them on every registered
plugin. A check is a function that raises `Broken` and changes nothing.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import numpy
import torch
from torch import Tensor, nn

from harness.evaluation.judge import OUTSIDE_BALL, check_images
from harness.random import Draws, OpaqueDraws, Role
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Attack, Batch, Defense, HarnessError, Norm, Perturbed, ThreatModel, Victim

RADII: dict[Norm, float] = {"linf": 0.1, "l2": 1.0}
SHAPE = (1, 12, 12)
CLASSES = 4


class Broken(AssertionError):
    """Raised where a promise is not kept, with a hint on how to keep it."""


AttackCheck = Callable[[Attack, Defended, Batch], None]


def require(kept: bool, reason: str) -> None:
    """Raise Broken with the reason where a promise is not kept."""
    if not kept:
        raise Broken(reason)


# --- victims --------------------------------------------------------------------------------------


class _Plain(Defense):
    def transform(self, images: Tensor, draws: OpaqueDraws, auxiliary: Any = None) -> Tensor:
        return images


class _Masked(Defense):
    randomised: ClassVar[bool] = True

    def transform(self, images: Tensor, draws: OpaqueDraws, auxiliary: Any = None) -> Tensor:
        return images * draws.bernoulli(0.8, *images.shape[1:])


def victim(*, randomised: bool, shape: tuple[int, int, int] = SHAPE) -> Defended:
    """Build a small untrained classifier with normalisation layers, plain or behind random masks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(CLASSES),
        )
        model(torch.rand(64, *shape))  # gives the normalisation its statistics
    return Defended(model, _Masked() if randomised else _Plain(), CLASSES).frozen()


def some_images(defended: Defended, count: int = 6) -> Batch:
    """Return images with the labels that the undefended model gives them."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5))
    labels = defended.model(images).argmax(dim=1)
    return Batch(images, labels, torch.arange(count) + 40)


def perturb(attack: Attack, defended: Defended, batch: Batch, norm: Norm) -> Perturbed:
    """Run an attack on a batch, seen through the harness's view."""
    threat = ThreatModel(epsilon=RADII[norm], norm=norm)
    view = View(defended, batch, threat, attack.access)
    attack.check(view, threat)
    return attack.perturb(view, batch, threat, Draws(0, batch.ids, Role.ATTACK))


# --- attacks --------------------------------------------------------------------------------------


def ball_box_and_purity(attack: Attack, defended: Defended, batch: Batch) -> None:
    """Check that images are valid and that the attack changes nothing but them.

    Every image and snapshot must be finite, in the box and (for a bounded attack) in the ball. Weights,
    buffers, modes, gradients, the input and the global random state must stay as they were.
    """
    given = batch.images.clone()
    for norm in attack.norms:
        before = _state(defended)
        with untouched_random_state():
            found = perturb(attack, defended, batch, norm)
        after = _state(defended)
        for name, value in before[0].items():
            require(torch.equal(value, after[0][name]), f"{name} of the victim was changed")
        require(before[1:] == after[1:], "mode, requires_grad or gradients of the victim changed")
        require(torch.equal(given, batch.images), "the input was changed in place: clone() first")
        _require_valid(attack, found, batch, norm)


def _require_valid(attack: Attack, found: Perturbed, batch: Batch, norm: Norm) -> None:
    require(
        found.images.shape == batch.images.shape,
        f"returned shape {tuple(found.images.shape)} for {tuple(batch.images.shape)}",
    )
    require(not found.images.requires_grad, "returned images hang on a graph: detach() them")
    threat = ThreatModel(epsilon=RADII[norm], norm=norm)
    for where, images in {"the images": found.images, **_named(found.snapshots)}.items():
        codes = check_images(images.float(), batch.images, threat)
        if not attack.bounded:
            codes = codes & ~OUTSIDE_BALL
        wrong = int((codes != 0).sum())
        require(
            wrong == 0,
            f"{where}: {wrong} of {len(batch)} leave ball or box ({norm}, epsilon "
            f"{threat.epsilon}) or are not finite: harness.geometry.project keeps them in",
        )


def _named(snapshots: Any) -> dict[str, Tensor]:
    return {f"the snapshot of step {step}": images for step, images in snapshots.items()}


def _state(defended: Defended) -> list[Any]:
    model = defended.model
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
    ]


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Raise Broken if Python's, numpy's or torch's global random numbers are drawn from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        before = _random_state()
        yield
        for (library, old), new in zip(before.items(), _random_state().values(), strict=True):
            require(
                old == new,
                f"the global random state of {library} was drawn from: use the draws that are handed in",
            )


def _random_state() -> dict[str, Any]:
    keys = numpy.random.get_state(legacy=True)
    numbers = (keys[0], keys[1].tobytes(), *keys[2:])  # type: ignore[index]
    return {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": numbers,
    }


def deterministic(attack: Attack, defended: Defended, batch: Batch) -> None:
    """Check that the same seed gives the same images, whatever the global random state."""
    norm = attack.norms[0]
    one = perturb(attack, defended, batch, norm).images
    with other_random_state():
        two = perturb(attack, defended, batch, norm).images
    require(torch.equal(one, two), "two runs with one seed differ: draw from `draws` alone")


@contextmanager
def other_random_state() -> Iterator[None]:
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        random.seed(999)
        numpy.random.seed(999)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


def serves_one_and_none(attack: Attack, defended: Defended, batch: Batch) -> None:
    """Check that batches of one image and of none come back with their shapes."""
    for count in (0, 1):
        few = batch[slice(0, count)]
        found = perturb(attack, defended, few, attack.norms[0])
        require(found.images.shape == few.images.shape, f"fails on a batch of {count} images")


def batch_independent(attack: Attack, defended: Defended, batch: Batch) -> None:
    """Check that a sample's image does not depend on the rest of its batch, nor on its place in it."""
    norm = attack.norms[0]
    whole = perturb(attack, defended, batch, norm).images
    chosen = torch.tensor([4, 1])
    part = perturb(attack, defended, batch[chosen], norm).images
    # Convolutions sum in another order for another batch size; a sign step makes that a whole step.
    same = (part - whole[chosen]).abs().flatten(1).gt(1e-4).float().mean(dim=1)
    require(
        float(same.max()) < 0.02,
        f"a sample's image changes with the rest of its batch ({float(same.max()):.0%} of its pixels): "
        "draw from `draws` (one row for each sample) and reduce over samples nowhere",
    )


def holds_no_memory(attack: Attack, defended: Defended, batch: Batch) -> None:
    """Check that the number of live tensors does not grow from one batch to the next."""
    norm = attack.norms[0]
    require_steady(lambda: perturb(attack, defended, batch, norm))


def require_steady(work: Callable[[], object]) -> None:
    """Check that four calls leave no more tensors behind, after two calls to warm up."""
    for _ in range(2):
        work()
    before = _live_tensors()
    for _ in range(4):
        work()
    grown = _live_tensors() - before
    require(grown < 4, f"{grown} tensors stay in memory after four more calls: keep no state")


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def respects_its_access(attack: Attack, defended: Defended, batch: Batch) -> None:
    """Check that an attack declares the access that it needs, and refuses a norm that it does not support."""
    threat = ThreatModel(epsilon=RADII[attack.norms[0]], norm=attack.norms[0])
    view = View(defended, batch, threat, attack.access)
    attack.perturb(view, batch, threat, Draws(0, batch.ids, Role.ATTACK))
    spent = view.evidence
    if attack.access != "gradients":
        require(int(spent.backwards.sum()) == 0, f"access {attack.access}, but it took gradients")
    for norm in cast(tuple[Norm, ...], tuple(RADII)):
        if norm not in attack.norms:
            other = ThreatModel(epsilon=RADII[norm], norm=norm)
            refused = _refuses(attack, view, other)
            require(refused, f"it serves {attack.norms}, but check() lets {norm} through")


def _refuses(attack: Attack, view: Victim, threat: ThreatModel) -> bool:
    try:
        attack.check(view, threat)
    except HarnessError:
        return True
    return False


def described(plugin: Attack | Defense) -> None:
    """Check that a plugin's docstring begins with one sentence and that its parameters cannot be changed."""
    summary = (type(plugin).__doc__ or "").strip().split("\n")[0]
    require(
        10 < len(summary) < 110 and summary.endswith("."),
        "the first line of its docstring must be one sentence of at most 109 letters: `harness list` "
        "shows it",
    )
    try:
        plugin.__setattr__("some_field_of_its_own", 1)
    except (AttributeError, TypeError):
        return
    raise Broken("it can be changed: @dataclasses.dataclass(frozen=True, kw_only=True)")


ATTACK_CHECKS: dict[str, AttackCheck] = {
    "ball, box and purity": ball_box_and_purity,
    "deterministic": deterministic,
    "one image and none": serves_one_and_none,
    "batch independent": batch_independent,
    "holds no memory": holds_no_memory,
    "declared access": respects_its_access,
}
