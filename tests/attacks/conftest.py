"""Victims with known answers, seen through the real view."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.random import Draws, OpaqueDraws, Role
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Attack, Batch, Defense, ThreatModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Defense):
    """The classifier alone."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noisy(Defense):
    """Adds normal noise."""

    randomised: ClassVar[bool] = True
    sigma: float = 0.1

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return images + self.sigma * draws.normal(*images.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding(Defense):
    """Rounds to multiples of 1 / levels: its own gradient is zero, its declared one the identity."""

    backward: ClassVar = "identity"
    differentiable: ClassVar[bool] = False
    levels: int = 8

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return torch.round(images * self.levels) / self.levels


def draws_of(batch: Batch, seed: int = 0) -> Draws:
    return Draws(seed, batch.ids, Role.ATTACK)


def view_of(
    model: nn.Module, batch: Batch, threat: ThreatModel, defense: Defense | None = None, **options
) -> View:
    options = {"access": "gradients", "classes": 10, **options}
    defended = Defended(model, defense or Plain(), options["classes"]).frozen()
    return View(defended, batch, threat, options["access"])


def attacked(
    attack: Attack,
    model: nn.Module,
    batch: Batch,
    threat: ThreatModel,
    defense: Defense | None = None,
    seed: int = 0,
) -> Tensor:
    """The images that the attack returns against the defended model, with the access it declares."""
    view = view_of(model, batch, threat, defense, access=attack.access)
    return attack.perturb(view, batch, threat, draws_of(batch, seed)).images


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, batch: Batch) -> float:
    return (model(images).argmax(dim=1) == batch.labels).float().mean().item()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def linear() -> nn.Module:
    """Logits that are linear in the 1 x 4 x 4 image, for 2 classes."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(16, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 16, generator=generator))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture
def linear_batch() -> Batch:
    """32 images of 1 x 4 x 4; labels 0 and 1; ids that are not positions."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(32, 1, 4, 4, generator=generator)
    return Batch(images, torch.arange(32) % 2, 1000 + 7 * torch.arange(32))


@pytest.fixture(scope="session")
def digits() -> tuple[nn.Module, Batch]:
    """A small trained network on scikit-learn's digits (1 x 8 x 8), and 500 test images."""
    sklearn = pytest.importorskip("sklearn.datasets")
    torch.set_num_threads(1)
    loaded = sklearn.load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16.0
    labels = torch.tensor(loaded.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(8):
            for index in torch.randperm(1200).split(100):
                loss = nn.functional.cross_entropy(model(images[index]), labels[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    model.zero_grad()
    batch = Batch(images[1200:1700], labels[1200:1700], torch.arange(1200, 1700))
    return model.eval().requires_grad_(False), batch


@pytest.fixture
def some_digits(digits: tuple[nn.Module, Batch]) -> tuple[nn.Module, Batch]:
    model, batch = digits
    return model, batch[:40]


def places(monkeypatch) -> list[Draws]:
    """The draws under which the defense `Noisy` is asked from now on; its images stay as they are."""
    seen: list[Draws] = []
    hidden = Defended._inference_draws

    def noted(self: Defended, images: Tensor, draws: Draws) -> OpaqueDraws:
        seen.append(draws)
        return hidden(self, images, draws)

    monkeypatch.setattr(Defended, "_inference_draws", noted)
    monkeypatch.setattr(Noisy, "transform", lambda self, images, draws, *_: images)
    return seen
