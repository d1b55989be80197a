"""The choice among iterates, the moves of Auto-PGD, and attacks that run on a source."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from harness.attacks.apgd import APGD, APGDDLR
from harness.attacks.cw import CW
from harness.attacks.fixed_mask import FixedMaskBPDA
from harness.attacks.losses import LOSSES, margin, probability, runners_up, towards
from harness.attacks.pgd import PGD
from harness.attacks.selection import Best, Referee, Verdict
from harness.attacks.spsa import SPSA
from harness.attacks.square import Square
from harness.attacks.step_rules import Walk, adaptive_checkpoints
from harness.attacks.transfer import Transfer
from harness.geometry import TOLERANCE, norms
from harness.types import Gradient, HarnessError, ThreatModel

from .conftest import Noisy, accuracy, attacked, draws_of, places, view_of

LINF = ThreatModel(epsilon=0.1)


# --- the choice -----------------------------------------------------------------------------------


def test_more_wrong_draws_win_and_loss_decides_between_equals():
    one = Verdict(torch.tensor([0.5, 0.5, 0.2]), torch.tensor([1.0, 3.0, 9.0]))
    two = Verdict(torch.tensor([0.5, 0.5, 0.3]), torch.tensor([2.0, 2.0, 0.0]))
    assert two.beats(one).tolist() == [True, False, True]


class Coin:
    """A randomised victim of two classes: an image is wrong in as many draws as its first pixel says."""

    classes, randomised, backward_passes = 2, True, ("exact",)

    def logits(self, images, draws):
        wrong = draws.uniform(lane="coin") < images[:, 0, 0, 0]
        score = torch.where(wrong, 1.0, -1.0)
        return torch.stack((-score, score), dim=1)


def test_a_lucky_loss_does_not_win(linear_batch):
    """The step's own loss praises an iterate that is wrong in no draw: the referee is not taken in."""
    ids, zeros = torch.arange(32), torch.zeros(32)
    batch = dataclasses.replace(linear_batch, ids=ids, labels=zeros.long())
    referee = Referee(Coin(), "margin", 20, draws_of(batch))
    best = Best(referee, batch.labels)
    honest, lucky = torch.full((32, 1, 1, 1), 0.9), torch.zeros(32, 1, 1, 1)
    empty = torch.zeros(32, 2)
    best.see(honest, Gradient(honest, zeros, empty, zeros, empty))
    assert torch.equal(best.settle(honest), honest)
    best.see(lucky, Gradient(lucky, zeros + 100, empty, zeros, empty))
    assert torch.equal(best.settle(lucky), honest)


def test_best_beats_the_last_of_a_wandering_ascent(digits):
    model, batch = digits
    batch, noisy = batch[:120], Noisy(sigma=0.3)
    attack = CW(steps=12, step_size=0.08, momentum=0.0)
    stands = {}
    for keep in ("last", "best"):
        found = attacked(dataclasses.replace(attack, keep=keep), model, batch, LINF, noisy)
        looks = [found + 0.3 * draws_of(batch, seed).normal(1, 8, 8) for seed in range(50, 70)]
        stands[keep] = sum(accuracy(model, look, batch) for look in looks) / 20
    assert stands["best"] < stands["last"]


# --- the moves ------------------------------------------------------------------------------------


def test_checkpoints_of_auto_pgd():
    assert list(adaptive_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert adaptive_checkpoints(2) == {1: 1}


def test_momentum_and_halving_on_a_line():
    """Ascending -|x - 0.55| from 0.5 with a step of 0.2 overshoots: the step halves, from the best."""
    threat, images = ThreatModel(epsilon=0.5), torch.full((1, 1, 1, 1), 0.5)
    walk = Walk("adaptive", 0.0, 0.2, 100, threat)
    x = images.clone()
    seen = []
    for _ in range(90):
        loss = -(x - 0.55).abs().flatten()
        seen.append(x.item())
        x = walk.move(x, (0.55 - x).sign(), loss, images)
    assert abs(max(seen, key=lambda value: -abs(value - 0.55)) - 0.55) < 0.02
    assert abs(seen[-1] - 0.55) < 0.02 < abs(seen[5] - 0.55)


def test_momentum_is_the_share_of_the_last_move():
    threat, images = ThreatModel(epsilon=1.0), torch.full((1, 1, 1, 1), 0.1)
    walk, x, up = Walk("constant", 0.25, 0.1, 10, threat), images, torch.ones(1, 1, 1, 1)
    first = walk.move(x, up, torch.zeros(1), images)
    second = walk.move(first, up, torch.zeros(1), images)
    third = walk.move(second, -up, torch.zeros(1), images)
    assert first.item() == pytest.approx(0.2)
    assert second.item() == pytest.approx(0.3)
    assert third.item() == pytest.approx(0.3 - 0.75 * 0.1 + 0.25 * 0.1)


def test_a_linear_schedule_ends_at_nothing():
    threat, images = ThreatModel(epsilon=1.0), torch.zeros(1, 1, 1, 1)
    walk, x, up = Walk("linear", 0.0, 0.1, 4, threat), images, torch.ones(1, 1, 1, 1)
    for _ in range(4):
        x = walk.move(x, up, torch.zeros(1), images)
    assert x.item() == pytest.approx(0.1 * (1 + 0.75 + 0.5 + 0.25))


@pytest.mark.parametrize("attack", [APGD(steps=20), APGDDLR(steps=20), APGD(steps=20, eot=2)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_pgd_keeps_to_ball_and_box_and_beats_one_step(digits, attack, norm):
    model, batch = digits
    threat = ThreatModel(epsilon=0.1 if norm == "linf" else 0.8, norm=norm)
    found = attacked(attack, model, batch[:100], threat)
    assert (norms(found - batch.images[:100], norm) <= threat.epsilon + TOLERANCE).all()
    assert found.min() >= 0 and found.max() <= 1
    one = attacked(PGD(steps=1, random_start=False), model, batch[:100], threat)
    assert accuracy(model, found, batch[:100]) <= accuracy(model, one, batch[:100])


# --- losses and targets ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_aimed_at_the_runner_up_a_margin_is_itself(loss):
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 5
    rivals = runners_up(logits.softmax(1), labels, 1)[:, 0]
    aimed = towards(loss, labels, rivals)(logits)
    if loss in ("margin", "probability"):
        torch.testing.assert_close(aimed, LOSSES[loss](logits, labels))
    elif loss == "cross-entropy":
        torch.testing.assert_close(aimed, logits.log_softmax(1).gather(1, rivals[:, None])[:, 0])
    else:
        assert torch.equal(aimed.sign(), margin(logits, labels).sign())


def test_against_one_rival_the_mean_margin_is_the_margin_of_the_mean():
    draws = torch.randn(30, 6, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(6).long()
    mean = draws.softmax(dim=2).mean(dim=0)
    rivals = runners_up(mean, labels, 1)[:, 0]
    aimed = torch.stack([towards("probability", labels, rivals)(logits) for logits in draws])
    torch.testing.assert_close(aimed.mean(dim=0), margin(mean, labels))
    assert (probability(draws[0], labels) > 0).equal(draws[0].argmax(1) != 0)


def test_runners_up_leave_the_true_class_out():
    found = runners_up(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), torch.tensor([0, 1]), 2)
    assert found.tolist() == [[1, 2], [2, 0]]


def test_targeted_ascents_are_never_worse(digits):
    model, batch = digits
    batch = batch[:150]
    once = PGD(steps=4, loss="margin")
    more = dataclasses.replace(once, targeted=3)
    fell = {
        a: model(attacked(a, model, batch, LINF)).argmax(1) != batch.labels for a in (once, more)
    }
    assert (fell[more] | ~fell[once]).all() and fell[more].sum() > fell[once].sum()


def test_too_many_targets_are_refused(linear, linear_batch):
    view = view_of(linear, linear_batch, LINF, classes=2)
    with pytest.raises(HarnessError, match="1 wrong classes"):
        PGD(targeted=2).check(view, LINF)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_climbs_on_a_randomised_victim(digits, loss):
    model, batch = digits
    batch, noisy = batch[:60], Noisy(sigma=0.1)
    attack = PGD(steps=8, eot=3, loss=loss)
    found = attacked(attack, model, batch, LINF, noisy)
    assert accuracy(model, found, batch) < accuracy(model, batch.images, batch) - 0.15


def test_a_backward_pass_that_is_not_offered_is_refused_before_it_starts(linear, linear_batch):
    view = view_of(linear, linear_batch, LINF)
    with pytest.raises(HarnessError, match="does not offer: it offers declared, exact, identity"):
        PGD(backward="mask-aware").check(view, LINF)


# --- on another model, on held draws --------------------------------------------------------------


def test_a_transferred_pgd_goes_beyond_the_source_s_boundary(digits):
    model, batch = digits
    batch = batch[:100]
    alone = margin(model(attacked(PGD(steps=20), model, batch, LINF)), batch.labels)
    passed_on = margin(
        model(attacked(Transfer(inner=PGD(steps=20)), model, batch, LINF)), batch.labels
    )
    fell = alone > 0
    assert fell.sum() > 20
    assert passed_on[fell].median() > 3 * alone[fell].median()
    last = attacked(PGD(steps=20, keep="last"), model, batch, LINF)
    assert torch.equal(attacked(Transfer(inner=PGD(steps=20)), model, batch, LINF), last)


@pytest.mark.parametrize("inner", [SPSA(steps=10, samples=64), Square(queries=150)])
def test_transferred_searches_do_not_stop_either(some_digits, inner):
    model, batch = some_digits
    view = view_of(model, batch, LINF, access="scores")
    found = Transfer(inner=inner).perturb(view, batch, LINF, draws_of(batch)).images
    assert view.evidence.forwards.min() >= inner.passes - inner.passes // 10 - 10
    alone = attacked(inner, model, batch, LINF)
    fell = model(alone).argmax(1) != batch.labels
    gain = margin(model(found), batch.labels) - margin(model(alone), batch.labels)
    assert fell.any() and gain[fell].median() > 0


def test_a_fixed_mask_attack_scores_on_all_of_its_draws(some_digits, monkeypatch):
    model, batch = some_digits
    seen = places(monkeypatch)
    view = view_of(model, batch, LINF, Noisy())
    monkeypatch.setattr(view, "_probe_pixels", lambda *_: None)
    FixedMaskBPDA(steps=3, eot=3).perturb(view, batch, LINF, draws_of(batch))
    assert [(draws.step, draws.draw) for draws in seen] == [
        (0, draw) for _ in range(4) for draw in range(3)
    ]


def test_apgd_is_registered():
    from harness.registry import attacks

    assert {"apgd", "apgd-dlr"} <= {entry.name for entry in attacks}
    assert APGDDLR().loss == "dlr"
