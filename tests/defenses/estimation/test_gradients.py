"""Exact backward passes against finite differences, and no NaN where derivatives do not exist."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.defenses.estimation import Estimate, nuclear_norm, reconstruct, soft_impute, usvt

Estimator = Callable[[Tensor, Tensor], Estimate]

ESTIMATORS: dict[str, Estimator] = {
    "nuclear": functools.partial(nuclear_norm, mu=0.6, gap=1e-10),
    "soft": functools.partial(soft_impute, gap=1e-10),
    "soft kept": functools.partial(soft_impute, gap=1e-10, keep_observed=True),
    "soft fixed": functools.partial(soft_impute, gap=1e-10, shrinkage=0.3),
    "usvt": functools.partial(usvt, rank_fraction=0.5),
    "usvt threshold": functools.partial(usvt, rule="threshold", eta=-1.2),
}


def low_rank(seed: int, count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    random = functools.partial(torch.rand, generator=generator, dtype=torch.float64)
    signal = random(count, height, 3) @ random(count, 3, width)
    return signal - 0.7 + 0.1 * random(count, height, width)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shape", [(7, 7), (6, 9), (9, 6)])
@pytest.mark.parametrize("p", [0.7, 1.0])
def test_finite_differences(name: str, shape: tuple[int, int], p: float) -> None:
    estimator = ESTIMATORS[name]
    observed = low_rank(0, 3, *shape)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(observed.shape, generator=generator) < p
    weights = torch.randn(observed.shape, generator=generator, dtype=torch.float64)
    given = observed.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((estimator(given, mask).value * weights).sum(), given)
    assert gradient[~mask].eq(0).all()
    for _ in range(3):
        along = torch.randn(observed.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (
            (estimator(observed + step * along, mask).value * weights).sum((1, 2))
            for step in (1e-4, -1e-4)
        )
        torch.testing.assert_close(
            (gradient * along).sum((1, 2)), (ahead - behind) / 2e-4, rtol=2e-4, atol=1e-4
        )


def test_the_gradient_with_respect_to_mu() -> None:
    observed = low_rank(2, 4, 8, 10)
    mask = torch.rand(observed.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    mu = torch.full((4,), 0.6, dtype=torch.float64, requires_grad=True)
    value = nuclear_norm(observed, mask, mu=mu, gap=1e-10).value
    (gradient,) = torch.autograd.grad(value.sin().sum(), mu)
    ahead, behind = (
        nuclear_norm(observed, mask, mu=0.6 + h, gap=1e-10).value.sin().sum((1, 2))
        for h in (1e-4, -1e-4)
    )
    torch.testing.assert_close(gradient, (ahead - behind) / 2e-4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*ESTIMATORS, "paper's rule"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_nan_at_repeated_or_zero_singular_values(name: str, dtype: torch.dtype) -> None:
    estimator = {
        **ESTIMATORS,
        "nuclear": functools.partial(nuclear_norm, gap=1e-4),
        "soft": functools.partial(soft_impute, gap=1e-4),
        "soft kept": functools.partial(soft_impute, gap=1e-4, keep_observed=True),
        "soft fixed": functools.partial(soft_impute, gap=1e-4, shrinkage=1.0),
        "paper's rule": functools.partial(soft_impute, tolerance=1e-3),
    }[name]
    hard = torch.stack(
        (
            torch.zeros(8, 8),
            torch.ones(8, 8),
            torch.eye(8),
            torch.eye(8).flip(0) * 0.5,
            torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)),
        )
    ).to(dtype)
    for mask in (torch.ones(8, 8), torch.zeros(8, 8), torch.eye(8), torch.ones(8, 8).triu()):
        given = hard.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(estimator(given, mask).value.sum(), given)
        assert gradient.isfinite().all()
        assert gradient.dtype == dtype


def test_the_adjoint_is_solved_for_each_image_alone() -> None:
    observed = low_rank(3, 5, 8, 12)
    mask = torch.rand(observed.shape, generator=torch.Generator().manual_seed(3)) < 0.6

    def gradient(x: Tensor, m: Tensor, chunk: int) -> Tensor:
        x = x.clone().requires_grad_()
        value = nuclear_norm(x, m, mu=0.5, gap=1e-10, chunk=chunk).value
        return torch.autograd.grad(value.square().sum(), x)[0]

    whole = gradient(observed, mask, 5)
    torch.testing.assert_close(gradient(observed, mask, 2), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient(observed[1], mask[1], 1), whole[1], rtol=0, atol=1e-6)


def images_and_mask(channels: str) -> tuple[Tensor, Tensor]:
    images = (low_rank(4, 6, 8, 10).view(2, 3, 8, 10) + 0.7).clamp(0.1, 0.9)
    planes = 3 if channels == "concat" else 1
    return images, torch.rand(2, planes, 8, 10, generator=torch.Generator().manual_seed(4)) < 0.7


@pytest.mark.parametrize("channels", ["concat", "separate"])
def test_reconstruct_offers_three_backward_passes(channels: str) -> None:
    images, mask = images_and_mask(channels)
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(5)).double()
    estimator = functools.partial(nuclear_norm, mu=0.6, gap=1e-10)

    def run(x: Tensor, backward: str) -> Tensor:
        return reconstruct(x, mask, estimator=estimator, channels=channels, backward=backward)

    given = images.clone().requires_grad_()
    outputs = {backward: run(given, backward) for backward in ("identity", "exact", "none")}
    assert outputs["identity"].equal(outputs["none"])
    torch.testing.assert_close(outputs["exact"], outputs["none"])
    assert not outputs["none"].requires_grad
    (identity,) = torch.autograd.grad((outputs["identity"] * weights).sum(), given)
    assert identity.equal(weights)
    (exact,) = torch.autograd.grad((outputs["exact"] * weights).sum(), given)
    along = torch.randn(images.shape, generator=torch.Generator().manual_seed(6)).double()
    ahead, behind = ((run(images + h * along, "none") * weights).sum() for h in (1e-5, -1e-5))
    torch.testing.assert_close((exact * along).sum(), (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-3)


def test_identity_runs_the_estimator_once_and_without_a_graph() -> None:
    images, mask = images_and_mask("concat")
    seen: list[bool] = []

    def estimator(observed: Tensor, keep: Tensor) -> Estimate:
        seen.append(observed.requires_grad or torch.is_grad_enabled())
        return nuclear_norm(observed, keep)

    given = images.requires_grad_()
    reconstruct(given, mask, estimator=estimator, backward="identity").sum().backward()
    assert seen == [False]
