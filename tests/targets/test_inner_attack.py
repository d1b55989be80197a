"""Adversarial training of a randomised defense: what its inner attack attacks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.cells import defaults
from harness.cells.cells import TrainingPlan
from harness.defenses.menet import USVTMENet
from harness.random import Draws, OpaqueDraws, Role
from harness.spec import parse
from harness.targets.defended import Defended
from harness.targets.model_store import classifier_loss
from harness.types import Dataset

COUNT, STEPS, GRID = 12, 3, [0.22, 0.24, 0.26, 0.28, 0.3, 0.32, 0.34, 0.36, 0.38, 0.4]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(USVTMENet):
    """ME-Net that notes the keep probabilities and masks of every look."""

    seen: ClassVar[list[list[float]]] = []

    def _rebuild(self, images: Tensor, draws: OpaqueDraws, probability: float | Tensor) -> Tensor:
        levels = torch.as_tensor(probability, dtype=torch.float64).expand(len(images))
        self.seen.append([round(float(level), 4) for level in levels])
        return super()._rebuild(images, draws, probability)


def looks(step: int = 0, *, level: str = "drawn", **plan: object) -> list[list[float]]:
    """Return the keep probability of each image in each look of one training step, the outer one last."""
    defense = Watched(p_low=0.2, p_high=0.4, estimates=0, level=level)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images = torch.rand(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Dataset(
        name="made",
        split="train",
        images=images,
        labels=torch.arange(COUNT) % 10,
        ids=torch.arange(COUNT) + 100,
        classes=tuple("0123456789"),
        digest="made",
    )
    chosen = TrainingPlan(
        **{  # type: ignore[arg-type]
            **dataclasses.asdict(defaults.plan("digits", "adversarial", {})),
            "inner": parse(f"pgd(steps={STEPS},step_size=0.1,keep=last,backward=declared)"),
            **plan,
        }
    )
    Watched.seen.clear()
    loss = classifier_loss(Defended(model, defense, 10), chosen, data, None)
    loss(model, data.batch(torch.arange(COUNT)), Draws(0, data.ids, Role.TRAIN, step))
    return [list(look) for look in Watched.seen]


def test_the_inner_attack_meets_the_keep_probability_of_its_training_step() -> None:
    found = looks()
    assert len(found) == STEPS + 1 and all(look == found[-1] for look in found)
    assert set(found[-1]) <= set(GRID) and len(set(found[-1])) > 2
    assert looks(step=1)[-1] != found[-1]


def test_at_inference_it_meets_the_mean() -> None:
    *inner, outer = looks(inner_transform="inference")
    assert inner == [[0.31] * COUNT] * STEPS
    assert len(set(outer)) > 2


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_the_released_code_trains_at_the_upper_end_alone(kind: str) -> None:
    *inner, outer = looks(level="highest", inner_transform=kind)
    assert outer == [0.4] * COUNT
    assert inner == [[0.4 if kind == "training" else 0.31] * COUNT] * STEPS


def test_a_part_of_the_batch_has_the_levels_of_the_whole() -> None:
    """The level belongs to the image, so an attack that asks about some images alone meets the same."""
    defense = Watched(p_low=0.2, p_high=0.4, estimates=0)
    defended = Defended(nn.Flatten(), defense, 64)
    images, ids = torch.rand(COUNT, 1, 8, 8), torch.arange(COUNT) + 100
    outer, inner = Draws(0, ids, Role.TRAIN, 5), Draws(1, ids, Role.TRAIN_ATTACK)
    whole = defended.in_training(outer).transform(images, inner)
    part = torch.tensor([7, 2])
    some = defended.in_training(outer).transform(images[part], inner[part])
    assert torch.equal(some, whole[part])


def test_defaults_take_the_released_codes_inner_attack() -> None:
    for dataset in ("digits", "mnist", "cifar10", "svhn", "of-ones-own"):
        assert defaults.plan(dataset, "adversarial", {}).inner_transform == "training"
