from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.geometry import norms, project, random_start, step
from harness.random import Draws, Role
from harness.types import HarnessError, ThreatModel

THREATS = [ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.7, norm="l2")]


def images(seed: int, count: int = 5) -> torch.Tensor:
    return torch.rand(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(THREATS), st.floats(0.01, 5))
def test_projection_lands_in_ball_and_box_and_is_idempotent(
    seed: int, threat: ThreatModel, size: float
) -> None:
    centre = images(seed)
    wild = centre + size * (images(seed + 1) - 0.5)
    inside = project(wild, centre, threat)
    assert float(inside.min()) >= 0 and float(inside.max()) <= 1
    assert float(norms(inside - centre, threat.norm).max()) <= threat.epsilon + 1e-6
    torch.testing.assert_close(project(inside, centre, threat), inside)


def test_projection_leaves_what_is_inside() -> None:
    centre = images(0) * 0.5 + 0.25
    near = centre + 0.01
    for threat in THREATS:
        torch.testing.assert_close(project(near, centre, threat), near)


@pytest.mark.parametrize("threat", THREATS)
def test_a_random_start_fills_the_ball(threat: ThreatModel) -> None:
    centre = torch.full((4000, 1, 1, 2), 0.5)
    small = ThreatModel(epsilon=0.2, norm=threat.norm)
    draws = Draws(0, torch.arange(4000), Role.ATTACK)
    distance = norms(random_start(centre, small, draws) - centre, threat.norm) / 0.2
    assert float(distance.max()) <= 1 + 1e-6
    # In two dimensions half of the ball lies within 1 / sqrt(2) of the centre, in either norm.
    inner = float((distance < 0.5**0.5).float().mean())
    assert abs(inner - 0.5) < 0.04


def test_steps_have_their_length() -> None:
    slope = images(3) - 0.5
    assert norms(step(slope, 0.03, THREATS[0]), "linf").tolist() == pytest.approx([0.03] * 5)
    assert norms(step(slope, 0.03, THREATS[1]), "l2").tolist() == pytest.approx([0.03] * 5)
    assert float(step(torch.zeros_like(slope), 0.03, THREATS[1]).abs().sum()) == 0


@pytest.mark.parametrize(
    "wrong", [{"epsilon": -1.0}, {"epsilon": float("nan")}, {"epsilon": 0.1, "norm": "l1"}]
)
def test_threat_models_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(HarnessError):
        ThreatModel(**wrong)
