"""Input transformations of the adversarial-robustness-toolbox: `art:JpegCompression`.

The toolbox (4 s to import) is imported when a name is asked for, never before. Its constructors'
parameters are the defense's; ranges, axes and device are set here. Images go in and come out as
float32 in [0, 1]. Transformations that draw random numbers get each image by itself, with the
global generators of numpy and torch seeded from that image's draws and put back afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.random import OpaqueDraws
from harness.registry import defenses, imported, nearest
from harness.types import Defense, HarnessError, Randomness

SMOOTHING = "art:SpatialSmoothing is the same transformation"
REFUSED = {
    "PixelDefend": "it overflows under numpy 2: use pixeldefend, which trains its density model",
    "LabelSmoothing": "it changes labels, not images",
    "Mp3Compression": "it is for sound",
    "Mp3CompressionPyTorch": "it is for sound",
    "Resample": "it is for sound",
    "VideoCompression": "it is for video",
    "VideoCompressionPyTorch": "it is for video",
    "SpatialSmoothingTensorFlowV2": f"it needs TensorFlow: {SMOOTHING}",
    "CutoutTensorFlowV2": "it needs TensorFlow: art:Cutout is the same transformation",
}
REFUSED |= dict.fromkeys(
    [method + kind for method in ("CutMix", "Mixup") for kind in ("", "PyTorch", "TensorFlowV2")],
    "it mixes images and labels of a batch: an augmentation, not an input transformation",
)
DETERMINISTIC = frozenset(
    (
        "FeatureSqueezing",
        "JpegCompression",
        "SpatialSmoothing",
        "SpatialSmoothingPyTorch",
        "ThermometerEncoding",
    )
)
"""Transformations without random numbers. All others are applied to one image at a time."""
OURS = (
    "self",
    "apply_fit",
    "apply_predict",
    "channels_first",
    "clip_values",
    "device_type",
    "verbose",
)
"""Constructor parameters that the bridge sets."""
SET = {"augmentation": False}  # GaussianAugmentation would append noisy copies to the batch
SLACK = 1e-4

Parameters = tuple[tuple[str, Any], ...]


def toolbox() -> Any:
    """Import the toolbox's module of preprocessors.

    Raises:
        HarnessError: the toolbox is not installed.
    """
    return imported("art.defences.preprocessor", "adversarial-robustness-toolbox")


def find(name: str) -> Any:
    """Return the toolbox's class of that name.

    Raises:
        HarnessError: refused (with the reason), or no such class (with the nearest).
    """
    if name in REFUSED:
        raise HarnessError(f"art:{name} cannot serve as a defense here: {REFUSED[name]}")
    module = toolbox()
    base = module.Preprocessor
    known = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    }
    if name not in known:
        offers = [key for key in known if key not in REFUSED]
        hint = nearest(name, offers, prefix="art:")
        raise HarnessError(f"the toolbox has no input transformation {name!r}: {hint}")
    return known[name]


def options(kind: Any) -> dict[str, Any]:
    """Return the constructor's parameters that a user may set, with their types."""
    simple = {"int": int, "float": float, "bool": bool, "str": str}
    found = inspect.signature(kind.__init__).parameters
    return {
        key: simple.get(str(parameter.annotation), Any)
        for key, parameter in found.items()
        if key not in OURS and key not in SET
    }


@functools.lru_cache(maxsize=32)
def build(name: str, parameters: Parameters, device: str) -> Any:
    """Make the toolbox's object. Raise HarnessError where the toolbox refuses its parameters."""
    kind = find(name)
    given = dict(parameters)
    accepted = inspect.signature(kind.__init__).parameters
    fixed = {
        "clip_values": (0.0, 1.0),
        "channels_first": name.endswith("PyTorch"),
        "device_type": "cpu" if device == "cpu" else "gpu",
        **SET,
    }
    given |= {key: value for key, value in fixed.items() if key in accepted}
    try:
        return kind(**given)
    except ImportError as error:
        raise HarnessError(
            f"art:{name} needs a package that the harness does not depend on ({error})"
            + (f": {SMOOTHING}" if name == "SpatialSmoothingPyTorch" else "")
        ) from error
    except (TypeError, ValueError) as error:
        raise HarnessError(f"art:{name}: {error}") from error


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start numpy's and torch's global generators at `seed`; put them back afterwards."""
    before = np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
        finally:
            np.random.set_state(before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArtPreprocessor(Defense):
    """A transformation of the toolbox with an identity backward pass.

    `parameters` are those of its constructor, as sorted pairs.
    """

    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "identity"
    differentiable: ClassVar[bool] = False

    name: str
    parameters: Parameters = ()

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        art = build(self.name, self.parameters, images.device.type)
        try:
            found = self._apply(art, images, draws)
        except ValueError as error:
            shape = tuple(images.shape[1:])
            raise HarnessError(f"art:{self.name} fails on images of {shape}: {error}") from error
        if not len(found):
            return found
        low, high = (float(bound) for bound in images.detach().aminmax())
        low, high = min(0.0, low), max(1.0, high)
        inside = found.detach().clamp(low, high)
        excess = float((inside - found.detach()).abs().max())
        if not excess <= SLACK:
            raise HarnessError(
                f"art:{self.name} leaves the images' range by {excess:.2g}: it cannot be trusted"
            )
        return found + (inside - found.detach())  # clamp has no gradient at the bounds

    def _apply(self, art: Any, images: Tensor, draws: OpaqueDraws) -> Tensor:
        if not self.randomised:
            return self._call(art, images)
        seeds = draws.bits(1, lane=self.name)[:, 0].tolist()
        found = []
        for position, seed in enumerate(seeds):
            with seeded(seed):
                found.append(self._call(art, images[position : position + 1]))
        return torch.cat(found) if found else images

    def _call(self, art: Any, images: Tensor) -> Tensor:
        pixels = images.detach().permute(0, 2, 3, 1).float().cpu().numpy().copy()
        found, _ = art(pixels)
        return _images(found, images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomArtPreprocessor(ArtPreprocessor):
    """A transformation of the toolbox that draws random numbers."""

    randomised: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatedArtPreprocessor(ArtPreprocessor):
    """A transformation of the toolbox with the toolbox's own `estimate_gradient` as backward pass.

    That of ThermometerEncoding is zero at black pixels, which weakens attacks: prefer `thermometer`.
    """

    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "surrogate"

    def output_channels(self, channels: int) -> int:
        probe = np.full((1, 4, 4, channels), 0.5, dtype=np.float32)
        found, _ = build(self.name, self.parameters, "cpu")(probe)
        return int(found.shape[-1])

    def surrogate(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        art = build(self.name, self.parameters, images.device.type)
        hard = self.transform(images.detach(), draws)
        found: Tensor = _Estimated.apply(images, hard, art)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchArtPreprocessor(ArtPreprocessor):
    """A transformation of the toolbox written in torch, with its exact backward pass."""

    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "exact"
    differentiable: ClassVar[bool] = True

    def _call(self, art: Any, images: Tensor) -> Tensor:
        found: Tensor = art.forward(images)[0]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTorchArtPreprocessor(TorchArtPreprocessor):
    """A transformation of the toolbox written in torch that draws random numbers."""

    randomised: ClassVar[bool] = True


class _Estimated(torch.autograd.Function):
    """Forward: the computed result. Backward: the toolbox's gradient estimate."""

    @staticmethod
    def forward(context: Any, images: Tensor, hard: Tensor, art: Any) -> Tensor:
        context.save_for_backward(images)
        context.art = art
        return hard.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (images,) = context.saved_tensors
        pixels, upper = (
            part.detach().permute(0, 2, 3, 1).float().cpu().numpy() for part in (images, gradient)
        )
        return _images(context.art.estimate_gradient(pixels, upper), images), None, None


def _images(pixels: Any, like: Tensor) -> Tensor:
    """Return the toolbox's (N, H, W, C) as (N, C, H, W), of the dtype and on the device of `like`."""
    return torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2).contiguous().to(like)


def kind_of(name: str, art: Any) -> type[ArtPreprocessor]:
    """Return the class of defense that a class of the toolbox makes."""
    torch_base = imported(
        "art.defences.preprocessor.preprocessor", "adversarial-robustness-toolbox"
    )
    in_torch = issubclass(art, torch_base.PreprocessorPyTorch)
    if name not in DETERMINISTIC:
        return RandomTorchArtPreprocessor if in_torch else RandomArtPreprocessor
    if in_torch:
        return TorchArtPreprocessor
    estimates = art.estimate_gradient is not torch_base.Preprocessor.estimate_gradient
    return EstimatedArtPreprocessor if estimates else ArtPreprocessor


class Factory:
    """A factory of the defense `art:Name`; `parameters` says what it takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.art = find(name)
        own = options(self.art)
        self.parameters: Mapping[str, Any] = {**own, "estimates": int, "randomness": Randomness}
        self.required = [
            key
            for key, parameter in inspect.signature(self.art.__init__).parameters.items()
            if key in own and parameter.default is parameter.empty
        ]
        first = (inspect.getdoc(self.art) or name).strip().split("\n")[0]
        self.__doc__ = f"{first} (the toolbox's {name})"

    def __call__(
        self, *, estimates: int = 0, randomness: Randomness = "fresh", **parameters: Any
    ) -> Defense:
        own = [key for key in self.parameters if key not in ("estimates", "randomness")]
        for key in parameters:
            if key not in own:
                raise HarnessError(f"art:{self.name} has no parameter {key!r}: {nearest(key, own)}")
        for key in self.required:
            if key not in parameters:
                raise HarnessError(f"art:{self.name} needs {key}: -D {key}=...")
        made = kind_of(self.name, self.art)(
            name=self.name,
            parameters=tuple(sorted((key, _frozen(value)) for key, value in parameters.items())),
            estimates=estimates,
            randomness=randomness,
        )
        build(self.name, made.parameters, "cpu")  # the toolbox checks its parameters
        return made


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@defenses.bridge("art")
def art(name: str) -> Callable[..., Defense]:
    """Input transformations of the adversarial-robustness-toolbox by class name: art:JpegCompression."""
    return Factory(name)
