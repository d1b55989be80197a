"""Code that the bridges to foolbox, torchattacks and the toolbox share.

A library's attack is a guest: it sees the victim through `guarded.Guarded`, draws its random numbers from a
state that is seeded for it and put back after it, and its images go through `guarded.settle` before the
judge sees them. What is known of each attack stands in a `Sheet`, so that listing them imports no library.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.attacks.libraries.guarded import Guarded, in_box, seeded, settle
from harness.attacks.libraries.parameters import convert
from harness.random import Draws
from harness.registry import nearest
from harness.types import (
    Access,
    Attack,
    Batch,
    HarnessError,
    Norm,
    Perturbed,
    ThreatModel,
    Victim,
)

BOTH: tuple[Norm, ...] = ("linf", "l2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """Facts about one attack of a library, known before the library is imported."""

    summary: str
    access: Access = "gradients"
    norms: tuple[Norm, ...] = ("linf",)
    bounded: bool = True
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Defaults that the bridge sets because the library's own would mislead."""
    single: bool = False
    """True where the attack loops over its images: it then gets them one by one, so that its
    queries are booked to the right sample and its result does not depend on the batch."""
    probabilities: bool = False
    """True where it needs softmax outputs instead of logits."""
    channels: int | None = None
    """The only number of channels that it works on."""
    least_classes: int = 2
    note: str = ""
    refusal: str = ""
    """The reason why it cannot be used here; empty where it can."""


def refused(summary: str, reason: str) -> Sheet:
    """Describe an attack that cannot serve."""
    return Sheet(summary=summary, refusal=reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibraryAttack(Attack):
    """One attack of a library. Abstract: each bridge says how its library is called."""

    library: ClassVar[str]
    sheets: ClassVar[Mapping[str, Sheet]]

    name: str
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        sheet = sheet_of(self.library, self.sheets, self.name)
        if sheet.refusal:
            raise HarnessError(f"{self.library}:{self.name} cannot serve: {sheet.refusal}")
        given = {**sheet.preset, **self.parameters}
        converted = convert(f"{self.library}:{self.name}", given, self.signature(), self.supplied())
        object.__setattr__(self, "parameters", converted)

    @property
    def sheet(self) -> Sheet:
        return self.sheets[self.name]

    @property
    def access(self) -> Access:  # type: ignore[override]
        return self.sheet.access

    @property
    def norms(self) -> tuple[Norm, ...]:  # type: ignore[override]
        return self.sheet.norms

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.sheet.bounded

    @abc.abstractmethod
    def signature(self) -> Mapping[str, inspect.Parameter]:
        """Return the constructor's parameters; import the library."""

    @abc.abstractmethod
    def supplied(self) -> Mapping[str, str]:
        """Return the parameters that the harness passes and the user may not, with where they come from."""

    @abc.abstractmethod
    def run(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Tensor:
        """Return the library's images (N, C, H, W), from images in [0, 1] exactly."""

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Refuse a victim or a ball that this attack cannot serve."""
        if threat.norm not in self.norms:
            raise HarnessError(
                f"{self.library}:{self.name} does not serve norm {threat.norm}: "
                f"it serves {', '.join(self.norms)}"
            )
        if victim.classes < self.sheet.least_classes:
            raise HarnessError(
                f"{self.library}:{self.name} needs at least {self.sheet.least_classes} classes, "
                f"the model has {victim.classes}"
            )

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        if not len(batch):
            return Perturbed(batch.images)
        channels = batch.images.shape[1]
        if self.sheet.channels not in (None, channels):
            raise HarnessError(
                f"{self.library}:{self.name} works on {self.sheet.channels} channels only, "
                f"the images have {channels}"
            )
        inside = dataclasses.replace(batch, images=in_box(batch.images))
        parts = [slice(i, i + 1) for i in range(len(batch))] if self.sheet.single else [slice(None)]
        found = []
        for part in parts:
            with seeded(draws[part]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(self.run(victim, inside[part], threat, draws[part]))
        images = torch.cat([part.detach().to(batch.images) for part in found])
        return Perturbed(settle(images, batch, threat, bounded=self.bounded))

    def guard(self, victim: Victim, batch: Batch, draws: Draws) -> Guarded:
        """Return the victim with the access of this attack."""
        return Guarded(
            victim.module(batch, draws),
            batch.ids,
            self.access,
            probabilities=self.sheet.probabilities,
            sticky=victim.randomised and self.access == "labels",
        )


def step_length(epsilon: float, steps: int) -> float:
    """Return 2.5 epsilon / steps, at most epsilon / 4, at least epsilon / steps, as native attacks do.

    The libraries' fixed step sizes (2/255) are lost in a ball of 0.3 and leap out of one of 1/255.
    """
    least = epsilon / max(steps, 1)
    return min(2.5 * least, max(epsilon / 4, least))


def sheet_of(library: str, sheets: Mapping[str, Sheet], name: str) -> Sheet:
    """Return the sheet of a name.

    Raises:
        HarnessError: no such attack (with the nearest names).
    """
    if name in sheets:
        return sheets[name]
    hint = nearest(
        name, sheets, prefix=f"{library}:", otherwise="`harness list attacks --all` shows all"
    )
    raise HarnessError(f"{library} has no attack {name!r} here: {hint}")


def listing(library: str, sheets: Mapping[str, Sheet]) -> list[tuple[str, str, str | None]]:
    """Return (name, summary, why it is refused or None) of each attack of a library; import nothing."""
    return [
        (f"{library}:{name}", sheet.summary, sheet.refusal or None)
        for name, sheet in sorted(sheets.items())
    ]
