"""SPSA and Square, which see scores only."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from harness.attacks.spsa import SPSA, rademacher
from harness.attacks.square import Square, _squares
from harness.geometry import TOLERANCE, norms
from harness.random import Draws, Role
from harness.types import HarnessError, ThreatModel

from .conftest import Noisy, Plain, accuracy, attacked, draws_of, places, view_of

LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.5, norm="l2")
ATTACKS = [SPSA(steps=8, samples=64), Square(queries=60)]


@pytest.mark.parametrize("attack", ATTACKS, ids=["spsa", "square"])
@pytest.mark.parametrize("defense", [Plain(), Noisy()], ids=["plain", "noisy"])
def test_ball_box_and_queries(some_digits, attack, defense):
    model, batch = some_digits
    view = view_of(model, batch, LINF, defense, access="scores")
    found = attack.perturb(view, batch, LINF, draws_of(batch)).images
    assert (norms(found - batch.images, "linf") <= 0.1 + TOLERANCE).all()
    assert found.min() >= 0 and found.max() <= 1
    assert view.evidence.forwards.max() <= attack.passes
    assert (view.evidence.backwards == 0).all()


@pytest.mark.parametrize("attack", ATTACKS, ids=["spsa", "square"])
def test_images_leave_where_they_fall(some_digits, attack):
    model, batch = some_digits
    view = view_of(model, batch, LINF, access="scores")
    found = attack.perturb(view, batch, LINF, draws_of(batch)).images
    fell, forwards = model(found).argmax(1) != batch.labels, view.evidence.forwards
    assert fell.any() and not fell.all()
    assert forwards[fell].float().mean() < forwards[~fell].float().mean()
    assert (forwards[~fell] == attack.passes).all()


@pytest.mark.parametrize("attack", ATTACKS, ids=["spsa", "square"])
@pytest.mark.parametrize("defense", [Plain(), Noisy()], ids=["plain", "noisy"])
def test_the_same_image_gets_the_same_result_in_any_batch(some_digits, attack, defense):
    model, batch = some_digits
    whole = attacked(attack, model, batch, LINF, defense)
    assert torch.equal(attacked(attack, model, batch, LINF, defense), whole)
    index = torch.tensor([31, 3, 17])
    part = attacked(attack, model, batch[index], LINF, defense)
    # Rounding differs with the size of a batch, and Adam's first steps turn it into sign flips.
    assert ((part - whole[index]).abs() < 1e-3).float().mean() > 0.97
    other = attacked(attack, model, batch, LINF, defense, seed=1)
    assert not torch.equal(other, whole)


def test_spsa_finds_the_gradient_of_a_linear_model(linear, linear_batch):
    view = view_of(linear, linear_batch, LINF, access="scores")
    attack = SPSA(samples=20000, chunk=4096)
    found = attack.estimate(view, linear_batch.images, linear_batch.labels, draws_of(linear_batch))
    weight = linear[1].weight
    true = (weight[1 - linear_batch.labels] - weight[linear_batch.labels]).reshape(found.shape)
    cosine = torch.cosine_similarity(found.flatten(1), true.flatten(1))
    assert (cosine > 0.99).all()
    torch.testing.assert_close(norms(found, "l2"), norms(true, "l2"), rtol=0.05, atol=0)


def test_spsa_reaches_the_optimum_of_a_linear_model(linear, linear_batch):
    view = view_of(linear, linear_batch, LINF, access="scores")
    found = SPSA(steps=40, samples=256).perturb(view, linear_batch, LINF, draws_of(linear_batch))
    weight = linear[1].weight
    slope = (weight[1 - linear_batch.labels] - weight[linear_batch.labels]).reshape(-1, 1, 4, 4)
    optimum = (linear_batch.images + 0.1 * slope.sign()).clamp(0, 1)
    assert accuracy(linear, found.images, linear_batch) == accuracy(linear, optimum, linear_batch)


@pytest.mark.parametrize("defense", [Plain(), Noisy()], ids=["plain", "noisy"])
@pytest.mark.parametrize("eot", [1, 4])
def test_the_chunk_changes_rounding_only(some_digits, defense, eot):
    model, batch = some_digits[0], some_digits[1][:9]
    view = view_of(model, batch, LINF, defense, access="scores")
    estimates = [
        SPSA(samples=64, eot=eot, chunk=chunk).estimate(
            view, batch.images, batch.labels, draws_of(batch)
        )
        for chunk in (2, 7, 64, 1000)
    ]
    for other in estimates[1:]:
        torch.testing.assert_close(other, estimates[0], atol=1e-3, rtol=1e-3)


def test_spsa_forwards_stay_within_the_chunk(some_digits, monkeypatch):
    model, batch = some_digits
    sizes = []
    monkeypatch.setattr(
        Plain, "transform", lambda self, images, *_: sizes.append(len(images)) or images
    )
    view = view_of(model, batch, LINF, access="scores")
    SPSA(samples=128, chunk=100).estimate(view, batch.images, batch.labels, draws_of(batch))
    assert max(sizes) <= 100 and sum(sizes) == 128 * len(batch)


def test_spsa_in_l2(some_digits):
    model, batch = some_digits
    found = attacked(SPSA(steps=20, samples=64), model, batch, L2)
    assert (norms(found - batch.images, "l2") <= 0.5 + TOLERANCE).all()
    assert accuracy(model, found, batch) < accuracy(model, batch.images, batch)


def test_signs_are_fair_and_a_pure_function_of_the_sample(linear_batch):
    draws = draws_of(linear_batch)
    signs = rademacher(draws, 100, 37)
    assert signs.shape == (32, 100, 37) and set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 0.01
    assert signs.mean(dim=(0, 1)).abs().max() < 0.1
    assert torch.equal(rademacher(draws[5:6], 100, 37), signs[5:6])
    assert not torch.equal(signs[0], signs[1])


def test_squares_are_whole_and_everywhere():
    inside = _squares(Draws(0, torch.arange(500), Role.ATTACK), 3, 6, 5)
    assert inside.shape == (500, 1, 6, 5)
    assert (inside.sum(dim=(1, 2, 3)) == 9).all()
    assert inside.any(dim=0).all()


def test_square_shrinks_its_squares_as_published():
    attack = Square(queries=10_000)
    sides = [attack.side(query, 28, 28) for query in (1, 11, 51, 201, 501, 9999)]
    assert sides == [25, 18, 13, 9, 6, 1]
    assert Square(queries=100).side(1, 28, 28) == attack.side(100, 28, 28)


def test_square_beats_noise_and_more_queries_are_better(digits):
    model, batch = digits
    batch = batch[:150]
    found = [
        accuracy(model, attacked(Square(queries=queries), model, batch, LINF), batch)
        for queries in (1, 30, 300)
    ]
    assert found[0] > found[1] > found[2]


def test_square_compares_on_one_draw_against_a_randomised_victim(some_digits, monkeypatch):
    model, batch = some_digits
    seen = places(monkeypatch)
    attacked(Square(queries=9), model, batch, LINF, Noisy())
    assert [draws.step for draws in seen] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SPSA(samples=9), "samples is 9: it must be a multiple of 2"),
        (lambda: SPSA(samples=128, eot=3), "samples is 128: it must be a multiple of 6"),
        (lambda: SPSA(delta=0), "delta is 0"),
        (lambda: SPSA(chunk=0), "chunk is 0"),
        (lambda: Square(queries=0), "queries is 0"),
        (lambda: Square(share=1.5), "share is 1.5: it must be above 0 and at most 1"),
        (lambda: Square(loss="l2"), "loss is 'l2'"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(HarnessError, match=message):
        make()


def test_square_serves_linf_only(some_digits):
    model, batch = some_digits
    with pytest.raises(HarnessError, match="does not serve norm l2"):
        Square().check(view_of(model, batch, L2), L2)


def test_passes():
    assert SPSA(steps=3, samples=10).passes == 33
    assert dataclasses.replace(Square(), queries=7).passes == 7
