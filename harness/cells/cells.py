"""Cells: what is asked of the harness, as plain data. Needs no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from harness import registry
from harness.types import HarnessError, Spec, ThreatModel, Training

Augment = Literal["none", "crop", "crop-flip"]


Precision = Literal["auto", "float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How a module is trained: momentum SGD with step decay, as in the paper, or Adam."""

    kind: Training | Literal["given"] = "pure"
    """`given`: the model came with its weights and is not trained here."""
    epochs: int
    """An epoch sees each training image once, one of its versions where a defense keeps several."""
    batch_size: int = 256
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the learning rate is divided by 10, as shares of all epochs."""
    augment: Augment = "none"
    limit: int | None = None
    """Only so many training images."""
    inner: Spec | None = None
    """The attack of adversarial training."""
    inner_transform: Literal["inference", "training"] = "inference"
    """What the inner attack attacks: the defense as at `inference` (ME-Net: the mean keep probability), or
    as this step's `training` transforms it (the keep probability that the step draws)."""
    epsilon: float = 0.0
    warmup: float = 0.0
    """Share of the epochs over which the inner attack's epsilon grows linearly to its full size."""
    paper_epochs: int | None = None
    """How many epochs the published schedule has: fewer updates than its are scaled down. An epoch of
    the released code sees every version of each image (`defaults.published_updates`)."""

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
    """A defended model to be trained, or loaded."""

    dataset: str
    model: Spec
    defense: Spec
    training: TrainingPlan
    seed: int = 0
    precision: Precision = "auto"
    """Of the classifier in training and for an attack's gradients, never for scores or where images
    are judged. `auto`: bfloat16 on a GPU, float32 elsewhere."""

    @property
    def label(self) -> str:
        """Return the name in tables: `menet-nuc`, `menet-nuc adversarial`, or the registry's alias."""
        if self.training.kind != "adversarial":
            return str(self.defense)
        alias = registry.defenses.alias_of(str(self.defense), self.training.kind)
        return alias or f"{self.defense} adversarial"

    @property
    def schooling(self) -> str:
        """Return how it was trained: `weights as given`, `1 epoch`, `30 epochs in bfloat16`."""
        epochs = self.training.epochs
        trained = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        said = "weights as given" if self.training.kind == "given" else trained
        return said if self.precision == "auto" else f"{said} in {self.precision}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table: everything that is asked for."""

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
