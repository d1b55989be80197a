"""ME-Net's backward passes: closed forms on small matrices, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.defenses.menet import MENet, NuclearNormMENet, SoftImputeMENet, USVTMENet
from harness.random import Draws, Role
from harness.targets.defended import Defended
from harness.types import HarnessError

IDS = torch.tensor([5, 17, 3])
PLACE = Draws(0, IDS, Role.ATTACK)
WHOLE = USVTMENet(rank_fraction=1.0)  # every singular value stays: zero-fill and divide
DEFENSES = [USVTMENet(), NuclearNormMENet(gap=1e-5), SoftImputeMENet(gap=1e-5)]


def images(spread: float = 1.0, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.5 + spread * (torch.rand(3, channels, 6, 6, generator=generator) - 0.5)


def mask_of(defense: MENet, pixels: Tensor) -> Tensor:
    planes = pixels.shape[1] if defense.channels == "concat" else 1
    return PLACE.bernoulli(
        defense.inference_probability, planes, *pixels.shape[2:], lane="mask"
    ).expand_as(pixels)


def passed(defense: MENet, backward: str, pixels: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """(the output, the gradient of <output, upper> along `backward`)"""
    leaf = pixels.clone().requires_grad_(True)
    out = Defended(nn.Identity(), defense, 10).logits(leaf, PLACE, backward=backward)
    (slope,) = torch.autograd.grad((out * upper).sum(), leaf)
    return out.detach(), slope


def upper_of(pixels: Tensor) -> Tensor:
    return torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", ["concat", "separate"])
@pytest.mark.parametrize("defense", [WHOLE, *DEFENSES])
def test_mask_aware_is_the_output_gradient_times_mask_over_keep_probability(defense, channels):
    defense = type(defense)(channels=channels)
    pixels = images(channels=3)
    upper = upper_of(pixels)
    _, slope = passed(defense, "mask-aware", pixels, upper)
    expected = upper * mask_of(defense, pixels) / defense.inference_probability
    torch.testing.assert_close(slope, expected)


def test_mask_aware_is_the_identity_on_average():
    pixels, total = images()[:1].expand(2000, -1, -1, -1), 0
    leaf = pixels.clone().requires_grad_(True)
    draws = Draws(0, torch.arange(2000), Role.ATTACK)
    out = Defended(nn.Identity(), WHOLE, 10).logits(leaf, draws, backward="mask-aware")
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    total = slope.mean(dim=0)
    assert (total - 1).abs().max() < 0.1  # 4 standard errors


def test_straight_through_whole_usvt_is_mask_over_the_observed_share():
    pixels = images()
    upper, mask = upper_of(pixels), mask_of(WHOLE, images())
    share = mask.float().mean(dim=(1, 2, 3), keepdim=True)
    _, slope = passed(WHOLE, "straight", pixels, upper)
    torch.testing.assert_close(slope, upper * mask / share, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("defense", DEFENSES)
def test_straight_is_exact_where_nothing_is_clipped(defense):
    pixels = images(spread=0.2)
    out, exact = passed(defense, "exact", pixels, upper_of(pixels))
    assert out.min() > 0 and out.max() < 1
    _, straight = passed(defense, "straight", pixels, upper_of(pixels))
    torch.testing.assert_close(straight, exact)


def test_straight_keeps_the_gradient_of_clipped_entries():
    """Whole USVT, entries far from grey: the exact gradient is zero exactly where the clip cuts."""
    pixels = images().round()  # black and white: -1 / share and 1 / share leave the box
    upper, mask = upper_of(pixels), mask_of(WHOLE, pixels)
    _, exact = passed(WHOLE, "exact", pixels, upper)
    _, straight = passed(WHOLE, "straight", pixels, upper)
    assert exact.abs().max() < 1e-6  # a dropped entry is grey and unclipped, and hears no pixel
    assert ((straight.abs() > 1e-6) == mask).all()


@pytest.mark.parametrize("backward", ["exact", "straight"])
@pytest.mark.parametrize("defense", [WHOLE, USVTMENet()])
def test_finite_differences_on_unclipped_entries(defense, backward):
    pixels = images(spread=0.3)
    upper, step = upper_of(pixels), 1e-2
    out, slope = passed(defense, backward, pixels, upper)
    assert out.min() > 0.02 and out.max() < 0.98
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        way = torch.randn(pixels.shape, generator=generator)
        way = way / way.abs().max()
        ahead, back = (
            (defense.transform(pixels + sign * step * way, PLACE) * upper).sum(dim=(1, 2, 3))
            for sign in (1, -1)
        )
        found = (ahead - back) / (2 * step)
        predicted = (slope * way).sum(dim=(1, 2, 3))
        torch.testing.assert_close(predicted, found, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backward", ["identity", "exact", "mask-aware", "straight"])
@pytest.mark.parametrize("defense", DEFENSES)
def test_the_forward_is_the_same_along_every_pass(defense, backward):
    out, _ = passed(defense, backward, images(), upper_of(images()))
    torch.testing.assert_close(out, defense.transform(images(), PLACE), atol=1e-3, rtol=0)


def test_a_pass_that_is_not_offered_is_refused_with_those_that_are():
    with pytest.raises(
        HarnessError, match="'sideways': it offers declared, exact, identity, mask-aware"
    ):
        passed(WHOLE, "sideways", images(), upper_of(images()))
