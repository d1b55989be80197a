"""The native Auto-PGD against pyautoattack's own loop on the same deterministic model, in one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.apgd import APGD, APGDDLR
from harness.defenses.vanilla import Vanilla
from harness.random import Draws, Role
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Batch, ThreatModel

STEPS = 100
POINT = 0.01


def victim() -> tuple[nn.Module, Batch]:
    """A small network trained on scikit-learn's digits under FGSM, and 256 test images."""
    loaded = pytest.importorskip("sklearn.datasets").load_digits()
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
        for _ in range(10):
            for index in torch.randperm(1200).split(100):
                pixels = images[index].clone().requires_grad_(True)
                loss = nn.functional.cross_entropy(model(pixels), labels[index])
                (slope,) = torch.autograd.grad(loss, pixels)
                hard = (images[index] + 0.1 * slope.sign()).clamp(0, 1)
                loss = nn.functional.cross_entropy(model(hard), labels[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    batch = Batch(images[1200:1456], labels[1200:1456], torch.arange(256))
    return model.eval().requires_grad_(False), batch


def robust(model: nn.Module, labels: Tensor, *attacked: Tensor) -> float:
    """Return the share of images that stay right under each of several runs of an attack."""
    with torch.no_grad():
        right = [model(images).argmax(dim=1) == labels for images in attacked]
    return float(torch.stack(right).all(dim=0).float().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("native", "loss"), [(APGD, "ce"), (APGDDLR, "dlr")])
def test_robust_accuracy_is_that_of_pyautoattack(native, loss, norm):
    package = pytest.importorskip("pyautoattack")
    model, batch = victim()
    threat = ThreatModel(epsilon=0.15 if norm == "linf" else 0.9, norm=norm)
    found: list[Tensor] = []
    references: list[Tensor] = []
    for seed in (0, 1):  # of one random start alone, three images more or less fall
        reference = package.autopgd_base.APGDAttack(
            model,
            n_iter=STEPS - 1,  # its n iterations take n + 1 gradients
            norm={"linf": "Linf", "l2": "L2"}[norm],
            eps=threat.epsilon,
            loss=loss,
            device="cpu",
            seed=seed,
        )
        references.append(reference.perturb(batch.images, batch.labels))
        attack = native(steps=STEPS)
        view = View(Defended(model, Vanilla(), 10).frozen(), batch, threat, attack.access)
        found.append(
            attack.perturb(view, batch, threat, Draws(seed, batch.ids, Role.ATTACK)).images
        )
    theirs, ours = robust(model, batch.labels, *references), robust(model, batch.labels, *found)
    clean = robust(model, batch.labels, batch.images)
    assert 0.1 < theirs < clean - 0.2  # a model on which both fail, or both win, would show nothing
    assert abs(ours - theirs) <= POINT
