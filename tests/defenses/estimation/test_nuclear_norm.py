"""The convex problem: against closed forms, a cone solver, and its own certificate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from harness.defenses.estimation import nuclear_norm, soft_impute
from harness.defenses.estimation.certificate import certified, relative_gap
from harness.defenses.estimation.conjugate import _blank, _step
from harness.defenses.estimation.factored import begin
from harness.defenses.estimation.inputs import prepare


def digits(count: int, side: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    """Real images in [-1, 1], (count, side, side)."""
    images = torch.from_numpy(load_digits().images[:count]).to(dtype) / 8 - 1
    if side == 8:
        return images
    return torch.nn.functional.interpolate(images[:, None], size=(side, side), mode="bilinear")[
        :, 0
    ]


def noise(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1


def draw(seed: int, like: Tensor, p: float) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)) < p


def objective(value: Tensor, observed: Tensor, mask: Tensor, mu: float = 1.0) -> Tensor:
    error = ((value - observed) * mask).square().sum((-1, -2))
    return mu * torch.linalg.svdvals(value).sum(-1) + error


def thresholded(matrix: Tensor, threshold: float) -> Tensor:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u * (s - threshold).clamp_min(0)[..., None, :]) @ v


@pytest.mark.parametrize("family", ["digits", "random"])
def test_agrees_with_a_cone_solver(family: str) -> None:
    cvxpy = pytest.importorskip("cvxpy")
    agree = 0
    for index in range(25):
        if family == "digits":
            observed, p = digits(25)[index], (0.4, 0.6, 0.9)[index % 3]
        else:
            observed, p = noise(index, 4 + index % 4, 7 - index % 5), (0.5, 0.8, 1.0)[index % 3]
        mask = draw(index, observed, p)
        ours = nuclear_norm(observed, mask, gap=1e-10)
        assert ours.converged
        unknown = cvxpy.Variable(tuple(observed.shape))
        error = cvxpy.multiply(mask.double().numpy(), unknown - observed.numpy())
        goal = cvxpy.Minimize(cvxpy.normNuc(unknown) + cvxpy.sum_squares(error))
        cvxpy.Problem(goal).solve(
            solver=cvxpy.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
        )
        theirs = torch.from_numpy(unknown.value)
        # The observed entries and the objective are unique; few observations can leave the others
        # open, and then any two solvers may differ there.
        torch.testing.assert_close(ours.value[mask], theirs[mask], rtol=0, atol=1e-5)
        costs = [objective(value, observed, mask) for value in (ours.value, theirs)]
        torch.testing.assert_close(costs[0], costs[1], rtol=1e-8, atol=1e-9)
        agree += bool((ours.value - theirs).abs().max() < 2e-5)
    assert agree >= 23


@pytest.mark.parametrize("shape", [(28, 28), (12, 30), (30, 12), (1, 5), (5, 1), (1, 1)])
def test_fully_observed_is_singular_value_thresholding(shape: tuple[int, int]) -> None:
    observed = noise(0, 2, *shape)
    estimate = nuclear_norm(observed, torch.ones_like(observed), mu=0.8, gap=1e-10)
    assert estimate.converged.all()
    torch.testing.assert_close(estimate.value, thresholded(observed, 0.4), rtol=0, atol=1e-5)


def test_a_threshold_above_the_largest_singular_value_gives_zero() -> None:
    observed = noise(1, 3, 9, 14)
    mask = draw(1, observed, 0.7)
    largest = torch.linalg.svdvals(observed * mask)[:, 0]
    zero = soft_impute(observed, mask, shrinkage=1.01 * largest, gap=1e-8)
    assert zero.converged.all()
    assert zero.value.abs().max() < 1e-4
    some = soft_impute(observed, mask, shrinkage=0.9 * largest, gap=1e-8)
    assert (some.value.abs().amax((1, 2)) > 1e-3).all()


def test_completes_a_matrix_of_rank_one() -> None:
    truth = noise(2, 12, 1).sign() @ noise(3, 1, 15).sign()
    mask = draw(4, truth, 0.6)
    estimate = nuclear_norm(truth, mask, mu=1e-2, gap=1e-9)
    assert estimate.converged
    assert (estimate.value - truth)[~mask].abs().max() < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_images(dtype: torch.dtype) -> None:
    flat = torch.full((5, 7), -0.3, dtype=dtype)
    cases = {
        "nothing observed": (flat, torch.zeros(5, 7), torch.zeros_like(flat)),
        "zero image": (0 * flat, torch.ones(5, 7), torch.zeros_like(flat)),
        "constant": (flat, torch.ones(5, 7), thresholded(flat, 0.5)),
        "identity": (torch.eye(6, dtype=dtype), torch.ones(6, 6), torch.eye(6, dtype=dtype) / 2),
    }
    gap = 1e-5 if dtype == torch.float32 else 1e-10
    for name, (observed, mask, expected) in cases.items():
        for count in (0, 1, 3):
            estimate = nuclear_norm(
                observed.expand(count, *observed.shape), mask.expand(count, *mask.shape), gap=gap
            )
            assert estimate.value.shape == (count, *observed.shape), name
            assert estimate.converged.all(), name
            assert (estimate.value - expected).abs().amax((-1, -2)).lt(2e-3).all(), name


def test_every_image_is_as_accurate_as_asked() -> None:
    observed = digits(40, side=20)
    mask = draw(5, observed, 0.5)
    best = objective(nuclear_norm(observed, mask, gap=1e-9).value, observed, mask)
    for gap in (1e-1, 1e-2, 1e-3, 1e-5):
        estimate = nuclear_norm(observed, mask, gap=gap)
        assert estimate.converged.all()
        assert (estimate.gap <= gap).all()
        reached = objective(estimate.value, observed, mask)
        assert (reached - best <= gap * reached).all()
    fewer = nuclear_norm(observed, mask, gap=1e-1).iterations
    assert (fewer < estimate.iterations).all()


def test_an_image_that_runs_out_of_iterations_says_so() -> None:
    observed = digits(5, side=20)
    mask = draw(6, observed, 0.5)
    best = objective(nuclear_norm(observed, mask, gap=1e-9).value, observed, mask)
    estimate = nuclear_norm(observed, mask, gap=1e-6, max_iterations=7)
    assert not estimate.converged.any()
    assert (estimate.iterations == 7).all()
    reached = objective(estimate.value, observed, mask)
    assert (reached - best <= estimate.gap * reached * (1 + 1e-9)).all()
    assert (estimate.gap > 1e-6).all()


def test_solutions_of_full_rank_are_reached() -> None:
    # More singular values than the first attempt has columns for: they must be added.
    observed = 4 * noise(7, 6, 24, 30)
    mask = torch.ones_like(observed)
    estimate = nuclear_norm(observed, mask, gap=1e-8)
    assert estimate.converged.all()
    assert (torch.linalg.svdvals(estimate.value)[:, -1] > 1e-2).any()
    torch.testing.assert_close(estimate.value, thresholded(observed, 0.5), rtol=0, atol=1e-3)


def test_the_certificate_is_neither_fooled_nor_timid() -> None:
    observed = digits(20, side=16)
    mask = draw(8, observed, 0.6).double()
    problems = prepare(observed, mask)
    half = torch.full((20,), 0.5, dtype=torch.float64)
    best = nuclear_norm(observed, mask, gap=1e-10).value
    least = objective(best, observed, mask) / 2
    for seed, size in enumerate((0.0, 1e-4, 1e-3, 1e-2, 1e-1)):
        candidate = best + size * noise(seed, *best.shape)
        residual = problems.observed - problems.mask * candidate
        nuclear = torch.linalg.svdvals(candidate).sum(-1)
        primal = residual.square().sum((1, 2)) / 2 + nuclear / 2
        true_excess = (primal - least) / primal
        bound = relative_gap(problems.observed, residual, half, nuclear)
        assert (bound >= true_excess - 1e-9).all()
        for gap in (1e-8, 1e-6, 1e-4, 1e-2):
            passed = certified(problems.observed, residual, half, nuclear, gap)
            assert not (passed & (true_excess > gap)).any()
            # It accepts exactly what the best multiple of the residual proves.
            clear = (bound / gap).log().abs() > 0.05
            assert (passed == (bound <= gap))[clear].all()
        if size == 0:
            assert passed.all()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    mu=st.sampled_from([0.1, 1.0, 5.0]),
    seed=st.integers(0, 10**6),
)
def test_invariances(height: int, width: int, p: float, mu: float, seed: int) -> None:
    observed = noise(seed, 3, height, width)
    mask = draw(seed, observed, p)
    estimate = nuclear_norm(observed, mask, mu=mu, gap=1e-9)
    assert estimate.converged.all()
    order = torch.tensor([2, 0, 1])
    others = {
        "transposed": nuclear_norm(observed.mT, mask.mT, mu=mu, gap=1e-9).value.mT,
        "shuffled": nuclear_norm(observed[order], mask[order], mu=mu, gap=1e-9).value[
            order.argsort()
        ],
        "negative": -nuclear_norm(-observed, mask, mu=mu, gap=1e-9).value,
    }
    for value in others.values():
        # Few observations can leave more than one optimum. All have the same observed entries.
        torch.testing.assert_close(value * mask, estimate.value * mask, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            objective(value, observed, mask, mu), objective(estimate.value, observed, mask, mu)
        )


@settings(max_examples=25, deadline=None)
@given(
    p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    shrinkage=st.sampled_from([0.02, 0.5, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_no_step_increases_the_objective(p: float, shrinkage: float, seed: int) -> None:
    observed = torch.cat((noise(seed, 2, 16, 20), digits(20, 20)[seed % 18 :][:2, :16]))
    problems = prepare(observed / shrinkage, draw(seed, observed, p))
    place = begin(problems, None)
    memory = _blank(place)
    for step in range(40):
        before = place.value
        place, memory = _step(place, memory, renew=step % 3 == 0)
        assert (place.value <= before * (1 + 1e-12)).all()
    left, right = place.factors
    fresh = problems.observed - problems.mask * (left.mT @ right)
    torch.testing.assert_close(place.residual, fresh, rtol=0, atol=1e-9 / shrinkage)


def test_double_precision_is_right_where_single_is_not() -> None:
    """A threshold so small that single precision cannot see what lies above it."""
    observed = digits(3, 12)
    mask = draw(5, observed, 0.7)
    estimate = nuclear_norm(observed, mask, mu=2e-3, gap=1e-7, max_iterations=5000)
    assert estimate.converged.all()
    huge = nuclear_norm(observed * 1e60, mask, mu=1e60, gap=1e-7)
    torch.testing.assert_close(
        huge.value / 1e60, nuclear_norm(observed, mask, gap=1e-7).value, rtol=0, atol=1e-5
    )


def test_one_image_alone_is_the_same_as_in_any_batch_or_chunk() -> None:
    observed = torch.cat((digits(30, 20), noise(9, 4, 20, 20)))
    mask = draw(9, observed, 0.5)
    together = nuclear_norm(observed, mask, gap=1e-7)
    for chunk in (1, 5):
        chunked = nuclear_norm(observed, mask, gap=1e-7, chunk=chunk)
        torch.testing.assert_close(chunked.value, together.value, rtol=0, atol=1e-6)
        assert chunked.iterations.equal(together.iterations)
    nested = nuclear_norm(observed.view(2, 17, 20, 20), mask.view(2, 17, 20, 20), gap=1e-7)
    assert nested.value.shape == (2, 17, 20, 20)
    assert nested.gap.shape == nested.converged.shape == nested.iterations.shape == (2, 17)
    torch.testing.assert_close(nested.value.flatten(0, 1), together.value, rtol=0, atol=1e-9)


def test_the_zero_filled_entries_do_not_matter() -> None:
    observed = digits(4, 20)
    mask = draw(10, observed, 0.5)
    other = torch.where(mask, observed, 0.77)
    first, second = (nuclear_norm(x, mask).value for x in (observed, other))
    assert first.equal(second)
