"""Attacks that look for the nearest adversarial image, from foolbox: `cw-l2`, `boundary`, `hopskipjump`.

They know no epsilon. An image counts as fooled where the nearest one found lies in the ball; the median
distance stands beside it.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

from harness.attacks.libraries.foolbox.attack import Foolbox
from harness.attacks.libraries.library_attack import BOTH
from harness.attacks.parameters import at_least_one
from harness.random import Draws
from harness.registry import attacks
from harness.types import Attack, Batch, Perturbed, ThreatModel, Victim


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Nearest(Attack):
    """A minimum-norm attack of foolbox under a name of its own. Abstract."""

    norms = BOTH
    bounded = False

    @abc.abstractmethod
    def foolbox(self) -> Foolbox:
        """Return foolbox's attack with the parameters of this one."""

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        """Raise HarnessError where this attack cannot be used."""
        super().check(victim, threat)
        self.foolbox().check(victim, threat)

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        return self.foolbox().perturb(victim, batch, threat, draws)


@attacks.register("cw-l2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(_Nearest):
    """Carlini and Wagner (2017): minimum L2 by Adam in tanh space, with a binary search over c."""

    steps: int = 1000
    """Steps for each constant c; an image stops when its loss no longer falls."""
    binary_search_steps: int = 9
    step_size: float = 0.01
    confidence: float = 0.0
    """The margin by which the wrong class must win (the paper's released transfer attack: 20)."""
    initial_const: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("steps", "binary_search_steps"):
            at_least_one(name, getattr(self, name))

    @property
    def passes(self) -> int:
        return self.steps * self.binary_search_steps

    def foolbox(self) -> Foolbox:
        parameters: dict[str, Any] = dataclasses.asdict(self)
        parameters["stepsize"] = parameters.pop("step_size")
        return Foolbox(name="L2CarliniWagnerAttack", parameters=parameters)


@attacks.register("boundary")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Boundary(_Nearest):
    """Brendel et al. (2018): a random walk along the decision boundary towards the image, labels only."""

    access = "labels"

    steps: int = 1000
    """Steps of the walk (the paper: 1000); each is a query, every tenth two."""
    queries: int | None = None
    """The budget for each image, the search for its start included; None: what the steps need."""
    spherical_step: float = 0.01
    source_step: float = 0.01

    def __post_init__(self) -> None:
        at_least_one("steps", self.steps)
        if self.queries is not None:
            at_least_one("queries", self.queries)

    @property
    def passes(self) -> int:
        return min(self.queries or 10**9, 100 + self.steps + self.steps // 10)

    def foolbox(self) -> Foolbox:
        parameters: dict[str, Any] = dataclasses.asdict(self)
        queries = parameters.pop("queries")
        return Foolbox(name="BoundaryAttack", parameters=parameters, queries=queries)


@attacks.register("hopskipjump")
@dataclasses.dataclass(frozen=True, kw_only=True)
class HopSkipJump(_Nearest):
    """Chen et al. (2020): the boundary attack with gradients estimated from labels; minimum of the norm."""

    access = "labels"

    steps: int = 64
    queries: int | None = 25_000
    """The budget for each image (the paper's largest: 25,000); None: what the steps need."""
    initial_gradient_eval_steps: int = 100
    """Queries of the first gradient estimate; the k-th takes the square root of k as many times more."""

    def __post_init__(self) -> None:
        for name in ("steps", "initial_gradient_eval_steps"):
            at_least_one(name, getattr(self, name))
        if self.queries is not None:
            at_least_one("queries", self.queries)

    @property
    def passes(self) -> int:
        estimates = self.initial_gradient_eval_steps * (2 / 3) * (self.steps + 1) ** 1.5
        return min(self.queries or 10**9, int(100 + estimates + 30 * self.steps))

    def foolbox(self) -> Foolbox:
        parameters: dict[str, Any] = dataclasses.asdict(self)
        queries = parameters.pop("queries")
        return Foolbox(name="HopSkipJumpAttack", parameters=parameters, queries=queries)
