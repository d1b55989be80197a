"""The toolbox's attacks through the bridge: the library's own images, its traps defused."""

from __future__ import annotations

import sys

import numpy
import pytest
import torch
from torch import nn

from harness.attacks.fgsm import FGSM
from harness.attacks.libraries.guarded import seeded
from harness.evaluation.judge import check_images
from harness.registry import attacks
from harness.types import Batch, HarnessError, ThreatModel

from .conftest import Noisy, accuracy, attacked, draws_of, view_of

evasion = pytest.importorskip("art.attacks.evasion")
LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.5, norm="l2")


def make(name, **parameters):
    return attacks.get(f"art:{name}")(**parameters)


def classifier(model):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_images_are_the_library_s(some_digits, norm):
    model, batch = some_digits
    threat = LINF if norm == "linf" else L2
    attack = make("ProjectedGradientDescentPyTorch", max_iter="5")
    ours = attacked(attack, model, batch, threat)
    options = attack.arguments(threat, len(batch))
    assert options["eps"] == threat.epsilon and options["batch_size"] == len(batch)
    with seeded(draws_of(batch)):
        theirs = evasion.ProjectedGradientDescentPyTorch(classifier(model), **options).generate(
            batch.images.numpy(), nn.functional.one_hot(batch.labels, 10).numpy()
        )
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_fgsm_is_the_native_one_to_the_pixel(digits):
    ours = attacked(make("FastGradientMethod"), *digits, LINF)
    torch.testing.assert_close(ours, attacked(FGSM(), *digits, LINF), atol=1e-7, rtol=0)


def test_random_starts_and_steps_are_set():
    """The toolbox starts at the image and steps 0.1 whatever the ball is."""
    options = make("ProjectedGradientDescent").arguments(ThreatModel(epsilon=8 / 255), 32)
    assert options["num_random_init"] == 1 and options["eps_step"] <= 8 / 255 / 4
    assert options["targeted"] is False and options["norm"] == "inf"
    given = make("ProjectedGradientDescent", num_random_init="0", eps_step="2/255")
    options = given.arguments(ThreatModel(epsilon=8 / 255, norm="l2"), 32)
    assert (options["num_random_init"], options["eps_step"], options["norm"]) == (0, 2 / 255, 2)


def test_images_stay_in_the_box(some_digits):
    model, batch = some_digits
    images = attacked(make("FastGradientMethod"), model, batch, LINF)
    assert images.min() >= 0 and images.max() <= 1
    assert check_images(images, batch.images, LINF).tolist() == [0] * len(batch)


def test_true_labels_are_given(some_digits):
    """With y=None the toolbox attacks the predicted label: a misclassified image would be walked back."""
    model, batch = some_digits
    wrong = Batch(batch.images, (model(batch.images).argmax(1) + 1) % 10, batch.ids)
    images = attacked(make("ProjectedGradientDescent", max_iter="20"), model, wrong, LINF)
    assert accuracy(model, images, wrong) == 0


def test_attacks_of_the_predicted_label_leave_misclassified_images_alone(some_digits):
    model, batch = some_digits
    wrong = Batch(batch.images, (model(batch.images).argmax(1) + 1) % 10, batch.ids)
    images = attacked(make("DeepFool", max_iter="5"), model, wrong, LINF)
    assert torch.equal(images, wrong.images)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BoundaryAttack", {"max_iter": "3"}),
        ("HopSkipJump", {"max_iter": "2", "max_eval": "100", "init_eval": "10"}),
        ("SignOPTAttack", {"max_iter": "2", "num_trial": "5", "query_limit": "100"}),
        ("SimBA", {"max_iter": "20"}),
        ("PixelAttack", {"max_iter": "2"}),
        ("ZooAttack", {"max_iter": "2"}),
        ("NewtonFool", {"max_iter": "2"}),
    ],
)
def test_what_numpy_2_or_logits_break_runs(some_digits, name, options):
    """float64 and probabilities: the guard casts the one and computes the other."""
    model, batch = some_digits[0], some_digits[1][:2]
    images = attacked(make(name, **options), model, batch, LINF)
    assert check_images(images, batch.images, ThreatModel(epsilon=1.0)).tolist() == [0] * 2


def test_autoattack_runs_without_multiprocess(some_digits):
    assert "multiprocess" not in sys.modules
    large, batch = ThreatModel(epsilon=0.5), some_digits[1][:3]
    images = attacked(make("AutoAttack"), some_digits[0], batch, large)
    assert check_images(images, batch.images, large).tolist() == [0] * 3
    assert accuracy(some_digits[0], images, batch) == 0
    assert "multiprocess" not in sys.modules


def test_thresholds_stay_in_the_ball(some_digits):
    """It moves whole grey values and rounds the pixels down."""
    attack = make("ThresholdAttack", max_iter="1")
    images = attacked(attack, some_digits[0], some_digits[1][:2], LINF)
    assert check_images(images, some_digits[1].images[:2], LINF).tolist() == [0] * 2
    tiny = ThreatModel(epsilon=1 / 255)
    with pytest.raises(HarnessError, match="at least 2/255"):
        attack.check(view_of(*some_digits, tiny, access="scores"), tiny)


def test_saliency_maps_aim_at_another_class(some_digits):
    model, batch = some_digits[0], some_digits[1][:4]
    images = attacked(make("SaliencyMapMethod"), model, batch, LINF)
    assert (images != batch.images).any()


def test_files_of_the_working_directory_stay_out():
    with pytest.raises(HarnessError, match=r"numpy\.mat"):
        make("GeoDA")


def test_random_state_is_untouched(some_digits):
    before = numpy.random.get_state()[1].copy()
    attack = make("SquareAttack", max_iter="10")
    one = attacked(attack, some_digits[0], some_digits[1][:5], LINF, Noisy())
    numpy.testing.assert_array_equal(before, numpy.random.get_state()[1])
    numpy.random.rand()
    assert torch.equal(one, attacked(attack, some_digits[0], some_digits[1][:5], LINF, Noisy()))
