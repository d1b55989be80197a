"""A network that others trained and published (ccexam, MIT licence): every library says the same of it."""

from __future__ import annotations

import warnings
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import harness
from harness.datasets.data import load

ccexam = pytest.importorskip("ccexam.models", reason="pip install 'robustness-harness[test]'")

NORMALISATION = "0.1307/0.3081"
EPSILON, STEP, STEPS = 0.015, 0.003, 20
COUNT = 256


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Return the published network: normalised pixels to logits, without gradients of its weights."""
    model = ccexam.MNISTNet(28)
    weights = files("ccexam").joinpath("weights/mnist.pth")
    model.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def whole(network: nn.Module) -> nn.Module:
    """Return the network with its normalisation inside: pixels in [0, 1] to logits."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner((images - 0.1307) / 0.3081)
            return logits

    return Whole().eval()


@pytest.fixture(scope="module")
def digits(whole: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (images, labels): real digits of another source that the network gets right."""
    batch = load("digits", "train").batch(slice(None))
    right = whole(batch.images).argmax(dim=1) == batch.labels
    return batch.images[right][:COUNT], batch.labels[right][:COUNT]


def test_the_published_accuracy_is_found(network: nn.Module, mnist_folder: Path) -> None:
    images, labels = harness.load_images("mnist", data_dir=mnist_folder)
    with torch.no_grad():
        right = network((images - 0.1307) / 0.3081).argmax(dim=1) == labels
    assert float(right.float().mean()) > 0.99
    found = harness.evaluate(
        network,
        images[:1000],
        labels[:1000],
        attack="clean",
        normalisation=NORMALISATION,
        quiet=True,
    )
    assert found.records[0].clean.mean == pytest.approx(float(right[:1000].float().mean()))


def test_pgd_leaves_what_other_libraries_leave(
    whole: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    import foolbox
    import torchattacks

    images, labels = digits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torchattacks.PGD(whole, eps=EPSILON, alpha=STEP, steps=STEPS)(images, labels)
    one = float((whole(theirs).argmax(dim=1) == labels).float().mean())

    wrapped = foolbox.PyTorchModel(whole, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    _, theirs, _ = attack(wrapped, images, labels, epsilons=EPSILON)
    other = float((whole(theirs).argmax(dim=1) == labels).float().mean())

    ours = harness.evaluate(
        whole,
        images,
        labels,
        attack=f"pgd(steps={STEPS},step_size={STEP},keep=last)",
        epsilon=EPSILON,
        quiet=True,
    )
    assert 0.05 < one < 0.95, "the comparison says nothing where all or none fall"
    assert ours.records[0].robust.mean == pytest.approx(one, abs=0.01)
    assert ours.records[0].robust.mean == pytest.approx(other, abs=0.01)
