"""Soft-Impute: the paper's iteration, and the same optimum by the certified solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from harness.defenses.estimation import nuclear_norm, soft_impute


def problem(count: int = 12, p: float = 0.6) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(load_digits().images[:count]) / 8 - 1
    observed = torch.nn.functional.interpolate(images[:, None], size=(18, 24), mode="bilinear")[
        :, 0
    ]
    mask = torch.rand(observed.shape, generator=torch.Generator().manual_seed(0)) < p
    return observed, mask


def paper(observed: Tensor, mask: Tensor, shrinkage: float, steps: int) -> Tensor:
    """One image, `steps` rounds of Algorithm 1."""
    value = torch.zeros_like(observed)
    for _ in range(steps):
        u, s, v = torch.linalg.svd(torch.where(mask, observed, value), full_matrices=False)
        value = (u * (s - shrinkage).clamp_min(0)) @ v
    return value


def test_the_papers_rule_runs_the_papers_iteration() -> None:
    observed, mask = problem()
    estimate = soft_impute(observed, mask, shrinkage=0.3, tolerance=1e-3)
    assert estimate.converged.all()
    assert len(estimate.iterations.unique()) > 1  # each image stops by itself
    for image, seen, value, steps in zip(
        observed, mask, estimate.value, estimate.iterations, strict=True
    ):
        torch.testing.assert_close(value, paper(image, seen, 0.3, int(steps)), rtol=0, atol=1e-8)
        unknown = [paper(image, seen, 0.3, int(steps) - back) * ~seen for back in (0, 1, 2)]
        assert (unknown[0] - unknown[1]).norm() <= 1e-3 * unknown[1].norm()
        assert (unknown[1] - unknown[2]).norm() > 1e-3 * unknown[2].norm()


def test_both_roads_lead_to_one_optimum() -> None:
    observed, mask = problem()
    exact = soft_impute(observed, mask, gap=1e-9)
    long = soft_impute(observed, mask, tolerance=1e-9, max_iterations=5000)
    torch.testing.assert_close(long.value, exact.value, rtol=0, atol=1e-5)
    assert (long.gap < 1e-5).all()
    short = soft_impute(observed, mask, tolerance=1e-2)
    assert (short.gap > long.gap).all()


def test_the_papers_iteration_never_increases_the_objective() -> None:
    observed, mask = problem()
    before = torch.full((len(observed),), torch.inf, dtype=torch.float64)
    for steps in (1, 2, 3, 5, 8, 13, 21):
        value = soft_impute(
            observed, mask, shrinkage=0.3, tolerance=1e-9, max_iterations=steps
        ).value
        now = 0.3 * torch.linalg.svdvals(value).sum(-1)
        now = now + ((value - observed) * mask).square().sum((1, 2)) / 2
        assert (now <= before).all()
        before = now


def test_the_default_threshold_is_a_fiftieth_of_the_largest_singular_value() -> None:
    observed, mask = problem()
    largest = torch.linalg.svdvals(observed * mask)[:, 0]
    default = soft_impute(observed, mask, gap=1e-8).value
    given = soft_impute(observed, mask, shrinkage=largest / 50, gap=1e-8).value
    torch.testing.assert_close(default, given, rtol=0, atol=1e-7)
    nuclear = nuclear_norm(observed, mask, mu=largest / 25, gap=1e-8).value
    torch.testing.assert_close(default, nuclear, rtol=0, atol=1e-7)


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_observed_entries_are_kept_verbatim_only_when_asked(tolerance: float | None) -> None:
    observed, mask = problem()
    kept = soft_impute(observed, mask, keep_observed=True, tolerance=tolerance).value
    free = soft_impute(observed, mask, tolerance=tolerance).value
    assert kept[mask].equal(observed[mask])
    assert kept[~mask].equal(free[~mask])
    assert not free[mask].equal(observed[mask])


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_nothing_and_everything_observed(tolerance: float | None) -> None:
    observed, _ = problem(3)
    nothing = soft_impute(observed, torch.zeros_like(observed), tolerance=tolerance)
    assert nothing.value.eq(0).all()
    assert nothing.converged.all()
    everything = soft_impute(
        observed, torch.ones_like(observed), shrinkage=0.4, tolerance=tolerance, gap=1e-9
    )
    expected = paper(observed[0], torch.ones_like(observed[0]).bool(), 0.4, 1)
    torch.testing.assert_close(everything.value[0], expected, rtol=0, atol=1e-4)


def test_one_image_alone_is_the_same_as_in_a_batch() -> None:
    observed, mask = problem()
    together = soft_impute(observed, mask, tolerance=1e-3)
    for index in range(3):
        alone = soft_impute(observed[index], mask[index], tolerance=1e-3)
        assert alone.iterations == together.iterations[index]
        torch.testing.assert_close(alone.value, together.value[index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stop", [{"gap": 1e-9}, {"tolerance": 1e-9, "max_iterations": 5000}])
def test_a_path_ends_at_the_same_optimum(stop: dict[str, Any]) -> None:
    observed, mask = problem(4, 0.7)
    alone = soft_impute(observed, mask, **stop)
    path = soft_impute(observed, mask, path=5, **stop)
    torch.testing.assert_close(path.value, alone.value, rtol=0, atol=1e-5)
    assert path.converged.all()


def test_a_warm_start_saves_iterations() -> None:
    """The last threshold of a path starts near its solution: more steps in all, fewer in the last."""
    observed, mask = problem(4, 0.7)
    largest = torch.linalg.svdvals(observed * mask)[:, 0]
    goal = largest / 50
    rule: dict[str, Any] = {"tolerance": 1e-4, "max_iterations": 5000}
    cold = soft_impute(observed, mask, shrinkage=goal, **rule).iterations
    # The path of five ends with the path of four to a threshold 50 ** (1 / 5) times as high.
    before = soft_impute(observed, mask, shrinkage=largest / 50**0.8, path=4, **rule).iterations
    last = soft_impute(observed, mask, shrinkage=goal, path=5, **rule).iterations - before
    assert (last < cold).all()


@pytest.mark.parametrize("path", [0, -1])
def test_a_path_needs_a_threshold(path: int) -> None:
    with pytest.raises(ValueError, match=f"path is {path}; allowed"):
        soft_impute(*problem(1), path=path)
