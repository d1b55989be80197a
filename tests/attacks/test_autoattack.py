"""`autoattack` against the package called directly, its side effects, and where it cannot serve."""

from __future__ import annotations

import sys

import pytest
import torch

from harness.attacks.libraries.autoattack import AutoAttack
from harness.attacks.libraries.guarded import seed_of, seeded
from harness.attacks.pgd import PGD
from harness.evaluation.judge import check_images
from harness.types import HarnessError, ThreatModel

from .conftest import Noisy, accuracy, attacked, draws_of, view_of

package = pytest.importorskip("pyautoattack")
LINF, L2 = ThreatModel(epsilon=0.2), ThreatModel(epsilon=1.5, norm="l2")


@pytest.fixture
def short(monkeypatch):
    """The package with four steps an attack."""

    class Short(package.AutoAttack):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            for attack in (self.apgd, self.apgd_targeted, self.fab):
                attack.n_iter = attack.n_iter_orig = 4
            self.square.n_queries = 10

    monkeypatch.setattr(package, "AutoAttack", Short)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_standard_is_the_reference(digits, threat):
    model, batch = digits[0], digits[1][:8]
    ours = attacked(AutoAttack(version="standard"), model, batch, threat)
    with seeded(draws_of(batch)):
        norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
        reference = package.AutoAttack(
            model, norm=norm, eps=threat.epsilon, seed=seed_of(draws_of(batch)), device="cpu"
        )
        theirs, _ = reference.run_standard_evaluation(batch.images, batch.labels)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert check_images(ours, batch.images, threat).tolist() == [0] * len(batch)


def test_it_is_as_strong_as_pgd(digits):
    model, batch = digits[0], digits[1][:12]
    ours = attacked(AutoAttack(), model, batch, LINF)
    pgd = attacked(PGD(steps=20), model, batch, LINF)
    assert accuracy(model, ours, batch) <= accuracy(model, pgd, batch)


def test_broken_images_leave(digits):
    model, batch = digits[0], digits[1][:12]
    view = view_of(model, batch, ThreatModel(epsilon=0.3))
    AutoAttack().perturb(view, batch, ThreatModel(epsilon=0.3), draws_of(batch))
    fell = view.evidence.first_fooled >= 0
    assert fell.sum() > 8 and view.evidence.forwards[fell].float().median() < 400


def test_a_randomised_victim_gets_rand(some_digits, short):
    model, batch = some_digits[0], some_digits[1][:3]
    small = ThreatModel(epsilon=0.01)
    view = view_of(model, batch, small, Noisy(sigma=0.01))
    AutoAttack().perturb(view, batch, small, draws_of(batch))
    assert (
        view.evidence.backwards.tolist() == [2 * 20 * 5] * 3
    )  # two attacks, 20 draws, 4 steps and 1
    view = view_of(model, batch, small)
    AutoAttack().perturb(view, batch, small, draws_of(batch))
    assert view.evidence.backwards.max() % 20 and view.evidence.forwards.min() > 4 * 9


def test_unbroken_images_can_be_those_of_greatest_loss(some_digits, short):
    model, batch = some_digits[0], some_digits[1][:6]
    small, noisy = ThreatModel(epsilon=0.02), Noisy(sigma=0.02)
    plain = attacked(AutoAttack(version="rand"), model, batch, small, noisy)
    climbed = AutoAttack(version="rand", unbroken="best-loss")
    moved = attacked(climbed, model, batch, small, noisy)
    same = (plain == batch.images).flatten(1).all(dim=1)
    assert same.any() and (moved != batch.images).flatten(1).any(dim=1)[same].all()
    assert check_images(moved, batch.images, small).tolist() == [0] * len(batch)


def test_tracing_and_random_state_go_on(some_digits):
    """Its check for dynamic defenses removes the trace function: coverage would end there."""
    model, batch = some_digits[0], some_digits[1][:3]

    def trace(frame, event, argument):
        return None

    before, state = sys.gettrace(), torch.get_rng_state()
    sys.settrace(trace)
    try:
        attacked(AutoAttack(version="standard"), model, batch, ThreatModel(epsilon=0.4))
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_it_cannot_serve(some_digits):
    with pytest.raises(HarnessError, match="at least 4 classes"):
        AutoAttack().check(view_of(*some_digits, LINF, classes=3), LINF)
    with pytest.raises(HarnessError, match="must be one of auto, standard, rand"):
        AutoAttack(version="plus")


def test_epsilon_zero_is_no_attack(some_digits):
    nothing = ThreatModel(epsilon=0.0)
    assert torch.equal(attacked(AutoAttack(), *some_digits, nothing), some_digits[1].images)
