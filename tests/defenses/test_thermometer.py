import numpy as np
import pytest
import torch

from harness.defenses.thermometer import Thermometer, encode, ramp, slide
from harness.random import Draws, OpaqueDraws, Role
from harness.types import HarnessError

torch.set_num_threads(1)


def draws(count: int) -> OpaqueDraws:
    return Draws(0, torch.arange(count), Role.SCORE).opaque()


def pixel(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value)


def test_codes_of_single_values() -> None:
    """Athalye et al. 2018, section 4.1.1: 0.66 in ten levels exceeds 0/10 ... 6/10."""
    assert encode(pixel(0.66), 10).flatten().tolist() == [1] * 7 + [0] * 3
    assert encode(pixel(0.0), 10).flatten().tolist() == [1] + [0] * 9
    assert encode(pixel(1.0), 10).flatten().tolist() == [1] * 10


def test_every_8_bit_value_has_the_code_of_its_level() -> None:
    values = torch.arange(256) / 255
    code = encode(values.view(1, 1, 16, 16), 16).view(16, 256)
    assert torch.equal(code.sum(0), (1 + torch.ceil(values * 16 - 1).clamp_min(0)))
    assert torch.equal(code, code.sort(dim=0, descending=True).values)


def test_channels_lie_together() -> None:
    images = torch.rand(2, 3, 4, 5)
    code = Thermometer(levels=8).transform(images, draws(2))
    assert code.shape == (2, 24, 4, 5) and code.dtype == torch.float32
    for channel in range(3):
        alone = encode(images[:, channel : channel + 1], 8)
        assert torch.equal(code[:, 8 * channel : 8 * channel + 8], alone)


def test_ramp_is_the_papers_formula() -> None:
    x = 0.66
    expected = [min(max(x - k / 10, 0), 1) for k in range(10)]
    assert ramp(pixel(x), 10).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_slide_meets_the_encoding_at_the_levels() -> None:
    grid = (torch.arange(15) / 16).view(1, 1, 3, 5)
    assert torch.allclose(slide(grid, 16), encode(grid + 1e-4, 16), atol=1e-5)
    leaf = torch.tensor([0.0, 0.03, 0.97, 1.0]).view(1, 1, 2, 2).requires_grad_()
    slide(leaf, 16).sum().backward()
    assert leaf.grad is not None and leaf.grad.flatten().tolist() == [16, 16, 16, 16]


@pytest.mark.parametrize("relaxation", ["ramp", "slide"])
def test_surrogate_has_the_output_shape_and_never_loses_the_gradient(relaxation: str) -> None:
    defense = Thermometer(relaxation=relaxation)  # type: ignore[arg-type]
    images = torch.linspace(0, 1, 256).view(1, 1, 16, 16).requires_grad_()
    relaxed = defense.surrogate(images, draws(1))
    assert relaxed.shape == defense.transform(images, draws(1)).shape
    assert relaxed.shape[1] == defense.output_channels(1) == 16
    relaxed.sum().backward()
    assert images.grad is not None and bool((images.grad > 0).all())


def test_against_the_toolbox() -> None:
    preprocessor = pytest.importorskip("art.defences.preprocessor")
    reference = preprocessor.ThermometerEncoding(
        clip_values=(0, 1), num_space=16, channels_first=False
    )
    images = torch.rand(4, 3, 6, 5)
    theirs, _ = reference(images.permute(0, 2, 3, 1).numpy().copy())
    ours = Thermometer().transform(images, draws(4)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(ours, theirs)

    leaf = images.clone().requires_grad_()
    weights = torch.randn(4, 48, 6, 5)
    (Thermometer(relaxation="ramp").surrogate(leaf, draws(4)) * weights).sum().backward()
    gradient = reference.estimate_gradient(
        images.permute(0, 2, 3, 1).numpy(), weights.permute(0, 2, 3, 1).numpy()
    )
    assert leaf.grad is not None
    assert np.allclose(leaf.grad.permute(0, 2, 3, 1).numpy(), gradient, atol=1e-4)


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(HarnessError, match="levels is 1"):
        Thermometer(levels=1)
    with pytest.raises(HarnessError, match="slide or ramp"):
        Thermometer(relaxation="step")  # type: ignore[arg-type]
