"""USVT against the definition, one singular value decomposition an image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.defenses.estimation import usvt


def definition(observed: Tensor, mask: Tensor, kept: int) -> Tensor:
    u, s, v = torch.linalg.svd(observed * mask, full_matrices=False)
    fraction = mask.double().mean()
    return (u[:, :kept] * s[:kept]) @ v[:kept] / fraction


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 16),
    width=st.integers(1, 16),
    fraction=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_the_fixed_rule_keeps_the_largest(
    height: int, width: int, fraction: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    observed = torch.rand(height, width, generator=generator, dtype=torch.float64) * 2 - 1
    mask = torch.rand(height, width, generator=generator) < 0.7
    mask[0, 0] = True
    kept = int(fraction * height)
    ours = usvt(observed, mask, rank_fraction=fraction).value
    torch.testing.assert_close(ours, definition(observed, mask, kept), rtol=0, atol=1e-6)


def test_the_threshold_rule_is_chatterjees() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.rand(6, 20, 1, generator=generator) @ torch.rand(6, 1, 30, generator=generator)
    observed = (
        (
            signal * 3 * (torch.arange(6) > 0)[:, None, None]
            + 0.2 * torch.randn(6, 20, 30, generator=generator)
        )
        .double()
        .clamp(-1, 1)
    )
    mask = torch.rand(observed.shape, generator=generator) < 0.8
    ours = usvt(observed, mask, rule="threshold").value
    for index, (image, seen, value) in enumerate(zip(observed, mask, ours, strict=True)):
        singular = torch.linalg.svdvals(image * seen)
        kept = int((singular >= 2.02 * (30 * seen.double().mean()).sqrt()).sum())
        assert kept == int(index > 0)
        torch.testing.assert_close(value, definition(image, seen, kept), rtol=0, atol=1e-9)


def test_the_estimate_says_that_there_is_no_gap() -> None:
    estimate = usvt(torch.rand(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
    assert estimate.value.shape == (2, 3, 8, 8)
    assert estimate.converged.shape == estimate.iterations.shape == (2, 3)
    assert estimate.converged.all()
    assert estimate.gap.isnan().all()


@pytest.mark.parametrize("rule", ["fixed", "threshold"])
def test_nothing_observed_gives_zero(rule: str) -> None:
    assert usvt(torch.rand(2, 8, 9), torch.zeros(2, 8, 9), rule=rule).value.eq(0).all()


def test_single_precision_and_chunks() -> None:
    observed = torch.rand(10, 28, 28) * 2 - 1
    mask = torch.rand(10, 28, 28) < 0.5
    single = usvt(observed, mask, chunk=3).value
    double = usvt(observed.double(), mask).value
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)
