"""The types that every part of the harness shares. Of the project it imports only `random`, for types.

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
    """An error that the user can mend. The command line prints its one or two lines, without a traceback.

    `status` is the exit status of the command; `page` names the page of `docs/` that says more.
    """

    status = 2

    def __init__(self, message: str = "", *, page: Page | None = None) -> None:
        super().__init__(f"{message} (see docs/{page}.md)" if page else message)


class DamageError(HarnessError):
    """An error for a stored file that is not what was written."""

    status = 1


def number(text: str) -> float:
    """Return the number that a text states: a decimal such as 0.03 or a fraction such as 8/255.

    Raises:
        HarnessError: the text is neither.
    """
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
        """The shape (C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, index: Tensor | slice) -> Batch:
        """Return the samples at these positions, with images as float32 in [0, 1]."""
        images = self.images[index]
        if not images.dtype.is_floating_point:
            images = images.float() / 255.0
        return Batch(images, self.labels[index], self.ids[index])

    def first(self, count: int | None) -> Dataset:
        """Return the first `count` samples (None: all). The digest stays that of the whole split."""
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
    """True where `transform` uses its draws; `is_random` is derived from it."""
    backward: ClassVar[Literal["exact", "identity", "surrogate"]] = "exact"
    """The declared backward pass: the transformation's own, the identity (BPDA; Athalye et al. 2018),
    or that of `surrogate`."""
    backward_passes: ClassVar[tuple[str, ...]] = ()
    """Further backward passes, by the names under which `transform_along` offers them."""
    differentiable: ClassVar[bool] = True
    """True where automatic differentiation of `transform` gives a meaningful gradient."""
    estimates: int = 0
    """The number of fixed training versions of each image, made once and stored. With 0, every use of an
    image makes a fresh version."""
    randomness: Randomness = "fresh"
    """The source of the randomness at inference. `fresh` (as published): every query draws anew;
    `per-input`: the draw is a function of the pixels; `fixed`: one draw serves all inputs."""

    @property
    def is_random(self) -> bool:
        """True where two queries of one image may be answered differently.

        Override it where parameters switch the randomness off (a keep probability of 1).
        """
        return self.randomised and self.randomness == "fresh"

    def output_channels(self, channels: int) -> int:
        """Return the number of channels that the classifier receives for images of `channels` channels."""
        return channels

    def auxiliary_module(self, shape: tuple[int, int, int]) -> nn.Module | None:
        """Return an untrained module that `transform` needs (PixelDefend: a density model), or None.

        Args:
            shape: (C, H, W) of the images.
        """
        return None

    def auxiliary_plan(self) -> Mapping[str, Any]:
        """Return the training of the auxiliary module as fields of `harness.cells.cells.TrainingPlan`."""
        return {"epochs": 10, "batch_size": 64, "optimiser": "adam", "learning_rate": 1e-3}

    def auxiliary_loss(self, module: nn.Module, images: Tensor) -> Tensor:
        """Return the (N,) loss that trains the auxiliary module on clean images (N, C, H, W) in [0, 1]."""
        raise HarnessError(f"{type(self).__name__} has an auxiliary module but no loss for it")

    def computed_by(self, device: str) -> Mapping[str, str]:
        """Return what a record states about the implementation used on `device`, by name.

        Override it where the defense has several implementations.
        """
        return {}

    @abc.abstractmethod
    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        """Return the classifier's input at inference: (N, C, H, W) in [0, 1] -> (N, C', H, W)."""

    def training_transform(
        self,
        images: Tensor,
        draws: OpaqueDraws,
        auxiliary: nn.Module | None = None,
        *,
        version: int | None = None,
    ) -> Tensor:
        """Return the classifier's input in training: (N, C, H, W) in [0, 1] -> (N, C', H, W).

        Args:
            version: the number, from 0, of the stored version (of `estimates`) that is made; None for a
                version that is used once.
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
        """Return the classifier's input during the inner attack of an adversarial training step.

        Args:
            draws: the draws of the attack, which differ from one of its steps to the next.
            outer: the draws that `training_transform` receives in the same training step, for randomness
                that attack and training share.
        """
        return self.transform(images, draws, auxiliary)

    def surrogate(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        """Return a differentiable stand-in for `transform`, of the same shape, for the backward pass."""
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
        """Return `transform` under the same draws, differentiable along one of `backward_passes`."""
        raise HarnessError(
            f"{type(self).__name__} names the backward pass {backward!r} without a transform_along"
        )

    @property
    def offered_backward_passes(self) -> tuple[str, ...]:
        """The names of all backward passes that an attack may ask for."""
        return ("declared", "exact", "identity", *self.backward_passes)


class Victim(Protocol):
    """A defended model as an attack sees it. Access beyond what the attack declares raises HarnessError.

    `draws` carries the ids of the images that are passed in, so that an attack may query any subset of its
    batch, and the role that the attack was given; a query under another role is refused.
    """

    @property
    def classes(self) -> int: ...
    @property
    def randomised(self) -> bool: ...
    @property
    def backward_passes(self) -> tuple[str, ...]:
        """The names that `gradient` accepts for `backward`."""
        ...

    def labels(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (N,) int64 predicted classes. Needs the access `labels` or more."""
        ...

    def logits(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (N, K) float32 logits without gradients. Needs the access `scores` or more.

        They are computed in single precision because attacks take differences of them, which half
        precision would round away: SPSA then leaves 7 % more images standing.
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
        """Return the gradient of a loss with respect to the images. Needs the access `gradients`.

        Args:
            loss: maps logits (N, K) to a loss (N,).
            backward: the name of the backward pass.
            samples: the number of draws of the defense's randomness that are averaged (expectation over
                transformation, Athalye et al. 2018): draw numbers `draws.draw * samples + 0, 1, ...`
        """
        ...

    def transform(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the defense's transformation of the images, without gradients. Needs `gradients`."""
        ...

    def module(self, batch: Batch, draws: Draws) -> nn.Module:
        """Return the victim as a differentiable module images -> logits, for attacks of other libraries.

        Every call of the module takes new draws (their step is the number of the call).
        """
        ...


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A gradient with what its forward passes gave, all averaged over the draws.

    `value` (N, C, H, W) is the gradient, `loss` (N,) the loss, `logits` (N, K) the logits, `probabilities`
    (N, K) their softmax, and `correct` (N,) the share of draws in which the true label was predicted.
    """

    value: Tensor
    loss: Tensor
    logits: Tensor
    correct: Tensor
    probabilities: Tensor


@dataclasses.dataclass(frozen=True)
class Perturbed:
    """The result of an attack: images for the judge, and earlier iterates, by step, for the trace."""

    images: Tensor
    snapshots: Mapping[int, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(abc.ABC):
    """A search for adversarial images. Subclasses are final and frozen, and never judge their own result."""

    access: ClassVar[Access] = "gradients"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    bounded: ClassVar[bool] = True
    """True where the attack keeps to the ball. A minimum-norm attack does not: it is reported as accuracy
    at epsilon and median distance."""
    adaptive: ClassVar[bool] = False
    """True for an attack that was designed against the defense at hand. It has failed where it is weaker
    than the plain attack."""

    @property
    def source(self) -> Source | None:
        """The model on which the images are made; None where that is the victim."""
        return None

    @property
    def passes(self) -> int | None:
        """The most forward-backward passes (or queries) that an image takes, for estimates of time.

        None where the number is not known.
        """
        return None

    def on_source(self) -> Attack:
        """Return the attack as `transfer` runs it on a model other than the one that is judged.

        An image that fools the source need not fool the target, so an attack that stops at the first
        success returns a variant of itself that goes on.
        """
        return self

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raise HarnessError where the attack cannot be run on this victim under this threat model."""
        if threat.norm not in self.norms:
            raise HarnessError(
                f"{type(self).__name__} does not serve norm {threat.norm}: "
                f"it serves {', '.join(self.norms)}"
            )

    @abc.abstractmethod
    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return perturbed images of the batch's shape. `draws` has the batch's ids and the role ATTACK."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The model that a transfer attack attacks in place of the victim. A field of None is the victim's."""

    defense: Spec | None = None
    training: Training | None = None
    seed_offset: int = 1
    """The difference to the victim's seed: an independent copy, trained with another seed (ME-Net,
    section 3.1)."""
