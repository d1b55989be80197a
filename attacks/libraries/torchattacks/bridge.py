"""`torchattacks:Name`: the attacks of torchattacks (Kim 2020) against any defense here."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.attacks.libraries import library_attack
from harness.attacks.libraries.guarded import seed_of
from harness.attacks.libraries.parameters import constructor
from harness.attacks.libraries.torchattacks.catalogue import SHEETS
from harness.random import Draws
from harness.registry import attacks, imported
from harness.types import Batch, ThreatModel, Victim

_THREAT = "the threat model (--epsilon, --norm)"
_SUPPLIED = {
    "eps": _THREAT,
    "max_epsilon": _THREAT,
    "norm": _THREAT,
    "n_classes": "the dataset",
    "seed": "the harness (--seed)",
    "verbose": "the harness",
}
_NORMS = {"linf": "Linf", "l2": "L2"}
_NUDGE = 1e-4
"""Distance by which pixels of exactly 0 and 1 are moved inwards before CW, which has them at infinity."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torchattacks(library_attack.LibraryAttack):
    """An attack of torchattacks."""

    library = "torchattacks"
    sheets = SHEETS

    def signature(self) -> Mapping[str, inspect.Parameter]:
        return constructor(self._class().__init__, leave=("self", "model"))

    def supplied(self) -> Mapping[str, str]:
        return _SUPPLIED

    def _class(self) -> Any:
        return getattr(imported("torchattacks", "torchattacks"), self.name)

    def arguments(self, threat: ThreatModel, draws: Draws, classes: int) -> dict[str, Any]:
        """Return what the constructor is called with besides the model."""
        known = self.signature()
        arguments = dict(self.parameters)
        offered = {
            "eps": threat.epsilon,
            "max_epsilon": threat.epsilon,
            "norm": _NORMS[threat.norm],
            "n_classes": classes,
            "seed": seed_of(draws),
            "verbose": False,
        }
        arguments |= {name: value for name, value in offered.items() if name in known}
        if "alpha" in known and "alpha" not in arguments:
            # The library's 2/255 is lost in a ball of 0.3. FFGSM's one step is 1.25 epsilon.
            steps = arguments.get("steps", getattr(known.get("steps"), "default", 1))
            one_step = 1.25 * threat.epsilon
            length = library_attack.step_length(threat.epsilon, steps)
            arguments["alpha"] = length if "steps" in known else one_step
        return arguments

    def run(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Tensor:
        images = batch.images
        model = self.guard(victim, batch, draws)
        attack = self._class()(model, **self.arguments(threat, draws, victim.classes))
        attack.set_device(images.device)
        if self.name == "JSMA":  # its own default is label + 1 modulo 10, whatever the classes
            classes = victim.classes
            attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % classes, quiet=True)
        if self.name != "CW":
            found: Tensor = attack(images, batch.labels)
            return found
        inside = images.clamp(_NUDGE, 1 - _NUDGE)
        found = attack(inside, batch.labels)
        same = (found == inside).flatten(1).all(dim=1)
        return torch.where(same.reshape(-1, 1, 1, 1), images, found)


@attacks.bridge("torchattacks")
def make(rest: str) -> Callable[..., Torchattacks]:
    """Attacks of torchattacks by their class names: `torchattacks:PGD`."""
    sheet = library_attack.sheet_of("torchattacks", SHEETS, rest)

    def build(**parameters: Any) -> Torchattacks:
        return Torchattacks(name=rest, parameters=parameters)

    build.__doc__ = sheet.summary
    return build


def listing() -> list[tuple[str, str, str | None]]:
    """Return (name, summary, why it is refused or None) of each attack; import nothing."""
    return library_attack.listing("torchattacks", SHEETS)


make.listing = listing  # for `harness list attacks --all`: the engine imports no plugin
