"""Cells: the questions put to the harness, as plain data. Needs no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from harness import registry
from harness.types import HarnessError, Spec, ThreatModel, Training

Augment = Literal["none", "crop", "crop-flip"]


Precision = Literal["auto", "float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The training of a module: momentum SGD with step decay, as in ME-Net, or Adam."""

    kind: Training | Literal["given"] = "pure"
    """`given`: the model came with its weights and is not trained here."""
    epochs: int
    """Passes over the training images. A pass sees one version of an image where a defense keeps several."""
    batch_size: int = 256
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    """The points at which the learning rate is divided by 10, as shares of all epochs."""
    augment: Augment = "none"
    limit: int | None = None
    """The number of training images that are used; None for all."""
    inner: Spec | None = None
    """The attack of adversarial training."""
    inner_transform: Literal["inference", "training"] = "inference"
    """The transformation that the inner attack meets: the defense's at `inference` (ME-Net: the mean keep
    probability), or that of this step's `training` (the keep probability that the step draws)."""
    epsilon: float = 0.0
    warmup: float = 0.0
    """The share of the epochs over which the inner attack's epsilon grows linearly to its full size."""
    paper_epochs: int | None = None
    """The number of epochs in the published schedule; training with fewer updates is flagged as scaled down.
    An epoch of the released code sees every version of each image (`defaults.published_updates`)."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1 and self.kind != "given":
                raise HarnessError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not self.learning_rate > 0:
            raise HarnessError(f"learning_rate is {self.learning_rate}: it must be positive")
        if self.limit is not None and self.limit < 1:
            raise HarnessError(f"a training limit of {self.limit}: it must be 1 or more")
        ThreatModel(epsilon=self.epsilon)  # raises where there is no such ball
        if self.kind == "adversarial" and self.inner is None:
            raise HarnessError("adversarial training needs an inner attack")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A defended model that is to be trained, or loaded."""

    dataset: str
    model: Spec
    defense: Spec
    training: TrainingPlan
    seed: int = 0
    precision: Precision = "auto"
    """The precision of the classifier in training and for an attack's gradients; scores and judgements are
    always in float32. `auto`: bfloat16 on a GPU, float32 elsewhere."""

    @property
    def label(self) -> str:
        """The name in tables: `menet-nuc`, `menet-nuc adversarial`, or the registry's alias."""
        if self.training.kind != "adversarial":
            return str(self.defense)
        alias = registry.defenses.alias_of(str(self.defense), self.training.kind)
        return alias or f"{self.defense} adversarial"

    @property
    def schooling(self) -> str:
        """The training in words: `weights as given`, `1 epoch`, `30 epochs in bfloat16`."""
        epochs = self.training.epochs
        trained = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        said = "weights as given" if self.training.kind == "given" else trained
        return said if self.precision == "auto" else f"{said} in {self.precision}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """The specification of one number of a table: target, attack, ball, draws and limits."""

    target: Target
    attack: Spec
    threat: ThreatModel
    draws: int = 10
    limit: int | None = None
    max_queries: int | None = None

    def __post_init__(self) -> None:
        for name in ("draws", "limit", "max_queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HarnessError(f"{name} is {value}: it must be 1 or more")
