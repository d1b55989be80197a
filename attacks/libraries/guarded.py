"""A library's attack as a guest: the model it may ask, the random state it draws from, and what becomes
of the images that it returns."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness.geometry import norms, project
from harness.random import Draws, combine
from harness.types import Access, Batch, HarnessError, ThreatModel

ALLOWANCE = 1e-4
"""Excess over box or ball that a bridge takes for a library's rounding and projects away (EAD and SPSA of
torchattacks leave the box by 1e-5). Anything larger goes to the judge as it is, and is flagged there."""


class Guarded(nn.Module):
    """A model that answers images with logits and grants one level of access: one-hot labels, scores without
    gradients, or all. Weights stay out of reach: the view's module holds none.

    `sticky` makes a randomised victim answer alike for an image that it was asked about before. Decision
    attacks assert that their starting point is still misclassified and loop until it is: with fresh
    answers to old images they would raise or never end. New images get new draws.
    """

    def __init__(
        self,
        inner: nn.Module,
        ids: Tensor,
        access: Access,
        *,
        probabilities: bool = False,
        sticky: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.ids = ids
        self.granted = access
        self.probabilities = probabilities
        self.budget: int | None = None
        self.calls = 0
        self.watcher: Callable[[Tensor, Tensor, Tensor], None] | None = None
        self._answers: dict[tuple[int, int], Tensor] | None = {} if sticky else None
        self.eval()

    def onto(self, inner: nn.Module, ids: Tensor) -> Guarded:
        """Return the same guard, its memory and its count, around a module of some of its samples."""
        other = copy.copy(self)
        other._modules = {"inner": inner}
        other.ids = ids
        return other

    def forward(self, images: Tensor) -> Tensor:
        wants_gradient = images.requires_grad and torch.is_grad_enabled()
        if self.budget is not None and self.calls >= self.budget:
            raise BudgetSpent
        self.calls += 1
        images = images.float()  # the toolbox hands in float64
        if self.granted == "gradients":
            logits = self.inner(images)
        elif wants_gradient:
            raise HarnessError(
                f"an attack with access to {self.granted} asked for a gradient: its sheet is wrong"
            )
        else:
            with torch.no_grad():
                logits = self._answer(images)
        return torch.softmax(logits, dim=1) if self.probabilities else logits

    def _answer(self, images: Tensor) -> Tensor:
        """Return scores or one-hot labels."""
        logits: Tensor = self.inner(images)
        if self._answers is not None and len(images) == len(self.ids):
            rows = images.detach().cpu().flatten(1).numpy()
            keys = [
                (i, hash(row.tobytes())) for i, row in zip(self.ids.tolist(), rows, strict=True)
            ]
            known = [
                self._answers.setdefault(key, row) for key, row in zip(keys, logits, strict=True)
            ]
            logits = torch.stack(known)
        if self.watcher is not None and len(images) == len(self.ids):
            self.watcher(images, logits, self.ids)
        if self.granted == "scores":
            return logits
        return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits)


class BudgetSpent(Exception):
    """Raised to end an attack that has used up its queries."""


@contextmanager
def seeded(draws: Draws) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global random states by the draws; put them back after."""
    import numpy

    seed = seed_of(draws)
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    # Seeding torch seeds every GPU: put all of them back.
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if initialised else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


def seed_of(draws: Draws) -> int:
    """Return a 31-bit seed from the samples and the place of the run: the same batch, the same attack."""
    return combine(*draws.bits(1, lane="library")[:, 0].tolist()) & 0x7FFF_FFFF


def in_box(images: Tensor) -> Tensor:
    """Return the images with rounding excess over [0, 1] cut off: foolbox asserts its bounds exactly.

    Raises:
        HarnessError: the excess is more than rounding.
    """
    low, high = float(images.min()), float(images.max())
    if not (low >= -ALLOWANCE and high <= 1 + ALLOWANCE):
        raise HarnessError(f"images have values from {low:g} to {high:g}: they must be in [0, 1]")
    return images.clamp(0.0, 1.0)


def settle(found: Tensor, batch: Batch, threat: ThreatModel, *, bounded: bool) -> Tensor:
    """Return the images that the judge sees.

    An image that is not finite is the original: not attacked. Excess over the box, and of a bounded
    attack over the ball, is projected away up to `ALLOWANCE`; larger excess stays for the judge to flag.
    """
    images = batch.images
    if found.shape != images.shape:
        raise HarnessError(
            f"the attack returned shape {tuple(found.shape)} for images {tuple(images.shape)}"
        )
    finite = torch.isfinite(found).flatten(1).all(dim=1)
    found = torch.where(_wide(finite), found, images)
    excess = torch.maximum(-found, found - 1).flatten(1).amax(dim=1)
    in_reach = excess <= ALLOWANCE
    found = torch.where(_wide(in_reach), found.clamp(0.0, 1.0), found)
    if bounded:
        in_reach &= norms(found - images, threat.norm) <= threat.epsilon + ALLOWANCE
        found = torch.where(_wide(in_reach), project(found, images, threat), found)
    return found


def _wide(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
