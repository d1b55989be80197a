"""The words that every part of the harness speaks. Imports nothing of the project but `random`'s names.

Images are (N, C, H, W), float32, values in [0, 1]. Labels and sample ids are (N,) int64.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.random import Draws, OpaqueDraws

Norm = Literal["linf", "l2"]
Access = Literal["gradients", "scores", "labels", "none"]
Backward = str
"""A backward pass through a defense: `declared`, `exact`, `identity`, or one of its `backward_passes`."""
Randomness = Literal["fresh", "per-input", "fixed"]
Training = Literal["pure", "adversarial"]


Page = Literal[
    "attacks", "datasets", "defenses", "flags", "plugins", "protocols", "quickstart", "scaling"
]
"""A page of `docs/` that an error may send its reader to."""


class HarnessError(Exception):
    """Something that the user can mend: one or two lines, no traceback. `status` is the exit status.

    `page` is where more is said.
    """

    status = 2

    def __init__(self, message: str = "", *, page: Page | None = None) -> None:
        super().__init__(f"{message} (see docs/{page}.md)" if page else message)


class DamageError(HarnessError):
    """A stored file is not what was written."""

    status = 1


def number(text: str) -> float:
    """A number, or a fraction such as 8/255."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise HarnessError(f"{text!r} is not a number: write 0.03 or 8/255") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """The ball around each image. `epsilon` is in pixel values of [0, 1]: 8/255, or 0.3 for MNIST."""

    epsilon: float
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise HarnessError(
                f"epsilon is {self.epsilon}: it must be a finite number that is not negative, "
                "in pixel values of [0, 1] (--epsilon 8/255)"
            )
        if self.norm not in ("linf", "l2"):
            raise HarnessError(f"norm is {self.norm!r}: it must be linf or l2")
        if self.norm == "linf" and self.epsilon > 1:
            raise HarnessError(
                f"epsilon is {self.epsilon:g}, and pixels reach from 0 to 1: an L-infinity ball above 1 "
                f"holds every image there is. Did you mean --epsilon {self.epsilon:g}/255?"
            )

    def doubt(self, shape: tuple[int, ...]) -> str:
        """Return a line where the ball holds every image of this shape; empty where it does not."""
        diameter = math.sqrt(math.prod(shape))
        if self.norm == "linf" or self.epsilon < diameter:
            return ""
        return (
            f"an l2 epsilon of {self.epsilon:g} holds every image: two of {' x '.join(map(str, shape))} "
            f"pixels in [0, 1] are at most {diameter:.4g} apart"
        )


@dataclasses.dataclass(frozen=True)
class Spec:
    """A plugin by name with its parameters: `pgd(steps=40)`, `transfer(pgd(steps=40))`, `my.py:Class`."""

    name: str
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inner: Spec | None = None

    def __str__(self) -> str:
        inside = [str(self.inner)] if self.inner else []
        inside += [f"{key}={value}" for key, value in sorted(self.parameters.items())]
        return self.name + (f"({','.join(inside)})" if inside else "")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some images with their labels and stable ids."""

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return Batch(self.images[index], self.labels[index], self.ids[index])

    def to(self, device: Any) -> Batch:
        return Batch(self.images.to(device), self.labels.to(device), self.ids.to(device))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split in memory. `images` are uint8 (read as value / 255) or float32 in [0, 1].

    `ids` never change with order or subset; `digest` is the SHA-256 of pixels, labels and ids.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    digest: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, index: Tensor | slice) -> Batch:
        """The images at these positions as float32 in [0, 1]."""
        images = self.images[index]
        if not images.dtype.is_floating_point:
            images = images.float() / 255.0
        return Batch(images, self.labels[index], self.ids[index])

    def first(self, count: int | None) -> Dataset:
        """The first `count` samples (all where None). The digest stays that of the whole split."""
        if count is None or count >= len(self):
            return self
        return dataclasses.replace(
            self, images=self.images[:count], labels=self.labels[:count], ids=self.ids[:count]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense(abc.ABC):
    """A transformation in front of a classifier. Subclasses are final, frozen and hold only parameters.

    `transform` is a pure function: all its randomness comes from `draws` and all that it learnt from
    `auxiliary` (the module that `auxiliary_module` built and the harness trained), so a defense can be
    called from any process, in any order.
    """

    randomised: ClassVar[bool] = False
    """Whether `transform` uses its draws: what `is_random` starts from."""
    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "exact"
    """The declared backward pass: the transformation's own, the identity (BPDA; Athalye et al. 2018),
    or that of `surrogate`."""
    backward_passes: ClassVar[tuple[str, ...]] = ()
    """Further backward passes, by the names under which `transform_along` offers them."""
    differentiable: ClassVar[bool] = True
    """Whether automatic differentiation of `transform` gives a meaningful gradient."""
    estimates: int = 0
    """Fixed training versions of each image, made once and stored; 0 makes a fresh one at every use."""
    randomness: Randomness = "fresh"
    """`fixed`: one draw for all inputs for ever; `per-input`: a function of the pixels; `fresh`: as
    published."""

    @property
    def is_random(self) -> bool:
        """Whether two looks at one image may differ. Override it where parameters switch the
        randomness off (a keep probability of 1)."""
        return self.randomised and self.randomness == "fresh"

    def output_channels(self, channels: int) -> int:
        """How many channels the classifier receives for images of `channels` channels."""
        return channels

    def auxiliary_module(self, shape: tuple[int, int, int]) -> nn.Module | None:
        """An untrained module that the transformation needs (PixelDefend's density model), or None."""
        return None

    def auxiliary_plan(self) -> Mapping[str, Any]:
        """How the auxiliary module is trained: fields of `harness.results.records.TrainingPlan`."""
        return {"epochs": 10, "batch_size": 64, "optimiser": "adam", "learning_rate": 1e-3}

    def auxiliary_loss(self, module: nn.Module, images: Tensor) -> Tensor:
        """(N,) the loss by which the auxiliary module is trained on clean images."""
        raise HarnessError(f"{type(self).__name__} has an auxiliary module but no loss for it")

    def computed_by(self, device: str) -> Mapping[str, str]:
        """Return what a record states of how this defense computes, where it has several ways."""
        return {}

    @abc.abstractmethod
    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        """What the classifier sees at inference: (N, C, H, W) in [0, 1] -> (N, C', H, W)."""

    def training_transform(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        version: int | None = None,
    ) -> Tensor:
        """Return what the classifier sees in training.

        Args:
            version: which of the `estimates` stored versions is made, from 0; None for a version that
                is used once.
        """
        return self.transform(images, draws, auxiliary)

    def inner_transform(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        outer: OpaqueDraws,
    ) -> Tensor:
        """Return what the classifier sees inside the attack of one adversarial training step.

        `draws` are the attack's own, one place for each of its steps; `outer` are those with which
        `training_transform` is called in the same training step, for what both are to share.
        """
        return self.transform(images, draws, auxiliary)

    def surrogate(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        """A differentiable stand-in with `transform`'s output shape, for the backward pass."""
        return images

    def transform_along(
        self,
        backward: str,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        outer: OpaqueDraws | None = None,
    ) -> Tensor:
        """Return `transform` of the same draws, differentiable along one of `backward_passes`."""
        raise HarnessError(
            f"{type(self).__name__} names the backward pass {backward!r} without a transform_along"
        )

    @property
    def offered_backward_passes(self) -> tuple[str, ...]:
        """Every backward pass that an attack may ask for, by name."""
        return ("declared", "exact", "identity", *self.backward_passes)


class Victim(Protocol):
    """What an attack may touch. Access beyond what its threat model grants raises HarnessError.

    `draws` carries the ids of the images handed in, so that any subset may be asked about, and the role
    that the attack was given: a view answers under no other.
    """

    @property
    def classes(self) -> int: ...
    @property
    def randomised(self) -> bool: ...
    @property
    def backward_passes(self) -> tuple[str, ...]:
        """The names that `gradient` takes for `backward`."""
        ...

    def labels(self, images: Tensor, draws: Draws) -> Tensor:
        """(N,) int64 predictions: access `labels` and above."""
        ...

    def logits(self, images: Tensor, draws: Draws) -> Tensor:
        """(N, K) scores without gradients, in single precision: access `scores` and above.

        Attacks take differences of scores, and those drown in half precision: SPSA leaves 7 % more there.
        """
        ...

    def gradient(
        self,
        images: Tensor,
        draws: Draws,
        loss: Callable[[Tensor], Tensor],
        *,
        backward: Backward = "declared",
        samples: int = 1,
    ) -> Gradient:
        """The gradient of `loss` (logits (N, K) -> (N,)) by the images: access `gradients`.

        `samples` averages over that many draws of the defense's randomness (expectation over
        transformation, Athalye et al. 2018): draw numbers `draws.draw * samples + 0, 1, ...`
        """
        ...

    def transform(self, images: Tensor, draws: Draws) -> Tensor:
        """The defense's transformation alone, without gradients: access `gradients`."""
        ...

    def module(self, batch: Batch, draws: Draws) -> nn.Module:
        """The victim as a plain differentiable module images -> logits, for library attacks.

        Every call takes new draws (step = number of the call).
        """
        ...


@dataclasses.dataclass(frozen=True)
class Gradient:
    """`value` (N, C, H, W) mean gradient; `loss` (N,) mean loss; `logits` (N, K) mean logits;
    `correct` (N,) the share of the draws in which the true label was predicted; `probabilities`
    (N, K) mean softmax of the logits."""

    value: Tensor
    loss: Tensor
    logits: Tensor
    correct: Tensor
    probabilities: Tensor


@dataclasses.dataclass(frozen=True)
class Perturbed:
    """What an attack returns: images for the judge, and earlier iterates by step for the trace."""

    images: Tensor
    snapshots: Mapping[int, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(abc.ABC):
    """Images to perturbed images. Subclasses are final, frozen, and never judge themselves."""

    access: ClassVar[Access] = "gradients"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    bounded: ClassVar[bool] = True
    """Whether the attack keeps to the ball. A minimum-norm attack does not: it is reported as accuracy
    at epsilon and median distance."""
    adaptive: ClassVar[bool] = False
    """Whether it was made against the defense at hand: weaker than the plain one means a failed attack."""

    @property
    def source(self) -> Source | None:
        """Where the images are made, if not on the victim."""
        return None

    @property
    def passes(self) -> int | None:
        """Forward-backward passes (or queries) an image needs at most, for estimates of time."""
        return None

    def on_source(self) -> Attack:
        """Return the attack as `transfer` runs it on another model than the one that is judged.

        What fools the source need not fool the target: an attack that stops where an image falls goes on.
        """
        return self

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raises HarnessError where this attack cannot serve."""
        if threat.norm not in self.norms:
            raise HarnessError(
                f"{type(self).__name__} does not serve norm {threat.norm}: "
                f"it serves {', '.join(self.norms)}"
            )

    @abc.abstractmethod
    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Perturbed images of the batch's shape. `draws` has the batch's ids and role ATTACK."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a transfer attack attacks instead of the victim. None: as the victim."""

    defense: Spec | None = None
    training: Training | None = None
    seed_offset: int = 1
    """An independent copy: the same training with another seed (the paper, section 3.1)."""
