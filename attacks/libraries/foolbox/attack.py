"""The attacks of foolbox (Rauber et al. 2020) as attacks of the harness.

The attacks' `run` is called, not `__call__`, which would clip minimum-norm results to the ball and judge
them itself: that is left to the harness.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.attacks.libraries import library_attack
from harness.attacks.libraries.foolbox import starting_points
from harness.attacks.libraries.foolbox.catalogue import BLACK_ON_FAILURE, SHEETS, STARTED
from harness.attacks.libraries.guarded import BudgetSpent, Guarded
from harness.attacks.libraries.parameters import constructor
from harness.random import Draws
from harness.registry import imported
from harness.types import Batch, HarnessError, ThreatModel, Victim

_SUPPLIED = {
    "distance": "the threat model (--norm)",
    "constraint": "the threat model (--norm)",
    "init_attack": "the bridge, which finds the starting points",
    "tensorboard": "the harness, which keeps its own trace",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foolbox(library_attack.LibraryAttack):
    """An attack of foolbox."""

    library = "foolbox"
    sheets = SHEETS

    queries: int | None = None
    """Forwards that an image may have, the search for its start included; then the nearest image that
    fooled at a query is returned. Only for attacks that walk from a starting point."""

    def __post_init__(self) -> None:
        reason = missing(self.name)
        if reason:
            raise HarnessError(f"foolbox:{self.name} cannot serve: {reason}")
        super().__post_init__()

    def signature(self) -> Mapping[str, inspect.Parameter]:
        return constructor(self._class().__init__, leave=("self",))

    def supplied(self) -> Mapping[str, str]:
        return _SUPPLIED

    def _class(self) -> Any:
        module = imported("foolbox", "foolbox")
        return getattr(module.attacks, self.name)

    def make(self, threat: ThreatModel) -> Any:
        """Make the library's attack object."""
        foolbox = imported("foolbox", "foolbox")
        arguments, known = dict(self.parameters), self.signature()
        if "distance" in known:
            arguments["distance"] = getattr(foolbox.distances, threat.norm)
        if "constraint" in known:
            arguments["constraint"] = threat.norm
        if "rel_stepsize" in known and not {"rel_stepsize", "abs_stepsize"} & arguments.keys():
            # Its relative step is made for its own number of steps; fewer cannot cross the ball.
            steps = arguments.get("steps", known["steps"].default)
            if steps * known["rel_stepsize"].default < 1:
                arguments["rel_stepsize"] = library_attack.step_length(1.0, steps)
        return _corrected(self._class())(**arguments)

    def run(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Tensor:
        model = self.guard(victim, batch, draws)
        if self.name not in STARTED:
            return self._call(model, batch, threat, {})
        nearest = Nearest(batch)
        model.budget, model.watcher = self.queries, nearest
        try:
            found, starts = starting_points.find(model, batch, draws)
            # A start at distance zero divides by it; an image without a start is left as it is.
            moving = found & (starts != batch.images).flatten(1).any(dim=1)
            if not bool(moving.any()):
                return batch.images
            part = batch[moving]
            inner = victim.module(part, draws[moving].at(draw=draws.draw + 1))
            some = model.onto(inner, part.ids)
            walked = self._call(some, part, threat, {"starting_points": starts[moving]})
        except BudgetSpent:
            return nearest.images
        return batch.images.index_put((moving.nonzero().squeeze(1),), walked)

    def _call(
        self, model: Guarded, batch: Batch, threat: ThreatModel, options: dict[str, Any]
    ) -> Tensor:
        foolbox = imported("foolbox", "foolbox")
        attack = self.make(threat)
        victim = foolbox.PyTorchModel(model, bounds=(0, 1), device=batch.images.device)
        target = foolbox.criteria.Misclassification(batch.labels)
        if hasattr(attack, "feed"):
            attack.feed(victim, batch.images)
        if self.bounded:
            options["epsilon"] = threat.epsilon
        result: Tensor = attack.run(victim, batch.images.clone(), target, **options)
        if self.name in BLACK_ON_FAILURE:
            black = (result == 0).flatten(1).all(dim=1)
            result = torch.where(black.reshape(-1, 1, 1, 1), batch.images, result)
        return result


def missing(name: str) -> str:
    """Return why an attack cannot serve in this installation; empty where it can."""
    needs_numba = "BrendelBethge" in name and importlib.util.find_spec("numba") is None
    return "it needs the package numba: `pip install numba`" if needs_numba else ""


class Nearest:
    """The nearest (L2) misclassified image of each sample among the queries, else the original."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.images = batch.images.clone()
        self._distance = torch.full((len(batch),), torch.inf, device=batch.images.device)
        self._sorted, self._order = torch.sort(batch.ids)

    def __call__(self, images: Tensor, logits: Tensor, ids: Tensor) -> None:
        at = self._order[torch.searchsorted(self._sorted, ids)]
        length = (images - self.batch.images[at]).flatten(1).norm(dim=1)
        fooled = logits.argmax(dim=1) != self.batch.labels[at]
        new = fooled & (length < self._distance[at])
        self._distance[at[new]] = length[new]
        self.images[at[new]] = images[new]


def _corrected(make: Any) -> Any:
    """Return foolbox's class, mended where batching breaks it.

    HopSkipJump divides its estimated gradients by their norm over the whole batch, so that each image's
    step shrinks with the size of the batch; here each row has norm 1, as in Chen et al. (2020).
    """
    if make.__name__ != "HopSkipJumpAttack":
        return make

    class HopSkipJumpAttack(make):  # type: ignore[misc]
        def approximate_gradients(self, *args: Any) -> Any:
            gradients = super().approximate_gradients(*args)
            length = gradients.flatten(start=1).norms.l2(axis=-1)
            return gradients / length.maximum(1e-12).reshape((-1, 1, 1, 1))

    return HopSkipJumpAttack
