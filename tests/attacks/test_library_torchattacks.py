"""torchattacks' attacks through the bridge: the library's own images, its traps defused."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch import nn

from harness.attacks.fgsm import FGSM
from harness.attacks.libraries.guarded import seeded
from harness.evaluation.judge import check_images
from harness.registry import attacks
from harness.types import Batch, HarnessError, ThreatModel

from .conftest import Noisy, accuracy, attacked, draws_of, view_of

torchattacks = pytest.importorskip("torchattacks")
LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.5, norm="l2")


def make(name, **parameters):
    return attacks.get(f"torchattacks:{name}")(**parameters)


def arguments(name, threat=LINF, classes=10, **parameters):
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1), torch.arange(1))
    return make(name, **parameters).arguments(threat, draws_of(batch), classes)


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "MIFGSM", "EADL1"])
def test_the_images_are_the_library_s(some_digits, name):
    model, batch = some_digits
    threat = L2 if name == "PGDL2" else LINF
    quick = {"max_iterations": 10, "binary_search_steps": 2} if name == "EADL1" else {"steps": 4}
    ours = attacked(make(name, **quick), model, batch, threat)
    with seeded(draws_of(batch)):
        attack = getattr(torchattacks, name)(model, **arguments(name, threat, **quick))
        theirs = attack(batch.images, batch.labels)
    torch.testing.assert_close(ours, theirs.clamp(0, 1), atol=2e-4, rtol=0)


def test_fgsm_is_the_native_one_to_the_pixel(digits):
    assert torch.equal(attacked(make("FGSM"), *digits, LINF), attacked(FGSM(), *digits, LINF))


def test_the_ball_is_the_threat_model_s():
    assert arguments("PGD")["eps"] == 0.1
    assert arguments("PIFGSM")["max_epsilon"] == 0.1
    assert arguments("APGD", L2)["norm"] == "L2" and arguments("APGD")["norm"] == "Linf"
    assert arguments("FAB", classes=7)["n_classes"] == 7
    assert isinstance(arguments("AutoAttack")["seed"], int)


def test_steps_can_cross_the_ball():
    """The library's step of 2/255 in 10 steps goes nowhere in a ball of 0.3."""
    mnist = ThreatModel(epsilon=0.3)
    assert 10 * arguments("PGD", mnist)["alpha"] >= 0.3
    assert arguments("PGD", mnist, alpha="2/255")["alpha"] == 2 / 255
    assert arguments("FFGSM", mnist)["alpha"] == pytest.approx(0.375)
    small = ThreatModel(epsilon=1 / 255)
    assert arguments("PGD", small, steps="20")["alpha"] <= 1 / 255


def test_the_model_s_mode_and_weights_stay(some_digits):
    """After an attack the library calls train() on the root: the view's module has nothing to train."""
    model, batch = some_digits
    with_norm = nn.Sequential(nn.BatchNorm2d(1), model).eval()
    before = {key: value.clone() for key, value in with_norm.state_dict().items()}
    for name in ("PGD", "CW", "FAB", "EADEN", "JSMA"):
        quick = {"EADEN": {"max_iterations": 10}, "JSMA": {}}.get(name, {"steps": 2})
        attacked(make(name, **quick), with_norm, batch[:4], LINF)
    assert not any(module.training for module in with_norm.modules())
    assert all(p.grad is None and not p.requires_grad for p in with_norm.parameters())
    assert all(torch.equal(before[key], value) for key, value in with_norm.state_dict().items())


@pytest.mark.parametrize("name", ["APGD", "FAB", "Square", "AutoAttack", "OnePixel", "PGD"])
def test_random_state_is_untouched_and_the_result_is_the_seed_s(some_digits, name, monkeypatch):
    """APGD and Square reset the global state; AutoAttack seeds from the clock."""
    model, batch = some_digits[0], some_digits[1][:3]
    quick = {"Square": {"n_queries": 30}, "AutoAttack": {"version": "rand"}}
    attack = make(name, **quick.get(name, {"steps": 3}))
    state = torch.get_rng_state(), random.getstate()
    one = attacked(attack, model, batch, LINF)
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    clock = time.time() + 1000.5
    monkeypatch.setattr(time, "time", lambda: clock)
    torch.rand(3)
    assert torch.equal(one, attacked(attack, model, batch, LINF))


def test_cw_moves_pixels_of_exactly_zero_and_one():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images = torch.zeros(3, 1, 8, 8)
    images[:, :, 2:4] = 1.0
    images[0, 0, 6], images[1, 0, 7] = 1.0, 1.0
    batch = Batch(images, model(images).argmax(1), torch.arange(3))
    options = {"c": 10, "steps": 60, "lr": 0.1}
    found = attacked(make("CW", **options), model, batch, L2)
    assert (model(found).argmax(1) != batch.labels).all()
    assert torch.equal(torchattacks.CW(model, **options)(images, batch.labels), images)


def test_cw_returns_the_original_where_it_fails(some_digits):
    model, batch = some_digits[0], some_digits[1][:8]
    right = model(batch.images).argmax(1) == batch.labels
    images = attacked(make("CW", c="0.0001", steps="3"), model, batch, L2)
    assert torch.equal(images[right], batch.images[right])


def test_rounding_over_box_and_ball_is_projected(some_digits, monkeypatch):
    """EAD and SPSA were seen to end outside [0, 1] by 0.00001."""
    model, batch = some_digits
    forward = torchattacks.SPSA.forward

    def overshooting(self, images, labels):
        found = forward(self, images, labels)
        return torch.where(found > images, found + 1e-5, found - 1e-5)

    monkeypatch.setattr(torchattacks.SPSA, "forward", overshooting)
    attack = make("SPSA", nb_iter=12, nb_sample=8)
    images = attacked(attack, model, batch, LINF)
    assert check_images(images, batch.images, LINF).tolist() == [0] * len(batch)
    assert (images - batch.images).abs().max() > 0.05


@pytest.mark.parametrize("name", ["TIFGSM", "PIFGSM", "PIFGSMPP"])
def test_three_channels_are_asked_for_before_the_start(some_digits, name):
    with pytest.raises(HarnessError, match="works on 3 channels only, the images have 1"):
        attacked(make(name), *some_digits, LINF)
    colour = Batch(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    images = attacked(make(name), model, colour, LINF)
    assert check_images(images, colour.images, LINF).tolist() == [0, 0]


def test_apgd_t_asks_for_four_classes(some_digits):
    attack = make("APGDT")
    with pytest.raises(HarnessError, match="at least 4 classes, the model has 3"):
        attack.check(view_of(*some_digits, LINF, classes=3), LINF)


def test_jsma_is_targeted_at_a_class_that_exists():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    batch = Batch(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 2]), torch.arange(4))
    view = view_of(model, batch, LINF, classes=3)
    images = make("JSMA").perturb(view, batch, LINF, draws_of(batch)).images
    assert torch.isfinite(images).all()  # the library's (label + 1) modulo 10 is an IndexError


def test_an_attack_of_single_images_books_its_queries_to_them(some_digits):
    """OnePixel asks for ten variants of one image: as many as the batch has images."""
    model, batch = some_digits[0], some_digits[1][:10]
    view = view_of(model, batch, LINF, access="scores")
    make("OnePixel", steps="2").perturb(view, batch, LINF, draws_of(batch))
    first = view.evidence.forwards.clone()
    view = view_of(model, batch[3:5], LINF, access="scores")
    make("OnePixel", steps="2").perturb(view, batch[3:5], LINF, draws_of(batch[3:5]))
    assert torch.equal(view.evidence.forwards, first[3:5])


def test_spsa_draws_in_one_call_share_the_mask_of_their_sample(some_digits):
    model, batch = some_digits
    images = attacked(make("SPSA", nb_sample="8"), model, batch, LINF, Noisy())
    assert accuracy(model, images, batch) <= 1.0
