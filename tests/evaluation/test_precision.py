"""Half precision is for the search: the classifier alone, and never a doubtful success."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

from harness.cells.cells import Cell, Precision, Target, TrainingPlan
from harness.defenses.menet import NuclearNormMENet
from harness.defenses.vanilla import Vanilla
from harness.paper.measured import cell_name
from harness.random import Draws, Role
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.targets.defended import Defended
from harness.targets.model_store import ModelStore
from harness.targets.training import Stop
from harness.targets.views import View
from harness.types import Batch, Spec, ThreatModel


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


@pytest.mark.parametrize(
    ("search", "cpu", "cuda"),
    [
        ("auto", torch.float32, torch.bfloat16),
        ("float32", torch.float32, torch.float32),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_what_the_search_computes_in(
    search: Precision, cpu: torch.dtype, cuda: torch.dtype
) -> None:
    defended = Defended(Linear(), NuclearNormMENet(), 2, search=search)
    assert defended.precision == torch.float32  # the judge's
    assert defended.quick(torch.device("cpu")).precision == cpu
    assert defended.quick(torch.device("cuda")).precision == cuda


def test_scores_and_labels_are_exact() -> None:
    """Attacks take differences of scores, which half precision drowns."""
    batch = Batch(torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), torch.arange(2))
    model = Linear()
    defended = Defended(model, Vanilla(), 2, search="bfloat16").frozen()
    view = View(defended, batch, ThreatModel(epsilon=0.1), "scores")
    draws = Draws(0, batch.ids, Role.ATTACK)
    view.logits(batch.images, draws)
    assert model.computed == torch.float32
    view.labels(batch.images, draws)
    assert model.computed == torch.float32


@pytest.mark.parametrize(
    ("margin", "single", "half"), [(0.2, 0.0, 0.0), (0.01, 0.0, 1.0), (-0.01, 1.0, 1.0)]
)
def test_a_success_within_rounding_is_none(margin: float, single: float, half: float) -> None:
    """Four roundings of a logit near 1 are 0.03: a smaller margin cannot let an image leave."""
    images = torch.rand(1, 1, 4, 4)
    batch = Batch(images, torch.zeros(1, dtype=torch.long), torch.arange(1))
    draws = Draws(0, batch.ids, Role.ATTACK)

    def look(search: Precision) -> tuple[float, int]:
        defended = Defended(Linear(margin), Vanilla(), 2, search=search).frozen()
        view = View(defended, batch, ThreatModel(epsilon=0.1), "gradients")
        found = view.gradient(images, draws, lambda logits: logits[:, 1])
        return float(found.correct), int(view.evidence.first_fooled)

    assert look("float32") == (single, -1 if single else 1)
    assert look("bfloat16") == (half, -1 if half else 1)


def test_a_precision_that_nobody_asked_for_leaves_no_mark(tmp_path: Path) -> None:
    """Names and keys are those of the time before there was a choice; another one is another cell."""
    model_store = ModelStore(
        store=Store(tmp_path), device=torch.device("cpu"), reporter=Silent(), stop=Stop()
    )
    target = Target(
        dataset="digits",
        model=Spec("small-cnn"),
        defense=Spec("vanilla"),
        training=TrainingPlan(epochs=1),
    )
    cell = Cell(target=target, attack=Spec("clean"), threat=ThreatModel(epsilon=0.1))
    assert cell_name(cell) == "8de2fdb7f60a2f4311f4"
    assert "precision" not in msgspec.to_builtins(model_store.resolved(target))
    half = dataclasses.replace(target, precision="bfloat16")
    assert model_store.resolved(half).precision == "bfloat16"
    assert model_store.key(half) != model_store.key(target)
    assert cell_name(dataclasses.replace(cell, target=half)) != cell_name(cell)
    assert (target.schooling, half.schooling) == ("1 epoch", "1 epoch in bfloat16")
