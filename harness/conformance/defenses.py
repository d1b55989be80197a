"""Check the promises that every defense makes, with a reason for each failure."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from harness.conformance.attacks import (
    other_random_state,
    require,
    require_steady,
    untouched_random_state,
)
from harness.random import Draws, Role
from harness.targets.defended import Defended
from harness.types import Backward, Batch, Defense, Randomness

BATCH_TOLERANCE = 2e-3
"""The most that a sample may differ between batches: solvers stop by the batch's slowest matrix."""
TIES = 0.01
"""The share of a sample's values that may differ more: where two choices are equal but for rounding."""
EXACT_AGREEMENT = 0.9
"""The least agreement of an exact gradient with finite differences; tolerances and kinks cost some."""
DIFFERENTIABLE_AGREEMENT = 0.5
"""The least agreement of a transformation's own gradient where another is declared."""
_DIRECTIONS = 24

DefenseCheck = Callable[[Defense, Batch], None]


def behind(defense: Defense, batch: Batch) -> Defended:
    """Return the defense in front of a linear classifier of ten classes."""
    channels, height, width = batch.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = defense.output_channels(channels) * height * width
        model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10))
        auxiliary = defense.auxiliary_module((channels, height, width))
    return Defended(model, defense, 10, auxiliary).frozen()


def draws(batch: Batch, role: Role = Role.SCORE, **place: int) -> Draws:
    """Return the draws of a batch at one place of a run."""
    return Draws(0, batch.ids, role, **place)


def pure(defense: Defense, batch: Batch) -> None:
    """Check that the forward pass is a function of images and draws, finite, with the channels declared."""
    defended, few = behind(defense, batch), batch[slice(0, 6)]
    before = few.images.clone()
    with untouched_random_state():
        one = defended.transform(few.images, draws(few))
    with other_random_state():
        two = defended.transform(few.images, draws(few))
    require(bool(torch.isfinite(one).all()), "gives values that are not finite")
    require(torch.equal(few.images, before), "the input was changed in place: clone() first")
    require(torch.equal(one, two), "two calls with the same draws differ: draw from `draws` alone")
    channels = defense.output_channels(few.images.shape[1])
    require(one.shape[1] == channels, f"gives {one.shape[1]} channels, declares {channels}")
    require(one.shape[2:] == few.images.shape[2:], f"changes the size to {tuple(one.shape[2:])}")
    require(
        len(defended.logits(few.images[:0], draws(few[slice(0, 0)]))) == 0, "fails on no images"
    )


def same_in_any_batch(defense: Defense, batch: Batch) -> None:
    """Check that a sample is transformed in the same way whatever else is in its batch."""
    defended, few = behind(defense, batch), batch[slice(0, 6)]
    whole = defended.transform(few.images, draws(few))
    part = few[torch.tensor([4, 1])]
    alone = defended.transform(part.images, draws(part))
    company = few.images.clone()
    company[1:] = 1.0  # a mean or a maximum over the batch would show
    beside = defended.transform(company, draws(few))[0]
    changes = (alone[0] - whole[4], alone[1] - whole[1], beside - whole[0])
    moved = max(float((change.abs() > BATCH_TOLERANCE).float().mean()) for change in changes)
    require(
        moved <= TIES,
        f"{moved:.0%} of a sample's values change with the rest of its batch: reduce over samples nowhere",
    )


def randomness_as_declared(defense: Defense, batch: Batch) -> None:
    """Check that other draws change the result if `is_random` says so, and that randomness can be fixed."""
    defended, few = behind(defense, batch), batch[slice(0, 4)]
    one = defended.transform(few.images, draws(few))
    for other in (draws(few, step=1), draws(few, draw=1), draws(few, Role.ATTACK)):
        same = torch.equal(defended.transform(few.images, other), one)
        seen = "gives the same" if same else "gives another result"
        require(
            same != defense.is_random,
            f"declares is_random = {defense.is_random}, but {seen} under other draws",
        )
    for kind in cast(tuple[Randomness, ...], ("fixed", "per-input")):
        held = behind(dataclasses.replace(defense, randomness=kind), batch)
        same = torch.equal(
            held.transform(few.images, draws(few)),
            held.transform(few.images, draws(few, step=3, draw=1)),
        )
        require(same, f"randomness={kind} does not hold it still: draw from `draws` alone")


def gradient_where_declared(defense: Defense, batch: Batch) -> None:
    """Check that the declared backward pass gives every image a finite gradient that is not zero."""
    defended, few = behind(defense, batch), batch[slice(0, 4)]
    pixels = few.images.clone().requires_grad_(True)
    defended.logits(pixels, draws(few)).square().sum().backward()  # type: ignore[no-untyped-call]
    require(pixels.grad is not None, "the declared backward pass gives no gradient")
    slope = cast(Tensor, pixels.grad)
    require(bool(torch.isfinite(slope).all()), "the gradient has values that are not finite")
    dead = int((slope.flatten(1).abs().sum(dim=1) == 0).sum())
    require(dead == 0, f"the gradient is zero for {dead} of {len(few)} images")


def backward_against_differences(defense: Defense, batch: Batch) -> None:
    """Check that the declared backward pass agrees with finite differences, closely where it is exact."""
    found = agreement(defense, batch)
    if defense.backward == "exact":
        require(
            found > EXACT_AGREEMENT,
            f"declares an exact backward pass, but it agrees with finite differences only to "
            f"{found:.2f} (1 is full agreement): declare `identity` or `surrogate`",
        )
    else:
        require(
            found > 0,
            f"the declared {defense.backward} goes against finite differences ({found:.2f}): an attack "
            "through it climbs the wrong way",
        )
        if defense.differentiable:
            own = agreement(defense, batch, backward="exact")
            require(
                own > DIFFERENTIABLE_AGREEMENT,
                f"declares differentiable = True, but its own gradient agrees with finite differences "
                f"only to {own:.2f} (1 is full agreement): set it to False",
            )


def agreement(defense: Defense, batch: Batch, *, backward: Backward = "declared") -> float:
    """Return the agreement of a backward pass with central differences of the forward pass, 1 at best.

    It is the share of variance that an exact pass explains, and the correlation for a stand-in, whose scale
    means nothing. For 24 pairs of a smooth direction d and a read-out u, <u, J d> is compared with
    <u, f(x + h d) - f(x - h d)> / 2h. The step h is small for an exact pass, and the size of an attack's
    for a stand-in.
    """
    kind = defense.backward if backward == "declared" else backward
    step = 5e-3 if kind == "exact" else 0.1
    few = batch[slice(0, 4)]
    shown = dataclasses.replace(behind(defense, batch), model=nn.Identity())
    inside = few.images * (1 - 2 * step) + step  # room for the step on both sides
    generator = torch.Generator().manual_seed(0)
    directions = [_smooth(inside, generator) for _ in range(_DIRECTIONS)]

    # One call for all: a sample's draws belong to its id, however often it occurs in the batch.
    moved = [inside + sign * step * d for sign in (1, -1) for d in directions]
    place = draws(dataclasses.replace(few, ids=few.ids.repeat(len(moved))))
    ahead, back = shown.transform(torch.cat(moved), place).chunk(2)

    pixels = inside.clone().requires_grad_(True)
    passed = shown.logits(pixels, draws(few), backward=backward)
    told, seen = [], []
    for d, change in zip(directions, torch.split(ahead - back, len(few)), strict=True):
        readout = torch.randn(passed.shape[1], 1, 1, generator=generator)
        u = nn.functional.interpolate(_tiled(d, passed.shape[1]) * readout, passed.shape[2:])
        (slope,) = torch.autograd.grad((passed * u).sum(), pixels, retain_graph=True)
        told.append((slope * d).flatten(1).sum(dim=1))
        seen.append((change * u).flatten(1).sum(dim=1) / (2 * step))
    predicted, found = torch.cat(told).detach().double(), torch.cat(seen).detach().double()
    if float(predicted.std()) == 0 or float(found.std()) == 0:
        return 0.0
    if kind == "exact":  # the size counts, too
        return 1.0 - float((predicted - found).square().sum() / found.square().sum())
    return float(torch.corrcoef(torch.stack([predicted, found]))[0, 1])


def _smooth(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return random directions with entries in [-1, 1] that change slowly over the image."""
    count, channels, height, width = images.shape
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return fine / fine.abs().amax(dim=(1, 2, 3), keepdim=True)


def _tiled(direction: Tensor, channels: int) -> Tensor:
    repeats = -(-channels // direction.shape[1])
    return direction.repeat_interleave(repeats, dim=1)[:, :channels]


def trains(defense: Defense, batch: Batch) -> None:
    """Check that training versions have the shape of the classifier's input."""
    defended, few = behind(defense, batch), batch[slice(0, 3)]
    place = draws(few, Role.TRAIN)
    wanted = defended.transform(few.images, place).shape
    versions = (None, *range(min(defense.estimates, 2)))
    for version in versions:
        found = defended.training_transform(few.images, place, version=version)
        require(
            found.shape == wanted,
            f"training versions are {tuple(found.shape)}, not {tuple(wanted)}",
        )


def transform_holds_no_memory(defense: Defense, batch: Batch) -> None:
    """Check that neither live tensors grow in number from batch to batch, nor any field changes."""
    defended, few = behind(defense, batch), batch[slice(0, 2)]
    before = copy.deepcopy(vars(defense))
    require_steady(lambda: defended.transform(few.images, draws(few)))
    require(vars(defense) == before, "a call changed its fields: a defense holds only parameters")


DOUBTS: dict[str, Literal["inconsistent-defense", "masked-gradients"]] = {
    "pure": "inconsistent-defense",
    "same in any batch": "inconsistent-defense",
    "randomness as declared": "inconsistent-defense",
    "holds no memory": "inconsistent-defense",
    "gradient where declared": "masked-gradients",
    "backward against differences": "masked-gradients",
}
"""The flag that a broken promise raises in an audit, by check."""

DEFENSE_CHECKS: dict[str, DefenseCheck] = {
    "pure": pure,
    "same in any batch": same_in_any_batch,
    "randomness as declared": randomness_as_declared,
    "gradient where declared": gradient_where_declared,
    "backward against differences": backward_against_differences,
    "training versions": trains,
    "holds no memory": transform_holds_no_memory,
}
