"""`cw-l2`, `boundary` and `hopskipjump`: closed-form optima, budgets, and how near they come."""

from __future__ import annotations

import pytest
import torch

from harness.attacks.libraries.foolbox.minimum_norm import Boundary, CarliniWagnerL2, HopSkipJump
from harness.registry import attacks
from harness.types import HarnessError, ThreatModel

from .conftest import Noisy, attacked, draws_of, view_of

pytest.importorskip("foolbox")
L2 = ThreatModel(epsilon=0.5, norm="l2")


def distance(images, batch):
    return (images - batch.images).flatten(1).norm(dim=1)


@pytest.fixture
def away_from_the_box(linear, linear_batch):
    """Images whose nearest adversarial lies inside the box, rightly classified."""
    images = 0.5 + (linear_batch.images - 0.5) * 0.2
    labels = linear(images).argmax(dim=1)
    return linear, type(linear_batch)(images, labels, linear_batch.ids)


def optimum(linear, batch):
    weight = linear[1].weight[1] - linear[1].weight[0]
    margin = (linear(batch.images)[:, 1] - linear(batch.images)[:, 0]).abs()
    return margin / weight.norm()


def test_cw_finds_the_nearest_point_of_a_linear_model(away_from_the_box):
    linear, batch = away_from_the_box[0], away_from_the_box[1][:8]
    attack = CarliniWagnerL2(steps=150)
    view = view_of(linear, batch, L2, classes=2)
    images = attack.perturb(view, batch, L2, draws_of(batch)).images
    assert (linear(images).argmax(1) != batch.labels).all()
    torch.testing.assert_close(
        distance(images, batch), optimum(linear, batch), rtol=0.05, atol=0.01
    )


@pytest.mark.parametrize(
    ("attack", "factor"), [(Boundary(steps=1000), 1.5), (HopSkipJump(steps=8), 1.2)]
)
def test_decisions_alone_come_near_it(away_from_the_box, attack, factor):
    linear, batch = away_from_the_box[0], away_from_the_box[1][:8]
    view = view_of(linear, batch, L2, classes=2, access="labels")
    images = attack.perturb(view, batch, L2, draws_of(batch)).images
    assert (linear(images).argmax(1) != batch.labels).all()
    ratio = distance(images, batch) / optimum(linear, batch)
    assert 0.99 < ratio.median() < factor


@pytest.mark.parametrize("make", [Boundary, HopSkipJump])
@pytest.mark.parametrize("queries", [150, 400])
def test_the_budget_is_kept_and_the_nearest_so_far_returned(some_digits, make, queries):
    model, batch = some_digits
    view = view_of(model, batch, L2, access="labels")
    images = make(queries=queries).perturb(view, batch, L2, draws_of(batch)).images
    assert view.evidence.forwards.max() <= queries
    right = model(batch.images).argmax(1) == batch.labels
    assert (model(images).argmax(1) != batch.labels).all()
    assert torch.equal(images[~right], batch.images[~right])


def test_more_queries_come_nearer(some_digits):
    model, batch = some_digits
    near = [
        distance(attacked(HopSkipJump(queries=queries), model, batch, L2), batch).median()
        for queries in (150, 1000)
    ]
    assert near[1] < near[0]


def test_a_budget_ends_on_a_randomised_victim_too(some_digits):
    model, batch = some_digits
    images = attacked(Boundary(queries=200), model, batch, L2, Noisy(sigma=0.2))
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("name", ["cw-l2", "boundary", "hopskipjump"])
def test_they_are_registered_unbounded(name):
    attack = attacks.get(name)()
    assert not attack.bounded and attack.norms == ("linf", "l2") and attack.passes > 0
    with pytest.raises(HarnessError, match="at least 1"):
        attacks.get(name)(steps=0)
