"""Images to matrices and back, the approximate rank, and errors that say how to mend."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from harness.defenses.estimation import (
    Estimate,
    approximate_rank,
    nuclear_norm,
    reconstruct,
    soft_impute,
    usvt,
)

ALL = [nuclear_norm, soft_impute, usvt]


def nothing_done(observed: Tensor, mask: Tensor) -> Estimate:
    batch = observed.shape[:-2]
    return Estimate(observed * mask, torch.ones(batch), torch.zeros(batch), torch.ones(batch))


def test_channels_stand_side_by_side_and_scale_and_clip() -> None:
    images = torch.rand(2, 3, 4, 5)
    mask = torch.rand(2, 3, 4, 5) < 0.5
    shapes = []

    def estimator(observed: Tensor, keep: Tensor) -> Estimate:
        shapes.append(observed.shape)
        assert observed[1, :, 5:10].equal(2 * images[1, 1] - 1)
        assert keep[0, :, 10:15].equal(mask[0, 2])
        return nothing_done(3 * observed, keep)

    rebuilt = reconstruct(images, mask, estimator=estimator)
    assert shapes == [(2, 4, 15)]
    expected = ((3 * (2 * images - 1) * mask).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(rebuilt, expected)


def test_separate_channels_share_their_mask() -> None:
    images = torch.rand(2, 3, 4, 5)
    mask = torch.rand(2, 1, 4, 5) < 0.5
    rebuilt = reconstruct(images, mask, estimator=nothing_done, channels="separate")
    torch.testing.assert_close(rebuilt, torch.where(mask, images, 0.5))
    one_by_one = torch.cat(
        [
            reconstruct(images[:, c : c + 1], mask, estimator=functools.partial(usvt))
            for c in range(3)
        ],
        1,
    )
    together = reconstruct(images, mask, estimator=usvt, channels="separate")
    torch.testing.assert_close(together, one_by_one)


def test_an_empty_batch_is_fine() -> None:
    for estimator in ALL:
        empty = torch.empty(0, 3, 6, 7)
        assert reconstruct(empty, empty.bool(), estimator=estimator).shape == (0, 3, 6, 7)
    assert approximate_rank(torch.empty(0, 3, 6, 7)).shape == (0,)


def test_approximate_rank_counts_energy() -> None:
    spectrum = torch.tensor([3.0, 2.0, 1.0, 0.5])  # energies 9, 4, 1, 0.25 of 14.25
    image = torch.diag(spectrum)[None, None]
    for energy, expected in ((0.6, 1), (0.9, 2), (0.95, 3), (0.99, 4), (1.0, 4)):
        assert approximate_rank(image, energy).tolist() == [expected]
    assert approximate_rank(torch.ones(1, 1, 6, 6)).tolist() == [1]
    assert approximate_rank(torch.zeros(1, 1, 6, 6)).tolist() == [0]
    # A colour image is one matrix with the channels side by side.
    colour = torch.cat((torch.ones(1, 1, 4, 4), torch.eye(4)[None, None]), 1)
    side_by_side = torch.cat((torch.ones(4, 4), torch.eye(4)), 1)[None, None]
    assert approximate_rank(colour).equal(approximate_rank(side_by_side))
    assert approximate_rank(colour).item() == 2


@pytest.mark.parametrize("estimator", ALL)
def test_nan_and_infinity_name_their_images(estimator) -> None:
    observed = torch.zeros(5, 6, 7)
    observed[1, 2, 3] = torch.nan
    observed[4, 0, 0] = torch.inf
    for mask in (torch.ones(5, 6, 7), torch.zeros(5, 6, 7)):
        with pytest.raises(ValueError, match=r"NaN or infinity in image 1, 4; allowed: finite"):
            estimator(observed, mask)
    with pytest.raises(ValueError, match=r"image \(0, 1\), \(0, 4\)"):
        estimator(observed[None], torch.ones(1, 5, 6, 7))
    cancelling = torch.zeros(2, 3, 3)
    cancelling[1, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    with pytest.raises(ValueError, match="image 1;"):
        estimator(cancelling, torch.ones(3, 3))
    # Large but finite values are not an error, even where their sum overflows.
    large = torch.full((1, 3, 3), 1e38)
    assert estimator(large, torch.zeros(3, 3)).value.eq(0).all()


@pytest.mark.parametrize("estimator", ALL)
def test_unusable_input_is_refused_with_a_way_out(estimator) -> None:
    good = torch.zeros(2, 4, 5)
    with pytest.raises(TypeError, match=r"float16; allowed.*\.float\(\)"):
        estimator(good.half(), good)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4, 6\)"):
        estimator(good, torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match=r"observed has shape \(4,\)"):
        estimator(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="H and W at least 1"):
        estimator(torch.zeros(2, 0, 5), torch.zeros(2, 0, 5))
    with pytest.raises(ValueError, match=r"other than 0 and 1 in image 1"):
        estimator(good, torch.tensor([1.0, 0.5])[:, None, None])
    with pytest.raises(ValueError, match="chunk is 0"):
        estimator(good, good, chunk=0)


def test_unusable_settings_are_refused() -> None:
    good = torch.zeros(2, 4, 5)
    with pytest.raises(ValueError, match=r"mu is -1.*above 0"):
        nuclear_norm(good, good, mu=-1)
    with pytest.raises(ValueError, match=r"mu has shape \(3,\)"):
        nuclear_norm(good, good, mu=torch.ones(3))
    with pytest.raises(ValueError, match=r"gap is 1e-07.*\.double\(\)"):
        nuclear_norm(good, good, gap=1e-7)
    nuclear_norm(good.double(), good, gap=1e-7)
    with pytest.raises(ValueError, match="max_iterations is 0"):
        soft_impute(good, good, max_iterations=0)
    with pytest.raises(ValueError, match="rule is 'soft'"):
        usvt(good, good, rule="soft")
    with pytest.raises(ValueError, match="rank_fraction is 2"):
        usvt(good, good, rank_fraction=2)
    images = torch.rand(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3, 4, 5\)"):
        reconstruct(images, images > 0.5, estimator=usvt, channels="separate")
    with pytest.raises(ValueError, match="backward is 'sideways'"):
        reconstruct(images, images > 0.5, estimator=usvt, backward="sideways")
    with pytest.raises(ValueError, match="channels is 'side'"):
        reconstruct(images, images > 0.5, estimator=usvt, channels="side")
