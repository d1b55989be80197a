"""The two adaptive attacks of the ME-Net paper."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

from harness.attacks.approximate_input import ApproximateInput
from harness.attacks.bpda import BPDA
from harness.attacks.projected_bpda import ProjectedBPDA, project_onto, structure
from harness.attacks.projected_gradient import ProjectedGradient
from harness.geometry import TOLERANCE, norms
from harness.types import HarnessError, ThreatModel

from .conftest import Noisy, Plain, attacked, draws_of, places, view_of

LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.5, norm="l2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grey(Plain):
    """Pulls every pixel towards 0.5."""

    backward: ClassVar = "identity"

    def transform(self, images, draws, auxiliary=None):
        return 0.5 + 0.4 * (images - 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubling(Plain):
    """Gives twice the channels."""

    def transform(self, images, draws, auxiliary=None):
        return torch.cat([images, images], dim=1)


def test_only_these_are_adaptive():
    assert ApproximateInput.adaptive and ProjectedBPDA.adaptive and not BPDA.adaptive


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_the_ball_is_around_the_rebuilt_image(some_digits, threat):
    model, batch = some_digits
    rebuilt = 0.5 + 0.4 * (batch.images - 0.5)
    attack = ApproximateInput(steps=5)
    found = attacked(attack, model, batch, threat, Grey())
    assert (norms(found - rebuilt, threat.norm) <= threat.epsilon + TOLERANCE).all()
    assert (norms(found - batch.images, threat.norm) > threat.epsilon + TOLERANCE).any()
    assert not attack.bounded


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_the_ball_around_the_original_can_be_asked_for(some_digits, threat):
    model, batch = some_digits
    attack = ApproximateInput(steps=5, ball="original", restarts=2)
    found = attacked(attack, model, batch, threat, Grey())
    assert (norms(found - batch.images, threat.norm) <= threat.epsilon + TOLERANCE).all()
    assert found.min() >= 0 and found.max() <= 1
    assert attack.bounded


def test_attacking_the_rebuilt_image_is_bpda_on_it(some_digits):
    model, batch = some_digits
    rebuilt = dataclasses.replace(batch, images=0.5 + 0.4 * (batch.images - 0.5))
    expected = attacked(BPDA(steps=4), model, rebuilt, LINF, Grey())
    found = attacked(ApproximateInput(steps=4), model, batch, LINF, Grey())
    torch.testing.assert_close(found, expected)


def test_the_rebuilding_draw_is_met_by_no_step(some_digits, monkeypatch):
    model, batch = some_digits
    seen = places(monkeypatch)
    view = view_of(model, batch, LINF, Noisy())
    monkeypatch.setattr(view, "_probe_pixels", lambda *_: None)
    ApproximateInput(steps=3).perturb(view, batch, LINF, draws_of(batch))
    assert [draws.step for draws in seen] == [-1, 0, 1, 2]


def test_a_defense_that_gives_no_image_is_refused(some_digits):
    model, batch = some_digits
    view = view_of(model, batch, LINF, Doubling())
    with pytest.raises(HarnessError, match=r"\(1, 8, 8\) into \(2, 8, 8\): use bpda"):
        ApproximateInput().perturb(view, batch, LINF, draws_of(batch))


def test_projection_is_the_nearest_point_of_the_span():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 6, 5, generator=generator)
    gradient = torch.randn(4, 3, 6, 5, generator=generator)
    left, right = structure(images, 2)
    once = project_onto(gradient, left, right)
    torch.testing.assert_close(project_onto(once, left, right), once)
    for number in range(4):
        matrix = torch.cat(tuple(images[number]), dim=1)  # channels side by side
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        flat = torch.cat(tuple(gradient[number]), dim=1)
        expected = u[:, :2] @ u[:, :2].T @ flat @ vt[:2].T @ vt[:2]
        found = torch.cat(tuple(once[number]), dim=1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_image_of_low_rank_is_in_its_own_span():
    column, row = torch.rand(1, 1, 6, 1), torch.rand(1, 1, 1, 6)
    image = column * row
    torch.testing.assert_close(project_onto(image, *structure(image, 1)), image)


def test_full_rank_is_bpda(some_digits):
    model, batch = some_digits
    images = (0.9 * batch.images + 0.1 * torch.eye(8)).clamp(0, 1)
    batch = dataclasses.replace(batch, images=images)
    threat = L2  # the sign of a gradient of rounding errors would differ
    plain = attacked(BPDA(steps=3), model, batch, threat)
    found = attacked(ProjectedBPDA(steps=3, rank=99), model, batch, threat)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)


def test_an_l2_step_stays_in_the_span(some_digits):
    model, batch = some_digits
    batch = dataclasses.replace(batch, images=0.3 + 0.4 * batch.images)  # away from the box
    attack = ProjectedBPDA(steps=3, rank=2, random_start=False, step_size=0.02)
    noise = attacked(attack, model, batch, ThreatModel(epsilon=0.1, norm="l2")) - batch.images
    assert (norms(noise, "l2") > 0.01).all()
    within = project_onto(noise, *structure(batch.images, 2))
    torch.testing.assert_close(within, noise, atol=1e-5, rtol=0)


def test_the_projection_follows_images_that_leave(some_digits):
    model, batch = some_digits
    attack = ProjectedBPDA(steps=8, rank=2, keep="first", random_start=False)
    whole = attacked(attack, model, batch, L2)
    alone = torch.cat([attacked(attack, model, batch[n : n + 1], L2) for n in range(10)])
    torch.testing.assert_close(whole[:10], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ApproximateInput(ball="both"), "ball is 'both': it must be one of rebuilt, orig"),
        (lambda: ProjectedBPDA(rank=0), "rank is 0"),
        (lambda: ProjectedBPDA(steps=0), "steps is 0"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(HarnessError, match=message):
        make()


def test_they_share_the_inner_loop():
    assert issubclass(ApproximateInput, ProjectedGradient)
    assert issubclass(ProjectedBPDA, ProjectedGradient)
