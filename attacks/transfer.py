"""Transfer: images made on another model (Papernot et al. 2017)."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.random import Draws
from harness.registry import attacks
from harness.spec import parse
from harness.types import Attack, Batch, Perturbed, Source, Spec, ThreatModel, Training, Victim


@attacks.register("transfer")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Another attack, run on a source model: by default an independent copy of the victim.

    `transfer(pgd)` is the paper's black-box setting: the same defense, trained with another seed
    (section 3.1). `defense=vanilla` makes the images on an undefended model instead. No image leaves
    where it fools the source: the target may stand there.
    """

    inner: Attack
    defense: str | None = None
    """The source's defense by name. None: the victim's."""
    training: Training | None = None
    """The source's training. None: the victim's."""
    seed_offset: int = 1
    """Added to the victim's seed; 0 is the victim's own training."""

    def __post_init__(self) -> None:
        # What is declared in the class elsewhere is here the inner attack's.
        for name in ("access", "norms", "bounded", "adaptive"):
            object.__setattr__(self, name, getattr(self.inner, name))

    @property
    def source(self) -> Source:
        """The model on which the images are made."""
        defense: Spec | None = None if self.defense is None else parse(self.defense)
        return Source(defense=defense, training=self.training, seed_offset=self.seed_offset)

    @property
    def passes(self) -> int | None:
        """Passes of the inner attack for each image; None where it does not say."""
        return self.inner.passes

    @property
    def steps(self) -> Any:
        """The inner attack's steps, by which its trace is numbered; 0 where it has none."""
        return getattr(self.inner, "steps", 0)

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raise HarnessError where the inner attack cannot be used."""
        self.inner.check(victim, threat)

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        """Return what the inner attack finds on the source, which `victim` is."""
        return self.inner.on_source().perturb(victim, batch, threat, draws)
