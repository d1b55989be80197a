"""Half precision is for the search: the classifier alone, and never a doubtful success."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from defenses.menet import NuclearNormMENet
from defenses.vanilla import Vanilla
from harness.defended import Defended
from harness.random import Draws, Role
from harness.types import Batch, ThreatModel
from harness.views import View


class Linear(nn.Module):
    """Logits 1 and 1 + margin, whatever the image; keeps what it was given and computed in."""

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 2)
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(torch.tensor([1.0, 1.0 + margin]))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        logits: Tensor = self.linear(images.flatten(1))
        self.computed = logits.dtype
        return logits


def test_only_the_classifier_computes_in_half_precision() -> None:
    model, defense = Linear(), NuclearNormMENet(estimates=0)
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    draws = Draws(0, torch.arange(3), Role.ATTACK)
    exact = Defended(model, defense, 2)
    low = dataclasses.replace(exact, precision=torch.bfloat16)
    for look in (exact, low):
        assert look.logits(images, draws).dtype == torch.float32
    assert model.computed == torch.bfloat16
    assert model.seen[0].dtype == model.seen[1].dtype == torch.float32
    assert torch.equal(*model.seen)


def test_a_processor_searches_in_single_precision() -> None:
    defended = Defended(Linear(), NuclearNormMENet(), 2)
    assert defended.quick(torch.device("cpu")) is defended
    assert defended.quick(torch.device("cuda")).precision == torch.bfloat16


@pytest.mark.parametrize(
    ("margin", "single", "half"), [(0.2, 0.0, 0.0), (0.01, 0.0, 1.0), (-0.01, 1.0, 1.0)]
)
def test_a_success_within_rounding_is_none(
    monkeypatch: pytest.MonkeyPatch, margin: float, single: float, half: float
) -> None:
    """Four roundings of a logit near 1 are 0.03: a smaller margin cannot let an image leave."""
    images = torch.rand(1, 1, 4, 4)
    batch = Batch(images, torch.zeros(1, dtype=torch.long), torch.arange(1))
    draws = Draws(0, batch.ids, Role.ATTACK)

    def look() -> tuple[float, int]:
        defended = Defended(Linear(margin), Vanilla(), 2).frozen()
        view = View(defended, batch, ThreatModel(epsilon=0.1), "gradients")
        found = view.gradient(images, draws, lambda logits: logits[:, 1])
        return float(found.correct), int(view.evidence.first_fooled)

    assert look() == (single, -1 if single else 1)
    monkeypatch.setattr(  # a processor that searches as a GPU does
        Defended, "quick", lambda self, device: dataclasses.replace(self, precision=torch.bfloat16)
    )
    assert look() == (half, -1 if half else 1)
