import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.defenses.total_variation import minimise, objective
from harness.defenses.tv_minimization import TotalVariationMinimisation
from harness.random import Draws, OpaqueDraws, Role
from harness.types import HarnessError

torch.set_num_threads(1)


def digits(count: int) -> torch.Tensor:
    """(N, 1, 8, 8) in [0, 1]"""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images[:count] / 16, dtype=torch.float32).unsqueeze(1)


def halves(images: torch.Tensor, keep: float = 0.5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count, _, height, width = images.shape
    return torch.rand(count, 1, height, width, generator=generator) < keep


def everything(images: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def test_two_pixels_approach_each_other_by_half_the_weight() -> None:
    """(z - a)**2 + (w - b)**2 + t |z - w|: both move t / 2 until they meet."""
    found = minimise(row(0.2, 0.8), everything(row(0, 0)), weight=0.2, tolerance=1e-8)
    assert found.images.flatten().tolist() == pytest.approx([0.3, 0.7], abs=1e-4)
    assert found.objective.item() == pytest.approx(0.02 + 0.2 * 0.4, rel=1e-6)
    met = minimise(row(0.2, 0.8), everything(row(0, 0)), weight=2.0, tolerance=1e-8)
    assert met.images.flatten().tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def test_a_dropped_pixel_lies_between_its_neighbours_and_is_never_read() -> None:
    kept = torch.tensor([True, False, True]).view(1, 1, 1, 3)
    for dropped in (0.0, 1.0, float("nan")):
        found = minimise(row(0.2, dropped, 0.8), kept, weight=0.2, tolerance=1e-8)
        left, middle, right = found.images.flatten().tolist()
        assert (left, right) == pytest.approx((0.3, 0.7), abs=1e-4)
        assert left - 1e-4 <= middle <= right + 1e-4


def test_extreme_weights() -> None:
    images = digits(4)
    kept = halves(images)
    smooth = minimise(images, kept, weight=100.0, tolerance=1e-5)
    mean = (images * kept).sum((-2, -1)) / kept.sum((-2, -1))
    assert torch.allclose(smooth.images, mean[..., None, None].expand_as(images), atol=2e-3)
    sharp = minimise(images, kept, weight=1e-4)
    assert ((sharp.images - images).abs() * kept).max() < 1e-3


def test_flat_and_empty_images() -> None:
    flat = torch.full((1, 1, 5, 5), 0.7)
    found = minimise(flat, halves(flat))
    assert torch.allclose(found.images, flat) and bool(found.converged.all())
    nothing = minimise(digits(1), torch.zeros(1, 1, 8, 8, dtype=torch.bool))
    assert torch.equal(nothing.images, torch.full((1, 1, 8, 8), 0.5))
    assert bool(nothing.converged.all()) and nothing.gap.item() == 0
    assert minimise(flat[:0], halves(flat)[:0]).images.shape == (0, 1, 5, 5)


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("weight", [0.003, 0.03, 0.3])
def test_against_an_exact_cone_solver(isotropic: bool, weight: float) -> None:
    cvxpy = pytest.importorskip("cvxpy")
    images = digits(3)
    kept = halves(images)
    found = minimise(images, kept, weight=weight, isotropic=isotropic, tolerance=1e-4)
    assert bool(found.converged.all())
    for one in range(3):
        z = cvxpy.Variable((8, 8))
        x, m = images[one, 0].double().numpy(), kept[one, 0].numpy()
        down = cvxpy.vstack([z[1:] - z[:-1], np.zeros((1, 8))])
        right = cvxpy.hstack([z[:, 1:] - z[:, :-1], np.zeros((8, 1))])
        pairs = cvxpy.vstack([cvxpy.vec(down, order="C"), cvxpy.vec(right, order="C")])
        variation = cvxpy.sum(cvxpy.norm(pairs, 2 if isotropic else 1, axis=0))
        problem = cvxpy.Problem(
            cvxpy.Minimize(
                cvxpy.sum_squares(cvxpy.multiply(m, z - x) if m.any() else 0) + weight * variation
            )
        )
        problem.solve(solver=cvxpy.CLARABEL)
        optimum, ours, gap = problem.value, found.objective[one, 0].item(), found.gap[one, 0].item()
        assert optimum - 1e-7 <= ours <= optimum * 1.0001 + 1e-7
        assert ours - optimum <= gap + 1e-7
        difference = (found.images[one, 0].numpy() - z.value)[m]
        assert (difference**2).sum() <= gap + 1e-6  # the error term is strongly convex


def test_denoising_against_scikit_image() -> None:
    """With nothing dropped it is the problem of Rudin, Osher and Fatemi."""
    restoration = pytest.importorskip("skimage.restoration")
    images = digits(2).double()
    found = minimise(images, everything(images), weight=0.1, tolerance=1e-6)
    for one in range(2):
        theirs = restoration.denoise_tv_chambolle(
            images[one, 0].numpy(), weight=0.05, eps=1e-12, max_num_iter=20_000
        )
        assert np.abs(theirs - found.images[one, 0].numpy()).max() < 5e-3


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    keep=st.sampled_from([0.1, 0.5, 1.0]),
    weight=st.sampled_from([1e-3, 0.03, 1.0]),
    isotropic=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_certificate_holds(
    height: int, width: int, keep: float, weight: float, isotropic: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 2, height, width, generator=generator)
    kept = torch.rand(2, 2, height, width, generator=generator) < keep
    found = minimise(images, kept, weight=weight, isotropic=isotropic)
    assert bool(found.converged.all()) and bool((found.gap >= -1e-6).all())
    assert bool((found.images >= 0).all() and (found.images <= 1).all())
    value = objective(found.images, images, kept, weight=weight, isotropic=isotropic)
    assert torch.allclose(value, found.objective, rtol=1e-4, atol=1e-6)
    tight = minimise(
        images.double(), kept, weight=weight, isotropic=isotropic, tolerance=1e-6
    ).objective
    assert bool((found.objective - tight <= found.gap + 1e-6).all())


def test_an_unfinished_channel_says_so() -> None:
    images = digits(2)
    found = minimise(images, halves(images), max_iterations=3)
    assert not found.converged.any() and found.iterations.tolist() == [[3], [3]]
    assert bool((found.gap > 0).all())


def test_a_channel_does_not_depend_on_its_company() -> None:
    images = torch.cat([digits(40), torch.rand(8, 1, 8, 8)])
    kept = halves(images)
    together = minimise(images, kept, chunk=48)
    apart = minimise(images, kept, chunk=7)
    assert torch.equal(together.iterations, apart.iterations)
    assert torch.allclose(together.images, apart.images, atol=1e-6)


def test_a_weight_for_each_channel() -> None:
    images = torch.rand(2, 3, 6, 6)
    kept = halves(images)
    weights = torch.tensor([0.01, 0.03, 0.1])
    together = minimise(images, kept, weight=weights)
    for channel, weight in enumerate(weights.tolist()):
        alone = minimise(images[:, channel : channel + 1], kept, weight=weight)
        assert torch.allclose(together.images[:, channel], alone.images[:, 0], atol=1e-5)


def test_impossible_arguments() -> None:
    images = digits(1)
    for wrong in ({"weight": 0.0}, {"tolerance": 0.0}, {"max_iterations": 0}):
        with pytest.raises(ValueError, match="positive"):
            minimise(images, halves(images), **wrong)


def place(count: int, draw: int = 0, rows: slice | torch.Tensor = slice(None)) -> OpaqueDraws:
    return Draws(0, torch.arange(count)[rows], Role.SCORE, draw=draw).opaque()


def test_the_defense_draws_from_its_draws_alone() -> None:
    defense = TotalVariationMinimisation()
    images = torch.rand(6, 3, 12, 12)
    first = defense.transform(images, place(6))
    torch.manual_seed(123)
    assert torch.equal(first, defense.transform(images, place(6)))
    subset = torch.tensor([4, 1])
    assert torch.allclose(first[subset], defense.transform(images[subset], place(6, rows=subset)))
    assert not torch.allclose(first, defense.transform(images, place(6, draw=1)))
    assert first.shape == images.shape
    assert first.min() >= 0 and first.max() <= 1


def test_dropping_pixels_whole_or_by_channel() -> None:
    grey = torch.rand(2, 1, 10, 10).expand(2, 3, 10, 10)
    whole = TotalVariationMinimisation().transform(grey, place(2))
    assert torch.allclose(whole[:, 0], whole[:, 2])
    apart = TotalVariationMinimisation(drop="entries").transform(grey, place(2))
    assert not torch.allclose(apart[:, 0], apart[:, 2])


def test_keeping_everything_with_little_weight_is_nearly_the_identity() -> None:
    images = digits(3)
    same = TotalVariationMinimisation(keep=1.0, weight=1e-4).transform(images, place(3))
    assert (same - images).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": 0.0}, "keep is 0.0"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"weight": -1.0}, "weight is -1.0"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"variation": "l2"}, "isotropic or anisotropic"),
        ({"drop": "rows"}, "pixels or entries"),
    ],
)
def test_wrong_parameters_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        TotalVariationMinimisation(**wrong)  # type: ignore[arg-type]
