"""The one inner loop, through the attacks that are nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.attacks.bpda import BPDA
from harness.attacks.cw import CW
from harness.attacks.fgsm import FGSM
from harness.attacks.losses import margin
from harness.attacks.pgd import PGD
from harness.geometry import TOLERANCE, norms
from harness.types import Batch, HarnessError, ThreatModel

from .conftest import Noisy, Plain, Rounding, accuracy, attacked, draws_of, places, view_of

LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.5, norm="l2")


def slope(linear, batch):
    """The constant gradient of the margin: w_other - w_true."""
    weight = linear[1].weight.detach()
    return (weight[1 - batch.labels] - weight[batch.labels]).reshape(batch.images.shape)


def best_in_box_and_l2_ball(images, gradient, epsilon):
    """The maximiser of <gradient, x> by bisection on the multiplier: x = clip(x0 + t g)."""
    low, high = torch.zeros(len(images)), torch.full((len(images),), 1e4)
    for _ in range(80):
        middle = (low + high) / 2
        moved = (images + middle.reshape(-1, 1, 1, 1) * gradient).clamp(0, 1)
        inside = norms(moved - images, "l2") <= epsilon
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return (images + low.reshape(-1, 1, 1, 1) * gradient).clamp(0, 1)


@pytest.mark.parametrize("attack", [FGSM(), PGD(keep="last"), CW(keep="best"), BPDA()])
def test_linf_optimum_of_a_linear_model(linear, linear_batch, attack):
    gradient = slope(linear, linear_batch)
    optimum = (linear_batch.images + 0.1 * gradient.sign()).clamp(0, 1)
    found = attacked(attack, linear, linear_batch, LINF)
    torch.testing.assert_close(found, optimum, atol=1e-6, rtol=0)


@pytest.mark.parametrize("attack", [FGSM(loss="margin"), CW(keep="last", random_start=False)])
def test_l2_optimum_of_a_linear_model_far_from_the_box(linear, linear_batch, attack):
    images = 0.4 + 0.2 * linear_batch.images
    batch = dataclasses.replace(linear_batch, images=images)
    threat = ThreatModel(epsilon=0.3, norm="l2")
    gradient = slope(linear, batch)
    optimum = images + 0.3 * gradient / norms(gradient, "l2").reshape(-1, 1, 1, 1)
    torch.testing.assert_close(attacked(attack, linear, batch, threat), optimum, atol=1e-5, rtol=0)


def test_l2_optimum_of_a_linear_model_cut_by_the_box(linear, linear_batch):
    gradient = slope(linear, linear_batch)
    optimum = best_in_box_and_l2_ball(linear_batch.images, gradient, L2.epsilon)
    found = attacked(CW(steps=200, step_size=0.05, keep="best"), linear, linear_batch, L2)
    value = margin(linear(found), linear_batch.labels)
    best = margin(linear(optimum), linear_batch.labels)
    assert ((best - value).abs() < 0.02 * best.abs().clamp_min(1.0)).all()


def test_first_falls_exactly_where_the_optimum_falls(linear, linear_batch):
    optimum = (linear_batch.images + 0.1 * slope(linear, linear_batch).sign()).clamp(0, 1)
    found = attacked(PGD(), linear, linear_batch, LINF)
    assert torch.equal(linear(found).argmax(1), linear(optimum).argmax(1))


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("keep", ["last", "best", "first"])
@pytest.mark.parametrize("defense", [Plain(), Noisy()], ids=["plain", "noisy"])
def test_the_same_image_gets_the_same_result_in_any_batch(some_digits, threat, keep, defense):
    model, batch = some_digits
    attack = PGD(steps=6, keep=keep, restarts=2, eot=2)
    whole = attacked(attack, model, batch, threat, defense)
    index = torch.tensor([31, 3, 17])
    part = attacked(attack, model, batch[index], threat, defense)
    # A forward of another batch size rounds otherwise, which flips the sign of a gradient near zero.
    assert ((part - whole[index]).abs() < 1e-4).float().mean() > 0.97
    assert torch.equal(attacked(attack, model, batch, threat, defense), whole)


@pytest.mark.parametrize("keep", ["last", "best", "first"])
@pytest.mark.parametrize("defense", [Plain(), Noisy(sigma=0.3)], ids=["plain", "noisy"])
def test_a_snapshot_is_what_fewer_steps_return(some_digits, keep, defense):
    model, batch = some_digits
    attack = PGD(steps=12, step_size=0.02, keep=keep, eot=2, snapshot_steps=(1, 4, 9))
    view = view_of(model, batch, LINF, defense)
    snapshots = attack.perturb(view, batch, LINF, draws_of(batch)).snapshots
    assert sorted(snapshots) == [1, 4, 9]
    for steps, snapshot in snapshots.items():
        short = dataclasses.replace(attack, steps=steps)
        torch.testing.assert_close(attacked(short, model, batch, LINF, defense), snapshot)


def test_default_snapshots(some_digits):
    model, batch = some_digits
    assert PGD(steps=1000).snapshots == {7, 20, 40, 100, 200, 500}
    assert PGD(steps=30).snapshots == {7, 15, 20}
    assert PGD(steps=1).snapshots == frozenset()
    threat = ThreatModel(epsilon=1.0)  # all fall at once, and every snapshot is there all the same
    view = view_of(model, batch, threat)
    found = PGD(steps=30, step_size=0.5).perturb(view, batch, threat, draws_of(batch))
    assert sorted(found.snapshots) == [7, 15, 20]


def test_images_leave_where_they_fall_first(some_digits):
    model, batch = some_digits
    view = view_of(model, batch, LINF)
    found = PGD(steps=20, step_size=0.01).perturb(view, batch, LINF, draws_of(batch)).images
    forwards = view.evidence.forwards
    fell = model(found).argmax(1) != batch.labels
    assert (forwards[fell] < 20).any()
    # Whoever fell was asked until then and not after; whoever did not, at each of the steps.
    assert (forwards[~fell] == 20).all()
    early = forwards < 20
    assert torch.equal(view.evidence.first_fooled[early], forwards[early])


@pytest.mark.parametrize("keep", ["last", "best"])
def test_nothing_leaves_otherwise(some_digits, keep):
    model, batch = some_digits
    view = view_of(model, batch, LINF)
    PGD(steps=5, keep=keep).perturb(view, batch, LINF, draws_of(batch))
    assert (view.evidence.forwards == (5 if keep == "last" else 6)).all()
    assert (view.evidence.backwards == 5).all()


def test_first_is_as_good_as_any_later_iterate(digits):
    model, batch = digits
    found = {
        keep: accuracy(model, attacked(PGD(steps=10, keep=keep), model, batch, LINF), batch)
        for keep in ("first", "best", "last")
    }
    assert found["first"] <= min(found["best"], found["last"]) + 0.002


@pytest.mark.parametrize("keep", ["last", "best", "first"])
@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_restarts_are_never_worse(digits, keep, threat):
    model, batch = digits
    attack = PGD(steps=3, keep=keep)
    once = attacked(attack, model, batch, threat)
    many = attacked(dataclasses.replace(attack, restarts=3), model, batch, threat)
    fell_once = model(once).argmax(1) != batch.labels
    fell_many = model(many).argmax(1) != batch.labels
    assert (fell_many | ~fell_once).all()


def test_steps_and_restarts_never_share_a_draw(some_digits, monkeypatch):
    model, batch = some_digits
    seen = places(monkeypatch)
    view = view_of(model, batch, LINF, Noisy())
    monkeypatch.setattr(view, "_probe_pixels", lambda *_: None)
    attack = PGD(steps=3, restarts=2, eot=2, keep="best", looks=4, snapshot_steps=())
    attack.perturb(view, batch, LINF, draws_of(batch))
    met = [(draws.step, draws.draw) for draws in seen]
    steps = [place for place in met if place[0] >= 0]
    assert sorted(steps) == [(step, draw) for step in (0, 1, 2, 4, 5, 6) for draw in (0, 1)]
    # Candidates alone meet the same draws: of each ascent its likeliest, its last and its result.
    compared = [place for place in met if place[0] < 0]
    assert sorted(compared) == sorted([(-2, draw) for draw in range(4)] * 6)
    assert len(met) == attack.passes


def test_eot_finds_the_mean_gradient():
    """One draw in three points right, two a little the other way: only the mean knows the way."""

    class Liar(Noisy):
        def transform(self, images, draws, auxiliary=None):
            right = draws.bernoulli(1 / 3)
            return images * torch.where(right, 4.0, -1.0).reshape(-1, 1, 1, 1)

    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[0.0], [1.0]])
    batch = Batch(torch.full((64, 1, 1, 1), 0.5), torch.zeros(64).long(), torch.arange(64))
    attack = CW(steps=1, step_size=0.1, random_start=False, keep="last")
    up = {}
    for eot in (1, 60):
        found = attacked(dataclasses.replace(attack, eot=eot), model, batch, LINF, Liar())
        up[eot] = (found > 0.5).float().mean().item()
    assert up[1] < 0.5 and up[60] > 0.95


def test_exact_gradients_die_where_declared_ones_do_not(some_digits):
    model, batch = some_digits
    threat, defense = ThreatModel(epsilon=0.2), Rounding()
    found = {}
    for attack in (PGD(random_start=False), BPDA(random_start=False)):
        images = attacked(attack, model, batch, threat, defense)
        found[type(attack)] = accuracy(model, torch.round(images * 8) / 8, batch)
    assert found[PGD] == accuracy(model, torch.round(batch.images * 8) / 8, batch)
    assert found[BPDA] < found[PGD] - 0.3
    view = view_of(model, batch, threat, defense)
    PGD(steps=2, random_start=False).perturb(view, batch, threat, draws_of(batch))
    right = model(torch.round(batch.images * 8) / 8).argmax(1) == batch.labels
    assert (view.evidence.dead_gradients[right] == 2).all()


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.0, 1.5),
    st.sampled_from(["linf", "l2"]),
    st.sampled_from(["last", "best", "first"]),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_result_is_in_the_ball_and_the_box(epsilon, norm, keep, steps, random_start):
    generator = torch.Generator().manual_seed(steps)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    batch = Batch(
        torch.rand(5, 3, 2, 2, generator=generator).round(decimals=1),
        torch.arange(5) % 3,
        torch.arange(5),
    )
    threat = ThreatModel(epsilon=min(epsilon, 1.0) if norm == "linf" else epsilon, norm=norm)
    attack = PGD(steps=steps, keep=keep, random_start=random_start)
    found = attacked(attack, model, batch, threat)
    assert (norms(found - batch.images, norm) <= threat.epsilon + TOLERANCE).all()
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(
    ("steps", "epsilon", "expected"),
    [(1, 0.3, 0.3), (2, 0.3, 0.15), (7, 8 / 255, 2 / 255), (40, 0.3, 0.01875), (1000, 0.8, 0.002)],
)
def test_default_step_size(steps, epsilon, expected):
    threat = ThreatModel(epsilon=epsilon)
    assert PGD(steps=steps).step_length(threat) == pytest.approx(expected)
    assert PGD(steps=steps, step_size=0.25).step_length(threat) == 0.25


def test_passes():
    attack = PGD(steps=40, restarts=2, eot=3)
    assert attack.gradients == 240
    # Eight looks for each restart at two candidates of steps 7, 20 and 40 (the end), and its result.
    assert attack.passes == 240 + 8 * 2 * (2 * 3 + 1)
    assert dataclasses.replace(attack, keep="last", restarts=1).passes == 120
    assert dataclasses.replace(attack, restarts=1, targeted=2, keep="last").gradients == 360
    assert FGSM(eot=5).passes == 5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "steps is 0: it must be an integer of at least 1"),
        ({"restarts": 1.5}, "restarts is 1.5"),
        ({"eot": True}, "eot is True"),
        ({"step_size": -0.1}, "step_size is -0.1: it must be a finite number above 0"),
        ({"step_size": float("nan")}, "step_size is nan"),
        ({"loss": "hinge"}, "loss is 'hinge': it must be one of cross-entropy, margin, dlr"),
        ({"backward": ""}, "backward is '': it must be a word"),
        (
            {"schedule": "cosine"},
            "schedule is 'cosine': it must be one of constant, linear, adaptive",
        ),
        ({"momentum": 1.0}, "momentum is 1.0: it must be from 0 to below 1"),
        ({"targeted": -1}, "targeted is -1"),
        ({"looks": 0}, "looks is 0"),
        ({"keep": "any"}, "keep is 'any': it must be one of auto, last, best, first"),
        ({"snapshot_steps": (0,)}, "snapshot_steps is 0"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(HarnessError, match=message):
        PGD(**parameters)


def test_dlr_on_two_classes_is_refused_before_it_starts(linear, linear_batch):
    view = view_of(linear, linear_batch, LINF, classes=2)
    with pytest.raises(HarnessError, match="use loss=margin"):
        PGD(loss="dlr").check(view, LINF)
    PGD(loss="margin").check(view, LINF)


def test_losses_of_the_attacks():
    assert CW().loss == "margin" and PGD().loss == "cross-entropy"
    assert BPDA().keep == "last" and BPDA().backward == "declared"
