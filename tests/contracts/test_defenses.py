"""Every registered defense keeps the same promises."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from harness.defended import Defended
from harness.random import Draws, Role
from harness.registry import defenses
from harness.spec import build, fields, parse
from harness.types import Batch, Defense

QUICK = {"filters": 4, "layers": 1, "hidden": 8, "blocks": 1, "levels": 4}
NAMES = defenses.names()


def quick(name: str, **parameters: Any) -> Defense:
    known = fields(defenses.get(name))
    chosen = {key: value for key, value in {**QUICK, **parameters}.items() if key in known}
    defense: Defense = build(dataclasses.replace(parse(name), parameters=chosen), defenses)
    return defense


@pytest.fixture(params=NAMES)
def name(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def defended(name: str, digits_batch: Batch) -> Defended:
    defense = quick(name)
    shape = tuple(digits_batch.images.shape[1:])
    torch.manual_seed(0)
    channels = defense.output_channels(shape[0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * shape[1] * shape[2], 10))
    auxiliary = defense.auxiliary_module(shape)  # type: ignore[arg-type]
    return Defended(model, defense, 10, auxiliary).frozen()


def draws(batch: Batch, **place: int) -> Draws:
    return Draws(0, batch.ids, Role.SCORE, **place)


def test_forward_is_a_pure_function_of_images_and_draws(
    defended: Defended, digits_batch: Batch
) -> None:
    few = digits_batch[slice(0, 6)]
    before = few.images.clone()
    one = defended.transform(few.images, draws(few))
    torch.manual_seed(999)
    assert torch.equal(defended.transform(few.images, draws(few)), one)
    assert torch.equal(few.images, before), "the input was changed"
    assert torch.isfinite(one).all()
    assert one.shape[1] == defended.defense.output_channels(1)
    assert one.shape[2:] == few.images.shape[2:]


def test_a_sample_sees_the_same_in_any_batch(defended: Defended, digits_batch: Batch) -> None:
    few = digits_batch[slice(0, 6)]
    whole = defended.transform(few.images, draws(few))
    part = few[torch.tensor([4, 1])]
    alone = defended.transform(part.images, draws(part))
    torch.testing.assert_close(alone, whole[[4, 1]], atol=2e-3, rtol=0)


def test_randomness_declared_is_randomness_seen(defended: Defended, digits_batch: Batch) -> None:
    few = digits_batch[slice(0, 4)]
    one = defended.transform(few.images, draws(few))
    for other in (draws(few, step=1), draws(few, draw=1), draws(few).at(role=Role.ATTACK)):
        same = torch.equal(defended.transform(few.images, other), one)
        assert same != defended.defense.randomised


@pytest.mark.parametrize("randomness", ["fixed", "per-input"])
def test_randomness_can_be_held_still(name: str, randomness: str, digits_batch: Batch) -> None:
    defense = quick(name, randomness=randomness)
    if not defense.randomised:
        pytest.skip(f"{name} is deterministic")
    few = digits_batch[slice(0, 4)]
    steady = Defended(nn.Flatten(), defense, 10).frozen()
    one = steady.transform(few.images, draws(few))
    assert torch.equal(steady.transform(few.images, draws(few, step=3, draw=1)), one)


def test_the_declared_backward_pass_gives_a_gradient(
    defended: Defended, digits_batch: Batch
) -> None:
    few = digits_batch[slice(0, 4)]
    pixels = few.images.clone().requires_grad_(True)
    defended.logits(pixels, draws(few)).square().sum().backward()
    assert pixels.grad is not None
    assert torch.isfinite(pixels.grad).all()
    assert (pixels.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_training_versions_are_drawn_and_serve_none(
    defended: Defended, digits_batch: Batch
) -> None:
    few = digits_batch[slice(0, 3)]
    place = Draws(0, few.ids, Role.TRAIN)
    defense = defended.defense
    seen = defense.training_transform(few.images, place, defended.auxiliary)
    assert seen.shape == defended.transform(few.images, place).shape
    none = digits_batch[slice(0, 0)]
    assert len(defended.logits(none.images, draws(none))) == 0


def test_has_a_summary(name: str) -> None:
    entry = next(entry for entry in defenses if entry.name == name)
    assert 10 < len(entry.summary) < 110 and entry.summary.endswith(".")
