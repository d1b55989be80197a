"""Projected gradient ascent: the one inner loop of every native gradient attack.

x[k+1] = project(x[k] + step(gradient of the loss at x[k])): into the ball around the image and the
box [0, 1] (Kurakin et al. 2017; Madry et al. 2018). What differs between attacks is a field of
`ProjectedGradient`, the point where the ascent starts, or a hook on the gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.attacks.losses import LOSSES, LossName, against, runners_up, towards
from harness.attacks.parameters import at_least_one, offered, one_of, positive, text
from harness.attacks.selection import Best, Referee
from harness.attacks.step_rules import Schedule, Walk
from harness.geometry import project, random_start
from harness.random import Draws
from harness.types import (
    Attack,
    Backward,
    Batch,
    HarnessError,
    Norm,
    Perturbed,
    ThreatModel,
    Victim,
)

Keep = Literal["auto", "last", "best", "first"]
Direction = Callable[[Tensor, Tensor], Tensor]
"""(gradient (M, C, H, W), positions (M,) in the batch) -> direction of the step (M, C, H, W)."""

SNAPSHOTS = (7, 20, 40, 100, 200, 500)
"""Steps after which an iterate is kept for the trace, where the attack does not say otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedGradient(Attack):
    """The parameters of the ascent. Abstract: `pgd`, `cw`, `bpda` differ in what they preset."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    steps: int = 40
    """Gradient steps; each takes `eot` forward-backward passes."""
    step_size: float | None = None
    """In pixel values of [0, 1], as epsilon. None: 2.5 epsilon / steps, but at most epsilon / 4 (Madry
    et al.'s 2/255 at 8/255) and at least epsilon / steps (all of the ball is in reach)."""
    schedule: Schedule = "constant"
    """The step size as the ascent goes on: `constant`, `linear` down to zero, or `adaptive`: Auto-PGD's
    rule of checkpoints, from 2 epsilon (Croce and Hein 2020)."""
    momentum: float = 0.0
    """The share of the last move in the next one, from 0 to below 1 (Auto-PGD: 0.25)."""
    restarts: int = 1
    """Ascents per image; each image's best is returned, as `keep` says of iterates."""
    targeted: int = 0
    """Further ascents, the k-th towards the class that is the k-th most probable wrong one of the image."""
    random_start: bool = True
    """Start at a uniform draw from the ball instead of at the image."""
    loss: LossName = "cross-entropy"
    backward: Backward = "exact"
    """The defense as it is (`exact`), its `declared` backward pass, the `identity` for it, or another
    one that the defense offers (docs/attacks.md)."""
    eot: int = 1
    """Draws of the defense's randomness that a step's gradient averages (Athalye et al. 2018)."""
    keep: Keep = "auto"
    """The iterate that is returned: the `last`; the `best`, by the share of draws that are wrong, then by
    loss, of a randomised victim on `looks` draws apart from the steps'; the `first` that less than half
    of its step's draws classify rightly (the last where there is none). `auto`: the first for a
    deterministic victim, whose verdict stands, the best for a randomised one, the last in `transfer`."""
    looks: int = 8
    """Draws on which candidates are compared where the victim is randomised: the iterates at the snapshots'
    steps, the ones of greatest loss between them, the last, and the results of the ascents."""
    snapshot_steps: tuple[int, ...] | None = None
    """Steps k to keep a snapshot at: what k steps of this size would have returned. Of the first
    ascent only. None: 7, 20, 40, 100, 200, 500 and steps / 2, those below `steps`."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "eot", "looks"):
            at_least_one(name, getattr(self, name))
        if self.step_size is not None:
            positive("step_size", self.step_size)
        if self.targeted:
            at_least_one("targeted", self.targeted)
        if not 0 <= self.momentum < 1:
            raise HarnessError(f"momentum is {self.momentum!r}: it must be from 0 to below 1")
        one_of("loss", self.loss, tuple(LOSSES))
        text("backward", self.backward)
        one_of("schedule", self.schedule, ("constant", "linear", "adaptive"))
        one_of("keep", self.keep, ("auto", "last", "best", "first"))
        for number in self.snapshot_steps or ():
            at_least_one("snapshot_steps", number)

    @property
    def gradients(self) -> int:
        """Gradients for each image, at most: the budget by which attacks are compared."""
        return self.steps * self.eot * (self.restarts + self.targeted)

    @property
    def passes(self) -> int:
        """Passes for each image, at most: gradients, and forwards by which candidates are compared."""
        ascents = self.restarts + self.targeted
        candidates = 2 * len(self.snapshots) + 2 if self.keep in ("auto", "best") else 0
        compared = candidates + (ascents > 1)
        return self.gradients + self.looks * (ascents * compared + (self.targeted > 0))

    @property
    def snapshots(self) -> frozenset[int]:
        """The steps after which a snapshot is kept."""
        chosen = self.snapshot_steps
        if chosen is None:
            chosen = (*SNAPSHOTS, self.steps // 2)
        return frozenset(number for number in chosen if 0 < number < self.steps)

    def step_length(self, threat: ThreatModel) -> float:
        """Return the step size in pixel values; under a schedule, that of the first step."""
        if self.step_size is not None:
            return self.step_size
        if self.schedule == "adaptive":
            return 2 * threat.epsilon
        least = threat.epsilon / self.steps
        return min(2.5 * least, max(threat.epsilon / 4, least))

    def on_source(self) -> ProjectedGradient:
        """Return the attack with the last iterate instead of the first that fools the source."""
        return dataclasses.replace(self, keep="last") if self.keep == "auto" else self

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raise HarnessError where this attack cannot be used."""
        super().check(victim, threat)
        offered(victim, self.backward)
        if self.loss == "dlr" and victim.classes < 3:
            raise HarnessError(
                f"loss is dlr, which needs at least 3 classes, and the model has {victim.classes}: "
                "use loss=margin"
            )
        if self.targeted >= victim.classes:
            raise HarnessError(
                f"targeted is {self.targeted}: the model has {victim.classes - 1} wrong classes to aim at"
            )


def ascend(
    attack: ProjectedGradient,
    victim: Victim,
    batch: Batch,
    threat: ThreatModel,
    draws: Draws,
    *,
    start: Tensor | None = None,
    direction: Direction | None = None,
) -> Perturbed:
    """Run projected gradient ascent with the parameters of `attack`.

    Args:
        batch: the images (N, C, H, W), centres of the balls.
        draws: of the batch's ids, role ATTACK; ascent r draws at r (steps + 1) + 0, ..., steps.
        start: where to begin instead of the images; a random start is then drawn around it.
        direction: changes each gradient before the step.

    Returns:
        Perturbed images in the ball and the box, and the snapshots of the first ascent.
    """
    if not len(batch):
        return Perturbed(batch.images)
    keep = attack.keep
    if keep == "auto":
        keep = "best" if victim.randomised else "first"
    origin = batch.images if start is None else project(start, batch.images, threat)
    everyone = torch.arange(len(batch), device=batch.images.device)
    referee = Referee(victim, attack.loss, attack.looks if victim.randomised else attack.eot, draws)
    climb = _Climb(attack, victim, threat, keep, direction)
    found, snapshots = climb(batch, draws, origin, everyone, referee, 0)
    ascents = attack.restarts + attack.targeted
    if ascents == 1:
        return Perturbed(found, snapshots)

    found = found.clone()  # a snapshot may be the same tensor
    verdict = referee.judge(found, batch.labels)
    if attack.targeted:
        ranked = runners_up(referee.probabilities(batch.images), batch.labels, attack.targeted)
    for ascent in range(1, ascents):
        left = everyone
        if keep == "first":
            left = (verdict.wrong <= 0.5).nonzero().squeeze(1)
            if not len(left):
                break
        aim = None if ascent < attack.restarts else ranked[left, ascent - attack.restarts]
        part = batch[left]
        candidate, _ = climb(part, draws[left], origin[left], left, referee[left], ascent, aim)
        judged = referee[left].judge(candidate, part.labels)
        better = judged.beats(verdict[left])
        found[left] = torch.where(_wide(better), candidate, found[left])
        verdict.wrong[left] = torch.where(better, judged.wrong, verdict.wrong[left])
        verdict.loss[left] = torch.where(better, judged.loss, verdict.loss[left])
    return Perturbed(found, snapshots)


@dataclasses.dataclass(frozen=True)
class _Climb:
    """One ascent after another of the same attack on the same victim."""

    attack: ProjectedGradient
    victim: Victim
    threat: ThreatModel
    keep: Keep
    direction: Direction | None

    def __call__(
        self,
        batch: Batch,
        draws: Draws,
        origin: Tensor,
        positions: Tensor,
        referee: Referee,
        ascent: int,
        rivals: Tensor | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Climb once from `origin`: (the iterates that `keep` names, the snapshots by step).

        With keep="first" an image stays where it first fell and leaves the batch: nothing of it is
        asked again, and nothing that is returned depends on it. `rivals` (N,) are classes to aim at.
        """
        attack, threat, keep = self.attack, self.threat, self.keep
        first_step = ascent * (attack.steps + 1)
        # Finding out who may leave waits for the device: a GPU would run dry if asked after every step.
        patience = 1 if batch.images.device.type == "cpu" else 8

        x = origin.clone()
        if attack.random_start:
            x = project(random_start(origin, threat, draws.at(draw=ascent)), batch.images, threat)
        images, labels = batch.images, batch.labels
        size = attack.step_length(threat)
        walk = Walk(attack.schedule, attack.momentum, size, attack.steps, threat)
        best = Best(referee, labels)
        active = torch.arange(len(batch), device=x.device)
        result, fallen = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        snapshots: dict[int, Tensor] = {}
        follow = attack.loss == "probability" and rivals is None
        if follow:  # the mean's margin needs one rival for all draws: the last step's runner-up
            rivals = runners_up(referee.probabilities(x), labels, 1)[:, 0]

        for number in range(attack.steps):
            if number in attack.snapshots:
                if keep == "best" and self.victim.randomised:
                    snapshots[number] = best.settle(x)
                elif keep == "last":
                    snapshots[number] = x
                elif keep == "first":
                    snapshots[number] = result.index_copy(0, active, x)
            gradient = self.victim.gradient(
                x,
                draws.at(step=first_step + number),
                against(attack.loss, labels)
                if rivals is None
                else towards(attack.loss, labels, rivals),
                backward=attack.backward,
                samples=attack.eot,
            )
            value, loss = gradient.value, gradient.loss
            if follow:
                rivals = runners_up(gradient.probabilities, labels, 1)[:, 0]
            if keep == "best":
                best.see(x, gradient)
                if number in attack.snapshots and not self.victim.randomised:
                    snapshots[number] = best.seen
            if keep == "first":
                fallen = fallen | (gradient.correct < 0.5)
                if number % patience == 0 and bool(fallen.any()):
                    result.index_copy_(0, active, x)
                    left = (~fallen).nonzero().squeeze(1)
                    active, x, images, labels = active[left], x[left], images[left], labels[left]
                    draws, fallen, value, loss = draws[left], fallen[left], value[left], loss[left]
                    rivals = None if rivals is None else rivals[left]
                    walk.select(left)
                    if not len(active):
                        break
            if self.direction is not None:
                value = self.direction(value, positions[active])
            moved = walk.move(x, value, loss, images)
            x = torch.where(_wide(fallen), x, moved) if keep == "first" and patience > 1 else moved

        if keep == "best":
            return best.settle(x), snapshots
        if keep == "last":
            return x, snapshots
        result.index_copy_(0, active, x)
        for number in attack.snapshots - snapshots.keys():  # everybody had left before
            snapshots[number] = result
        return result, snapshots


def _wide(values: Tensor) -> Tensor:
    """Return (N,) as (N, 1, 1, 1), to broadcast against images."""
    return values.reshape(-1, 1, 1, 1)
