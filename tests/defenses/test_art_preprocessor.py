import subprocess
import sys

import numpy as np
import pytest
import torch

from harness.random import Draws, OpaqueDraws, Role
from harness.registry import defenses
from harness.types import Defense, HarnessError

torch.set_num_threads(1)
pytest.importorskip("art.defences.preprocessor")

WORKING = {
    "FeatureSqueezing": {"bit_depth": 3},
    "JpegCompression": {"quality": 50},
    "SpatialSmoothing": {"window_size": 3},
    "ThermometerEncoding": {"num_space": 8},
    "GaussianAugmentation": {"sigma": 0.1},
    "TotalVarMin": {"prob": 0.5, "lamb": 0.1},
    "Cutout": {"length": 4},
    "CutoutPyTorch": {"length": 4},
}
RANDOM = {"GaussianAugmentation", "TotalVarMin", "Cutout", "CutoutPyTorch"}


def digits(count: int) -> torch.Tensor:
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images[:count] / 16, dtype=torch.float32).unsqueeze(1)


def place(count: int, draw: int = 0, rows: slice | torch.Tensor = slice(None)) -> OpaqueDraws:
    return Draws(0, torch.arange(count)[rows], Role.SCORE, draw=draw).opaque()


def make(name: str, **parameters: object) -> Defense:
    made: Defense = defenses.get(f"art:{name}")(**{**WORKING.get(name, {}), **parameters})
    return made


@pytest.mark.parametrize("name", sorted(WORKING))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_transformation(name: str, channels: int) -> None:
    images = digits(6).repeat(1, channels, 1, 1)
    images[:, channels - 1] *= 0.5
    before = images.clone()
    defense = make(name)
    found = defense.transform(images, place(6))
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert found.shape == (6, defense.output_channels(channels), 8, 8)
    assert bool(found.isfinite().all()) and found.min() >= 0 and found.max() <= 1
    assert torch.equal(images, before)
    assert not torch.equal(found[:, :channels], images)
    assert defense.randomised == (name in RANDOM)
    assert torch.equal(found, defense.transform(images, place(6)))
    some = torch.tensor([4, 2])
    assert torch.allclose(found[some], defense.transform(images[some], place(6, rows=some)))
    again = defense.transform(images, place(6, draw=1))
    assert torch.equal(found, again) != defense.randomised


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_global_generators_are_left_alone(name: str) -> None:
    images = digits(3)
    defense = make(name)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(3), torch.rand(3)
    np.random.seed(5)
    torch.manual_seed(5)
    first = defense.transform(images, place(3))
    assert np.array_equal(np.random.rand(3), expected[0])
    assert torch.equal(torch.rand(3), expected[1])
    assert torch.equal(first, defense.transform(images, place(3)))


def test_random_images_differ_from_each_other() -> None:
    same = digits(1).repeat(4, 1, 1, 1)
    found = make("GaussianAugmentation").transform(same, place(4))
    assert len({tuple(image.flatten().tolist()) for image in found}) == 4


def test_backward_passes() -> None:
    assert make("JpegCompression").backward == "identity"
    assert not make("JpegCompression").differentiable
    assert make("ThermometerEncoding").backward == "surrogate"
    cutout = make("CutoutPyTorch")
    assert cutout.backward == "exact" and cutout.differentiable
    leaf = torch.ones(2, 1, 8, 8, requires_grad=True)  # at the bound, where clamp has no gradient
    found = cutout.transform(leaf, place(2))
    found.sum().backward()
    assert leaf.grad is not None and torch.equal(leaf.grad > 0, found > 0)


def test_the_toolboxes_own_gradient_reaches_the_images() -> None:
    from harness.defenses.thermometer import Thermometer

    images = torch.rand(2, 3, 4, 4)
    weights = torch.randn(2, 24, 4, 4)
    gradients = []
    for defense in (make("ThermometerEncoding"), Thermometer(levels=8, relaxation="ramp")):
        leaf = images.clone().requires_grad_()
        soft = defense.surrogate(leaf, place(2))
        assert torch.equal(defense.transform(images, place(2)) > 0.5, encoded(images))
        (soft * weights).sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


def encoded(images: torch.Tensor) -> torch.Tensor:
    from harness.defenses.thermometer import encode

    return encode(images, 8) > 0.5


def test_known_values() -> None:
    squeezed = make("FeatureSqueezing", bit_depth=1).transform(digits(4), place(4))
    assert set(squeezed.unique().tolist()) == {0.0, 1.0}
    flat = torch.full((1, 3, 8, 8), 0.4)
    assert torch.allclose(make("SpatialSmoothing").transform(flat, place(1)), flat)
    assert (make("JpegCompression", quality=95).transform(flat, place(1)) - flat).abs().max() < 0.02
    cut = make("Cutout", length=2).transform(torch.ones(8, 1, 8, 8), place(8))
    assert set((cut == 0).sum((1, 2, 3)).tolist()) <= {1, 2, 4}


def test_smoothing_in_torch_needs_a_package() -> None:
    try:
        import kornia  # noqa: F401
    except ImportError:
        with pytest.raises(HarnessError, match=r"kornia.*art:SpatialSmoothing"):
            make("SpatialSmoothingPyTorch")
    else:
        leaf = digits(2).requires_grad_()
        make("SpatialSmoothingPyTorch").transform(leaf, place(2)).sum().backward()
        assert leaf.grad is not None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PixelDefend", "use pixeldefend"),
        ("LabelSmoothing", "labels"),
        ("CutMix", "labels"),
        ("MixupPyTorch", "labels"),
        ("Mp3Compression", "sound"),
        ("Resample", "sound"),
        ("VideoCompression", "video"),
        ("SpatialSmoothingTensorFlowV2", "TensorFlow"),
        ("SpatialSmothing", "did you mean art:SpatialSmoothing"),
        ("Preprocessor", "no input transformation"),
    ],
)
def test_refusals_have_a_reason(name: str, reason: str) -> None:
    with pytest.raises(HarnessError, match=reason):
        make(name)


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(HarnessError, match="did you mean quality"):
        make("JpegCompression", qualty=3)
    with pytest.raises(HarnessError, match="art:Cutout needs length"):
        defenses.get("art:Cutout")()
    with pytest.raises(HarnessError, match="art:JpegCompression"):
        make("JpegCompression", quality=-5)
    with pytest.raises(HarnessError, match="no parameter 'clip_values'"):
        make("JpegCompression", clip_values=(0, 255))


def test_parameters_come_from_text() -> None:
    from harness.spec import build, parse

    defense = build(parse("art:JpegCompression(quality=80)"), defenses)
    assert dict(defense.parameters) == {"quality": 80}
    assert defense == build(parse("art:JpegCompression(quality=80)"), defenses)


def test_naming_the_module_imports_no_toolbox() -> None:
    code = "import sys, defenses.art_preprocessor; sys.exit('art' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
