"""Pixels without a gradient that change what the classifier sees."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.defenses.menet import NuclearNormMENet, SoftImputeMENet, USVTMENet
from harness.defenses.thermometer import Thermometer
from harness.defenses.tv_minimization import TotalVariationMinimisation
from harness.defenses.vanilla import Vanilla
from harness.random import Draws, Role
from harness.targets import dead_pixels
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Batch, Defense, ThreatModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfClipped(Defense):
    """Lifts the left half of the image out of the box and clips it there."""

    backward: ClassVar = "identity"

    def transform(self, images, draws, auxiliary=None):
        half = images.shape[3] // 2
        lifted = (4 * images[..., :half] - 1.5).clamp(0.0, 1.0)
        return torch.cat((lifted, images[..., half:]), dim=3)


def strokes() -> Tensor:
    """Black images with white strokes, as digits are."""
    found = torch.zeros(4, 1, 16, 16)
    for number in range(4):
        found[number, :, 3 : 13 - number, 5 : 8 + number] = 1.0
    return found


def share(defense: Defense, backward: str, step: float = 0.3) -> float:
    images = strokes()
    draws = Draws(0, torch.arange(4), Role.ATTACK)
    heard, dead = dead_pixels.probe(
        Defended(nn.Identity(), defense, 10), images, draws, backward, step
    )
    assert (dead <= heard).all() and heard.sum() > 0
    return float(dead.sum() / heard.sum())


def test_exact_usvt_is_blind_where_the_clip_cuts():
    assert share(USVTMENet(), "exact") > 0.5


@pytest.mark.parametrize("backward", ["identity", "mask-aware", "straight", "declared"])
@pytest.mark.parametrize("defense", [USVTMENet(), NuclearNormMENet(), SoftImputeMENet()])
def test_other_passes_see_every_pixel_that_the_mask_keeps(defense, backward):
    assert share(defense, backward) == 0


@pytest.mark.parametrize(
    ("defense", "backward"),
    [
        (Vanilla(), "exact"),
        (Thermometer(), "declared"),
        (TotalVariationMinimisation(), "identity"),
        (NuclearNormMENet(), "exact"),
    ],
)
def test_sound_passes_are_not_accused(defense, backward):
    assert share(defense, backward) < 0.1


@pytest.mark.parametrize("defense", [Thermometer(), TotalVariationMinimisation()])
def test_a_transformation_without_gradient_is_dead_everywhere(defense):
    assert share(defense, "exact") == 1


def test_the_share_is_that_of_the_clipped_half():
    assert share(HalfClipped(), "identity") == 0
    # Black pixels of the left half go from -1.5 to -0.3: clipped before and after, so nothing is heard.
    assert share(HalfClipped(), "exact") < 0.2
    # At half of the box they come out of the clip, and the gradient knows nothing of it.
    assert 0.3 < share(HalfClipped(), "exact", step=0.5) < 0.7


def test_a_view_probes_once_for_each_pass():
    batch = Batch(strokes(), torch.zeros(4).long(), torch.arange(4))
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    defended = Defended(model, USVTMENet(), 10).frozen()
    view = View(defended, batch, ThreatModel(epsilon=0.3), "gradients")
    draws = Draws(0, batch.ids, Role.ATTACK)
    for step in range(3):
        view.gradient(batch.images, draws.at(step=step), lambda z: z[:, 0], backward="exact")
    evidence = view.evidence
    assert 0 < evidence.probed_pixels.sum() <= 4 * dead_pixels.PIXELS
    assert evidence.dead_pixels.sum() > 0.5 * evidence.probed_pixels.sum()
    assert (evidence.forwards == 3).all()  # the probe is the view's own, and no query
