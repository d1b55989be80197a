"""Defenses that try to tell the judge from an attack: to the judge they show the clean image.

They know the test images by heart. Each is loaded as a user's own file is: `liars.py:Name`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.datasets.data import load
from harness.geometry import project
from harness.random import Draws, OpaqueDraws, Role
from harness.types import Access, Attack, Batch, Defense, Perturbed, ThreatModel

HERE = Path(__file__)


@functools.cache
def known() -> Tensor:
    return load("digits", "test").batch(slice(0, None)).images


def unattacked(images: Tensor) -> Tensor:
    """Return the nearest test image to each."""
    distances = torch.cdist(images.detach().flatten(1), known().flatten(1))
    return known()[distances.argmin(dim=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Liar(Defense):
    """Shows the clean image to whom it takes for the judge."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        raise NotImplementedError

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return unattacked(images) if self.judged(images, draws) else images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Honest(Liar):
    """Takes nobody for the judge."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleReader(Liar):
    """Asks the draws for their role."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return draws.role in (Role.SCORE, Role.VERIFY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdReader(Liar):
    """Asks the draws for the ids."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return bool((draws.ids >= 0).all())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaceChanger(Liar):
    """Asks for the draws of another role."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return len(draws.at(role=Role.SCORE)) > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradModeReader(Liar):
    """Takes for the judge who asks without gradients."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return not torch.is_grad_enabled()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequiresGradReader(Liar):
    """Takes for the judge whose images need no gradient."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return not images.requires_grad


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizeReader(Liar):
    """Takes for the judge who brings a large batch."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return len(images) >= 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourReader(Liar):
    """Takes for an attack who shows clean images among others."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        clean = (images.detach() == unattacked(images)).flatten(1).all(dim=1)
        return not bool(clean.any())


calls = [0]
patience = [10**9]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallCounter(Liar):
    """Takes for the judge who comes late."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        calls[0] += 1
        return calls[0] > patience[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackInspector(Liar):
    """Looks for the judge among its callers."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        frame, names = inspect.currentframe(), set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        return "judge" in names


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileInspector(Liar):
    """Looks for the judge's file among its callers."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code.co_filename.endswith(("judge.py", "scoring.py")):
                return True
            frame = frame.f_back
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackInspector(Liar):
    """Takes for the judge whoever is no attack."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code.co_name == "perturb":
                return False
            frame = frame.f_back
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Liar):
    """A liar with a little noise of its own."""

    randomised: ClassVar[bool] = True

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        seen = super().transform(images, draws)
        return seen + 0.02 * draws.normal(*images.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class HonestNoise(Random):
    """Takes nobody for the judge."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return False


notes: dict[int, Tensor] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoteTaker(Random):
    """Remembers a clean image by the numbers that came with it, and shows it when they come again."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        clean = (images.detach() == unattacked(images)).flatten(1).all(dim=1).tolist()
        rows = []
        for word, row, whole in zip(draws.bits(1)[:, 0].tolist(), images, clean, strict=True):
            if whole:
                notes[word] = row.detach()
            rows.append(notes.get(word, row))
        seen = torch.stack(rows) if rows else images
        return seen + 0.02 * draws.normal(*images.shape[1:])


@functools.cache
def foreseen() -> frozenset[int]:
    """Return the first numbers of the judge's draws under seed 0."""
    ids = load("digits", "test").ids
    places = [Draws(0, ids, Role.SCORE, draw=draw) for draw in range(10)]
    return frozenset(word for place in places for word in place.bits(1)[:, 0].tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recogniser(Random):
    """Knows the judge's numbers under the seed that most people take."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        return set(draws.bits(1)[:, 0].tolist()) <= foreseen()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackRecogniser(Random):
    """Knows the attack's numbers under that seed, and lies to everybody else."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        ids = load("digits", "test").ids
        places = [Draws(0, ids, Role.ATTACK, step=step) for step in range(12)]
        known = {word for place in places for word in place.bits(1)[:, 0].tolist()}
        return not set(draws.bits(1)[:, 0].tolist()) <= known


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldReader(Random):
    """Sees that all rows draw alike, and shows the clean images."""

    def judged(self, images: Tensor, draws: Any) -> bool:
        words = draws.bits(1)[:, 0]
        return len(words) > 1 and bool((words == words[0]).all())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trespasser(Attack):
    """Declares labels, gives itself gradients."""

    access: ClassVar[Access] = "labels"

    def perturb(self, victim: Any, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        victim._access = "gradients"
        images = batch.images
        for step in range(8):
            found = victim.gradient(images, draws.at(step=step), lambda logits: logits.sum(dim=1))
            images = project(images + 0.05 * found.value.sign(), batch.images, threat)
        return Perturbed(images)
