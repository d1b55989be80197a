"""What a run is estimated to cost: passes times the seconds of one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from harness.evaluation.calibrate import Pace, measure_pace
from harness.random import Draws, Role
from harness.registry import attacks
from harness.spec import build, parse
from harness.targets.defended import Defended
from harness.types import Batch, Defense


@pytest.mark.parametrize(
    ("attack", "seconds"),
    [("pgd(steps=40,keep=last)", 40 * 3.0), ("square(queries=500)", 500 * 2.0)],
)
def test_an_attack_costs_its_passes_of_the_kind_that_it_makes(attack: str, seconds: float) -> None:
    pace = Pace(forward=2.0, gradient=3.0)
    spent, known = pace.attack(build(parse(attack), attacks))
    assert known and spent == pytest.approx(seconds, rel=0.02)


def test_an_attack_that_does_not_say_its_passes_is_counted_and_told() -> None:
    made = build(parse("foolbox:LinfPGD"), attacks)
    assert made.passes is None
    assert Pace(forward=2.0, gradient=3.0).attack(made) == (3000.0, False)


def test_the_judge_looks_twice_at_an_image_for_each_draw() -> None:
    assert Pace(forward=2.0, gradient=3.0).scoring(10) == 40.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut(Defense):
    """A defense whose output has no gradient."""

    def transform(self, images, draws, auxiliary=None):  # type: ignore[no-untyped-def]
        return images.detach().round()


def test_a_defense_that_cuts_the_graph_has_a_pace(digits_batch: Batch) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 10))
    defended = Defended(model, Cut(), 10).frozen()
    draws = Draws(0, digits_batch.ids, Role.SCORE)
    pace = measure_pace(defended, digits_batch, draws)
    assert 0 < pace.forward <= pace.gradient
