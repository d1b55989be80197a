"""Projected gradient ascent: the one inner loop of every native gradient attack.

x[k+1] = project(x[k] + step(gradient of the loss at x[k])): into the ball around the image and the
box [0, 1] (Kurakin et al. 2017; Madry et al. 2018). What differs between attacks is a field of
`ProjectedGradient`, the point where the ascent starts, or a hook on the gradient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.attacks.losses import LOSSES, LossName, against
from harness.attacks.parameters import at_least_one, one_of, positive
from harness.geometry import project, random_start, step
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
    restarts: int = 1
    """Ascents per image; each image's best by (misclassified, loss) on fresh draws is returned."""
    random_start: bool = True
    """Start at a uniform draw from the ball instead of at the image."""
    loss: LossName = "cross-entropy"
    backward: Backward = "exact"
    """The defense as it is (`exact`), its `declared` backward pass, or the `identity` for it."""
    eot: int = 1
    """Draws of the defense's randomness that a step's gradient averages (Athalye et al. 2018)."""
    keep: Keep = "auto"
    """The iterate that is returned: the `last`; the `best`, of greatest mean loss; the `first` that
    less than half of its step's draws classify rightly (the last where there is none). `auto`: the
    first for a deterministic victim, whose verdict stands, and the best for a randomised one."""
    snapshot_steps: tuple[int, ...] | None = None
    """Steps k to keep a snapshot at: what k steps of this size would have returned. Of the first
    restart only. None: 7, 20, 40, 100, 200, 500 and steps / 2, those below `steps`."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "eot"):
            at_least_one(name, getattr(self, name))
        if self.step_size is not None:
            positive("step_size", self.step_size)
        one_of("loss", self.loss, tuple(LOSSES))
        one_of("backward", self.backward, ("declared", "exact", "identity"))
        one_of("keep", self.keep, ("auto", "last", "best", "first"))
        for number in self.snapshot_steps or ():
            at_least_one("snapshot_steps", number)

    @property
    def passes(self) -> int:
        """Forward-backward passes an image needs at most.

        Two things add `eot` forwards to each restart: choosing among restarts, and keep="best",
        whose last iterate no step has looked at.
        """
        return self.steps * self.restarts * self.eot

    @property
    def snapshots(self) -> frozenset[int]:
        """The steps of which a snapshot is kept."""
        chosen = self.snapshot_steps
        if chosen is None:
            chosen = (*SNAPSHOTS, self.steps // 2)
        return frozenset(number for number in chosen if 0 < number < self.steps)

    def step_length(self, threat: ThreatModel) -> float:
        """The step size, in pixel values."""
        if self.step_size is not None:
            return self.step_size
        least = threat.epsilon / self.steps
        return min(2.5 * least, max(threat.epsilon / 4, least))

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raises HarnessError where this attack cannot serve."""
        super().check(victim, threat)
        if self.loss == "dlr" and victim.classes < 3:
            raise HarnessError(
                f"loss is dlr, which needs at least 3 classes, and the model has {victim.classes}: "
                "use loss=margin"
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
    """Projected gradient ascent with the parameters of `attack`.

    Args:
        batch: the images (N, C, H, W), centres of the balls.
        draws: of the batch's ids, role ATTACK; restart r draws at r (steps + 1) + 0, ..., steps.
        start: where to begin instead of the images; a random start is then drawn around it.
        direction: changes each gradient before the step.

    Returns:
        Perturbed images in the ball and the box, and the snapshots of the first restart.
    """
    if not len(batch):
        return Perturbed(batch.images)
    origin = batch.images if start is None else project(start, batch.images, threat)
    everyone = torch.arange(len(batch), device=batch.images.device)
    found, snapshots = _climb(attack, victim, batch, threat, draws, origin, everyone, direction, 0)
    if attack.restarts == 1:
        return Perturbed(found, snapshots)

    found = found.clone()  # a snapshot may be the same tensor
    # Candidates are compared on draws that no step has seen, the same ones for every restart.
    referee = draws.at(step=attack.restarts * (attack.steps + 1))
    correct, loss = score(attack, victim, found, batch.labels, referee)
    for restart in range(1, attack.restarts):
        left = everyone
        if _kept(attack, victim) == "first":
            left = (correct >= 0.5).nonzero().squeeze(1)
            if not len(left):
                break
        part, part_draws = batch[left], draws[left]
        candidate, _ = _climb(
            attack, victim, part, threat, part_draws, origin[left], left, direction, restart
        )
        new_correct, new_loss = score(attack, victim, candidate, part.labels, referee[left])
        fell, had_fallen = new_correct < 0.5, correct[left] < 0.5
        better = torch.where(fell == had_fallen, new_loss > loss[left], fell)
        found[left] = torch.where(_wide(better), candidate, found[left])
        correct[left] = torch.where(better, new_correct, correct[left])
        loss[left] = torch.where(better, new_loss, loss[left])
    return Perturbed(found, snapshots)


def score(
    attack: ProjectedGradient, victim: Victim, images: Tensor, labels: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """(N,) share of `eot` draws that are classified rightly and (N,) mean loss; `eot` forwards."""
    correct = torch.zeros(len(images), device=images.device)
    loss = torch.zeros_like(correct)
    for number in range(attack.eot):
        logits = victim.logits(images, draws.at(draw=draws.draw * attack.eot + number))
        correct += (logits.argmax(dim=1) == labels).to(correct) / attack.eot
        loss += against(attack.loss, labels)(logits).to(loss) / attack.eot
    return correct, loss


def _climb(
    attack: ProjectedGradient,
    victim: Victim,
    batch: Batch,
    threat: ThreatModel,
    draws: Draws,
    origin: Tensor,
    positions: Tensor,
    direction: Direction | None,
    restart: int,
) -> tuple[Tensor, dict[int, Tensor]]:
    """One ascent from `origin`: (the iterates that `keep` names, the snapshots by step).

    With keep="first" an image stays where it first fell and leaves the batch: nothing of it is
    asked again, and nothing that is returned depends on it.
    """
    keep = _kept(attack, victim)
    size = attack.step_length(threat)
    wanted = attack.snapshots if restart == 0 else frozenset()
    first_step = restart * (attack.steps + 1)
    # Finding out who may leave waits for the device: a GPU would run dry if asked after every step.
    patience = 1 if batch.images.device.type == "cpu" else 8

    x = origin.clone()
    if attack.random_start:
        x = project(random_start(origin, threat, draws.at(draw=restart)), batch.images, threat)
    images, labels = batch.images, batch.labels
    active = torch.arange(len(batch), device=x.device)
    result, greatest = x, torch.full((len(x),), -math.inf, device=x.device)
    if keep == "first":
        result, fallen = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    snapshots: dict[int, Tensor] = {}

    for number in range(attack.steps):
        if keep == "last" and number in wanted:
            snapshots[number] = x
        if keep == "first" and number in wanted:
            snapshots[number] = result.index_copy(0, active, x)

        gradient = victim.gradient(
            x,
            draws.at(step=first_step + number),
            against(attack.loss, labels),
            backward=attack.backward,
            samples=attack.eot,
        )
        if keep == "best":
            result, greatest = _greater(gradient.loss, x, greatest, result)
            if number in wanted:
                snapshots[number] = result
        value = gradient.value
        if keep == "first":
            fallen = fallen | (gradient.correct < 0.5)
            if number % patience == 0 and bool(fallen.any()):
                result.index_copy_(0, active, x)
                left = (~fallen).nonzero().squeeze(1)
                active, x, images, labels = active[left], x[left], images[left], labels[left]
                draws, value, fallen = draws[left], value[left], fallen[left]
                if not len(active):
                    break

        if direction is not None:
            value = direction(value, positions[active])
        moved = project(x + step(value, size, threat), images, threat)
        x = torch.where(_wide(fallen), x, moved) if keep == "first" and patience > 1 else moved

    if keep == "last":
        return x, snapshots
    if keep == "best":
        final = draws.at(step=first_step + attack.steps)
        result, _ = _greater(score(attack, victim, x, labels, final)[1], x, greatest, result)
        return result, snapshots
    result.index_copy_(0, active, x)
    for number in wanted - snapshots.keys():  # everybody had left before
        snapshots[number] = result
    return result, snapshots


def _greater(loss: Tensor, x: Tensor, greatest: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """(best iterates, their losses) after seeing iterates `x` with losses `loss`."""
    return torch.where(_wide(loss > greatest), x, best), torch.maximum(loss, greatest)


def _kept(attack: ProjectedGradient, victim: Victim) -> Keep:
    if attack.keep != "auto":
        return attack.keep
    return "best" if victim.randomised else "first"


def _wide(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1), to go with images."""
    return values.reshape(-1, 1, 1, 1)
