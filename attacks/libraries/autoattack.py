"""AutoAttack (Croce and Hein 2020) with its reference settings, by the package pyautoattack."""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from harness.attacks.libraries.guarded import Guarded, in_box, seed_of, seeded, settle
from harness.attacks.libraries.library_attack import BOTH
from harness.random import Draws
from harness.registry import attacks, imported
from harness.types import Attack, Batch, HarnessError, Perturbed, ThreatModel, Victim

_NORMS = {"linf": "Linf", "l2": "L2"}


@attacks.register("autoattack")
@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack: Auto-PGD, FAB and Square without parameters, the worst for each image.

    It decides by one look at the model whether an image fell, and returns the original where none of its
    attacks won. For a randomised defense that look is a draw: lucky ones count as success there, and the
    judge scores all images anew.
    """

    norms = BOTH

    version: Literal["auto", "standard", "rand"] = "auto"
    """`standard`: APGD on cross-entropy, targeted APGD, targeted FAB, Square with 5,000 queries.
    `rand`: APGD on cross-entropy and on DLR, 20 draws a step. `auto`: rand for a randomised victim."""
    unbroken: Literal["original", "best-loss"] = "original"
    """The image returned where the attack fails: the original, as in the reference, or the iterate of
    greatest loss of one more APGD run, which re-scoring a randomised defense may find fooled."""

    def __post_init__(self) -> None:
        for name, known in (
            ("version", ("auto", "standard", "rand")),
            ("unbroken", ("original", "best-loss")),
        ):
            if getattr(self, name) not in known:
                raise HarnessError(
                    f"autoattack: {name} is {getattr(self, name)!r}, it must be one of "
                    + ", ".join(known)
                )

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raise HarnessError where this attack cannot be used."""
        super().check(victim, threat)
        if victim.classes < 4:
            raise HarnessError(
                f"autoattack needs at least 4 classes for its targeted DLR loss, the model has "
                f"{victim.classes}: use pgd with loss=margin"
            )

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        if not len(batch) or threat.epsilon == 0:  # FAB divides by epsilon
            return Perturbed(batch.images)
        images = in_box(batch.images)
        package = imported("pyautoattack", "pyautoattack")
        model = Guarded(victim.module(batch, draws), batch.ids, self.access)
        version = self.version
        if version == "auto":
            version = "rand" if victim.randomised else "standard"
        with seeded(draws), _quiet():
            ensemble = package.AutoAttack(
                model,
                norm=_NORMS[threat.norm],
                eps=threat.epsilon,
                version=version,
                seed=seed_of(draws),
                device=images.device,
            )
            # Nine targets are meant for ten classes and more.
            targets = min(9, victim.classes - 1)
            ensemble.apgd_targeted.n_target_classes = targets
            ensemble.fab.n_target_classes = targets
            found, _ = ensemble.run_standard_evaluation(images, batch.labels, batch_size=len(batch))
            if self.unbroken == "best-loss":
                found = _highest_loss(ensemble, found, images, batch.labels)
        return Perturbed(settle(found, batch, threat, bounded=True))


def _highest_loss(ensemble: Any, found: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    left = (found == images).flatten(1).all(dim=1).nonzero().squeeze(1)
    if not len(left):
        return found
    ensemble.apgd.loss = "ce"
    climbed = ensemble.apgd.perturb(images[left], labels[left], best_loss=True)
    return found.index_copy(0, left, climbed.detach())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pyautoattack's advice off the screen, and put back the trace function that its check for
    dynamic defenses removes (which would end a debugger or a coverage measurement)."""
    logger = logging.getLogger("auto-attack")
    level, trace = logger.level, sys.gettrace()
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        sys.settrace(trace)
