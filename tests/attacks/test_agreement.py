"""The native attacks against those of foolbox, torchattacks and the Adversarial Robustness Toolbox."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.attacks import square
from harness.attacks.cw import CW
from harness.attacks.fgsm import FGSM
from harness.attacks.losses import margin
from harness.attacks.pgd import PGD
from harness.attacks.spsa import SPSA
from harness.attacks.square import Square
from harness.types import Batch, ThreatModel

from .conftest import accuracy, attacked

EPSILON, STEP_SIZE, STEPS = 0.1, 0.02, 20
LINF = ThreatModel(epsilon=EPSILON)
POINT = 0.01 + 1e-6


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def by_torchattacks(name: str, model: nn.Module, batch: Batch, **parameters) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    attack = getattr(torchattacks, name)(model, eps=EPSILON, **parameters)
    return attack(batch.images, batch.labels)


def by_foolbox(make, model: nn.Module, batch: Batch) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.Misclassification(batch.labels)
    return make(foolbox.attacks).run(bounded, batch.images, criterion, epsilon=EPSILON)


def by_toolbox(name: str, model: nn.Module, batch: Batch, **parameters) -> Tensor:
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = getattr(evasion, name)(classifier, eps=EPSILON, batch_size=500, **parameters)
    return torch.from_numpy(attack.generate(batch.images.numpy(), batch.labels.numpy()))


def test_fgsm_is_torchattacks_to_the_pixel(digits):
    model, batch = digits
    assert torch.equal(attacked(FGSM(), *digits, LINF), by_torchattacks("FGSM", model, batch))


def test_fgsm_is_foolbox_to_the_pixel(digits):
    found = by_foolbox(lambda f: f.FGSM(random_start=False), *digits)
    assert torch.equal(attacked(FGSM(), *digits, LINF), found)


def test_fgsm_is_the_toolbox_to_the_pixel(digits):
    found = by_toolbox("FastGradientMethod", *digits)
    torch.testing.assert_close(attacked(FGSM(), *digits, LINF), found, atol=1e-7, rtol=0)


def test_pgd_without_random_start_is_torchattacks_to_the_pixel(digits):
    native = PGD(steps=5, step_size=STEP_SIZE, keep="last", random_start=False)
    found = by_torchattacks("PGD", *digits, alpha=STEP_SIZE, steps=5, random_start=False)
    same = (attacked(native, *digits, LINF) - found).abs() < 1e-6
    assert same.float().mean() > 0.999  # the two project in another order of rounding


@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "toolbox"])
def test_pgd_is_within_a_point(digits, library):
    model, batch = digits
    native = attacked(PGD(steps=STEPS, step_size=STEP_SIZE), model, batch, LINF)
    if library == "torchattacks":
        found = by_torchattacks("PGD", model, batch, alpha=STEP_SIZE, steps=STEPS)
    elif library == "foolbox":
        found = by_foolbox(lambda f: f.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS), model, batch)
    else:
        name, options = "ProjectedGradientDescentPyTorch", {"num_random_init": 1, "verbose": False}
        found = by_toolbox(name, model, batch, eps_step=STEP_SIZE, max_iter=STEPS, **options)
    assert abs(accuracy(model, native, batch) - accuracy(model, found, batch)) <= POINT


def test_cw_is_within_a_point_of_foolbox_with_that_loss(digits):
    foolbox = pytest.importorskip("foolbox")
    model, batch = digits

    class Margin(foolbox.attacks.LinfPGD):
        def get_loss_fn(self, model, labels):
            import eagerpy

            def loss(images):
                return eagerpy.astensor(margin(model(images).raw, labels.raw)).sum()

            return loss

    found = by_foolbox(lambda _: Margin(abs_stepsize=STEP_SIZE, steps=STEPS), model, batch)
    native = attacked(CW(steps=STEPS, step_size=STEP_SIZE), model, batch, LINF)
    assert abs(accuracy(model, native, batch) - accuracy(model, found, batch)) <= POINT


def test_spsa_is_within_a_point_of_torchattacks(digits):
    model, batch = digits[0], digits[1][:200]
    native = SPSA(steps=12, samples=64)
    options = {"nb_iter": native.steps, "nb_sample": native.samples // 2}
    found = by_torchattacks("SPSA", model, batch, **options)
    difference = accuracy(model, attacked(native, model, batch, LINF), batch)
    assert abs(difference - accuracy(model, found, batch)) <= POINT


def test_square_is_within_two_points_of_torchattacks(digits, monkeypatch):
    """Random searches: two points, as one seed and another differ by one. And torchattacks' squares,
    like AutoAttack's, never touch the last row and column, which here makes 4 points on their own."""
    model, batch = digits[0], digits[1][:200]

    def mean(run: Callable[[int], Tensor]) -> float:
        """Return the accuracy under an attack, the mean of four seeds."""
        return sum(accuracy(model, run(seed), batch) for seed in range(4)) / 4

    def ours() -> float:
        return mean(lambda seed: attacked(Square(queries=400), model, batch, LINF, seed=seed))

    found = mean(lambda seed: by_torchattacks("Square", model, batch, n_queries=400, seed=seed))

    whole = ours()
    squares = square._squares
    monkeypatch.setattr(
        square,
        "_squares",
        lambda draws, side, height, width: nn.functional.pad(
            squares(draws, min(side, height - 1), height - 1, width - 1), (0, 1, 0, 1)
        ),
    )
    assert abs(ours() - found) <= 2 * POINT
    assert whole <= found


def test_restarts_help_as_a_library_s_do(digits):
    model, batch = digits
    once = PGD(steps=3, step_size=0.03)
    many = dataclasses.replace(once, restarts=5)
    found = by_toolbox(
        "ProjectedGradientDescentPyTorch",
        model,
        batch,
        eps_step=0.03,
        max_iter=3,
        num_random_init=5,
        verbose=False,
    )
    native = accuracy(model, attacked(many, model, batch, LINF), batch)
    assert native <= accuracy(model, attacked(once, model, batch, LINF), batch)
    assert abs(native - accuracy(model, found, batch)) <= POINT
