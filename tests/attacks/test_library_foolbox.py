"""foolbox's attacks through the bridge: the library's own images, its traps defused."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from harness.attacks.fgsm import FGSM
from harness.attacks.libraries.foolbox import starting_points
from harness.attacks.libraries.foolbox.attack import Foolbox
from harness.attacks.libraries.guarded import Guarded, seeded
from harness.evaluation.judge import check_images
from harness.registry import attacks
from harness.types import Batch, Defense, HarnessError, ThreatModel

from .conftest import Noisy, Plain, accuracy, attacked, draws_of, view_of

foolbox = pytest.importorskip("foolbox")
LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.5, norm="l2")


def make(name, **parameters):
    return attacks.get(f"foolbox:{name}")(**parameters)


def distance(images, batch):
    return (images - batch.images).flatten(1).norm(dim=1)


@pytest.mark.parametrize("name", ["LinfPGD", "L2PGD", "LinfFastGradientAttack", "L2FMNAttack"])
def test_the_images_are_the_library_s(some_digits, name):
    model, batch = some_digits
    threat = L2 if "L2" in name else LINF
    ours = attacked(make(name), model, batch, threat)
    attack = getattr(foolbox.attacks, name)()
    options = {} if name == "L2FMNAttack" else {"epsilon": threat.epsilon}
    with seeded(draws_of(batch)):
        victim = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        target = foolbox.criteria.Misclassification(batch.labels)
        theirs = attack.run(victim, batch.images, target, **options)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_fgsm_is_the_native_one_to_the_pixel(digits):
    assert torch.equal(attacked(make("FGSM"), *digits, LINF), attacked(FGSM(), *digits, LINF))


def test_parameters_come_as_text(some_digits):
    attack = make("LinfPGD", steps="7", abs_stepsize="2/255", random_start="false")
    assert attack.parameters == {"steps": 7, "abs_stepsize": 2 / 255, "random_start": False}
    view = view_of(*some_digits, LINF, access=attack.access)
    attack.perturb(view, some_digits[1], LINF, draws_of(some_digits[1]))
    assert set(view.evidence.backwards.tolist()) == {7}


def test_few_steps_can_cross_the_ball():
    """foolbox's step is epsilon / 30 however few they are."""
    assert make("LinfPGD", steps=10).make(LINF).rel_stepsize == 0.25
    assert make("LinfPGD", steps=10, rel_stepsize=0.01).make(LINF).rel_stepsize == 0.01
    assert make("LinfPGD").make(LINF).rel_stepsize == 0.01 / 0.3


def test_norms_are_checked(some_digits):
    attack = make("LinfPGD")
    with pytest.raises(HarnessError, match="does not serve norm l2"):
        attack.check(view_of(*some_digits, L2), L2)


def test_images_a_rounding_above_one_do_not_fail(some_digits):
    model, batch = some_digits
    images = batch.images.clone()
    images[0, 0, 0, 0] = 1 + 1e-6
    above = dataclasses.replace(batch, images=images)
    found = attacked(make("LinfPGD", steps=2), model, above, LINF)
    assert check_images(found, images, LINF).tolist() == [0] * len(batch)


# Starting points


class TwoFaced(nn.Module):
    """Class 0 for all but bright images: nothing fools it towards class 1 except brightness."""

    def forward(self, images):
        bright = images.flatten(1).mean(dim=1) - 0.9
        return torch.stack([-bright, bright], dim=1)


def dark(count=4):
    images = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.2
    return Batch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def find(model, batch, defense=None):
    view = view_of(model, batch, L2, defense, access="labels", classes=2)
    guard = Guarded(view.module(batch, draws_of(batch)), batch.ids, "labels")
    return starting_points.find(guard, batch, draws_of(batch))


def test_starts_are_misclassified_and_nearer_than_noise(some_digits):
    model, batch = some_digits
    found, starts = find(model, batch)
    assert found.all()
    assert (model(starts).argmax(1) != batch.labels).all()
    noise = torch.rand_like(batch.images)
    assert distance(starts, batch).median() < distance(noise, batch).median() / 2


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack"])
def test_an_image_without_a_start_does_not_fail_the_batch(name):
    batch = dark()
    batch.images[2] = 1.0  # bright, and of the other class
    batch.labels[2] = 1
    model = TwoFaced()
    found, _ = find(model, batch)
    assert found.tolist() == [True] * 4  # the bright image is a start for the dark ones
    alone = batch[torch.tensor([0, 1, 3])]
    found, _ = find(model, alone)
    assert not found.any()
    steps = {} if name == "PointwiseAttack" else {"steps": 3}
    images = attacked(make(name, **steps), model, alone, L2)
    assert torch.equal(images, alone.images)


def test_misclassified_images_stay_as_they_are(some_digits):
    model, batch = some_digits
    wrong = Batch(batch.images, model(batch.images).argmax(1), batch.ids)
    wrong.labels[:5] = (wrong.labels[:5] + 1) % 10
    images = attacked(make("BoundaryAttack", steps=20), model, wrong, L2)
    assert torch.equal(images[:5], batch.images[:5]) and torch.isfinite(images).all()
    assert (images[5:] != batch.images[5:]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack"])
def test_decision_attacks_run_on_a_randomised_victim(some_digits, name):
    model, batch = some_digits
    images = attacked(make(name, steps=4), model, batch[:12], L2, Noisy(sigma=0.3))
    assert torch.isfinite(images).all()


def test_hopskipjump_does_not_depend_on_the_size_of_the_batch(some_digits):
    """foolbox divides by the norm over the batch: its first step there is sqrt(N) times too short."""
    model, batch = some_digits
    corrected = distance(attacked(make("HopSkipJumpAttack", steps=3), model, batch, L2), batch)
    target = foolbox.criteria.Misclassification(batch.labels)
    found, starts = find(model, batch)
    assert found.all()
    with seeded(draws_of(batch)):
        victim = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        raw = foolbox.attacks.HopSkipJumpAttack(steps=3)
        moving = distance(starts, batch) > 0
        target = foolbox.criteria.Misclassification(batch.labels[moving])
        options = {"starting_points": starts[moving]}
        theirs = raw.run(victim, batch.images[moving], target, **options)
    assert corrected[moving].median() <= distance(theirs, batch[moving]).median() * 1.05


# Failures that the library returns as images


class Constant(nn.Module):
    """Class 0 whatever it sees, with no gradient."""

    def forward(self, images):
        zero = 0.0 * images.flatten(1).sum(dim=1)
        return torch.stack([zero + 5.0, zero, zero], dim=1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("L2CarliniWagnerAttack", {"steps": 5, "binary_search_steps": 2}),
        ("EADAttack", {"steps": 5, "binary_search_steps": 2}),
        ("NewtonFoolAttack", {"steps": 3}),
        ("DDNAttack", {"steps": 3}),
        ("L2FMNAttack", {"steps": 3}),
        ("LInfFMNAttack", {"steps": 3}),
    ],
)
def test_a_failure_is_the_original_image(name, options):
    """foolbox returns black images (CW, EAD) or NaN (NewtonFool) and counts the latter as success."""
    batch = dark()
    images = attacked(make(name, **options), Constant(), batch, L2)
    assert torch.isfinite(images).all()
    if name in ("L2CarliniWagnerAttack", "EADAttack", "NewtonFoolAttack"):
        assert torch.equal(images, batch.images)
    with seeded(draws_of(batch)):
        victim = foolbox.PyTorchModel(Constant().eval(), bounds=(0, 1), device="cpu")
        target = foolbox.criteria.Misclassification(batch.labels)
        theirs = getattr(foolbox.attacks, name)(**options).run(victim, batch.images.clone(), target)
    if name in ("L2CarliniWagnerAttack", "EADAttack"):
        assert (theirs == 0).all()
    if name == "NewtonFoolAttack":
        assert theirs.isnan().any()


def test_a_vanished_gradient_of_vat_is_the_original_image():
    batch = dark()
    images = attacked(make("VirtualAdversarialAttack"), Constant(), batch, L2)
    assert torch.equal(images, batch.images)


def test_what_the_library_raises_is_not_robustness(some_digits, monkeypatch):
    def broken(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(foolbox.attacks.LinfPGD, "run", broken)
    with pytest.raises(AssertionError):
        attacked(make("LinfPGD"), *some_digits, LINF)


def test_foolbox_s_signed_noise_is_left_to_the_judge(digits):
    """Its L-infinity noise is divided by its maximum instead of its largest absolute value."""
    model, batch = digits
    images = attacked(make("LinfAdditiveUniformNoiseAttack"), model, batch, LINF)
    assert 0 < check_images(images, batch.images, LINF).ne(0).sum() < len(batch)


def test_brendel_bethge_needs_numba():
    try:
        import numba  # noqa: F401
    except ImportError:
        with pytest.raises(HarnessError, match="pip install numba"):
            make("L2BrendelBethgeAttack")


def test_weights_get_no_gradients_and_keep_their_mode(some_digits):
    model, batch = some_digits
    with_norm = nn.Sequential(nn.BatchNorm2d(1), model).eval()
    attacked(make("LinfPGD", steps=2), with_norm, batch, LINF)
    assert not any(module.training for module in with_norm.modules())
    assert all(p.grad is None for p in with_norm.parameters())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deaf(Defense):
    """Cuts the graph."""

    differentiable: ClassVar[bool] = False

    def transform(self, images, draws, auxiliary=None):
        return images.detach().clone()


def test_a_defense_without_gradients_is_attacked_in_vain_but_attacked(some_digits):
    model, batch = some_digits
    view = view_of(model, batch, LINF, Deaf())
    images = make("LinfPGD", steps=3).perturb(view, batch, LINF, draws_of(batch)).images
    right = model(batch.images).argmax(1) == batch.labels
    assert (
        view.evidence.dead_gradients.sum() >= 3 * right.sum() * 0.7
    )  # counted while rightly classified
    assert accuracy(model, images, batch) > 0.5


def test_lucky_draws_are_kept_by_minimum_norm_attacks(digits):
    """The judge scores them anew: the library's own verdict on a randomised victim is too good."""
    model, batch = digits[0], digits[1][:100]
    attack = make("LinearSearchBlendedUniformNoiseAttack", steps=50, directions=20)
    lucky = attacked(attack, model, batch, L2, Noisy(sigma=0.3))
    honest = attacked(attack, model, batch, L2, Plain())
    assert distance(lucky, batch).median() < distance(honest, batch).median()


def test_the_class_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make("LinfPGD").name = "other"
    assert isinstance(make("LinfPGD"), Foolbox)
