"""`art:Name`: the evasion attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018)."""

from __future__ import annotations

import dataclasses
import inspect
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.attacks.libraries import library_attack
from harness.attacks.libraries.art.catalogue import PREDICTED, SHEETS
from harness.attacks.libraries.parameters import constructor
from harness.random import Draws
from harness.registry import attacks, imported
from harness.types import Batch, HarnessError, ThreatModel, Victim

_PACKAGE = "adversarial-robustness-toolbox"
_THREAT = "the threat model (--epsilon, --norm)"
_SUPPLIED = {
    "norm": _THREAT,
    "batch_size": "the harness (--batch-size)",
    "targeted": "the harness, whose attacks are untargeted",
    "summary_writer": "the harness, which keeps its own trace",
    "verbose": "the harness",
    "attacks": "the toolbox",
    "estimator_orig": "the harness",
    "parallel_pool_size": "the harness",
    "mask": "the harness",
    "adv_criterion": "the toolbox",
    "loss": "the toolbox",
    "attacker_params": "the toolbox",
}
_FREE = ("SimBA", "Wasserstein")
"""Attacks whose own `eps`, `epsilon` or `norm` mean something else than the threat model's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toolbox(library_attack.LibraryAttack):
    """An attack of the toolbox."""

    library = "art"
    sheets = SHEETS

    def signature(self) -> Mapping[str, inspect.Parameter]:
        return constructor(self._class().__init__, leave=("self", "classifier", "estimator"))

    def supplied(self) -> Mapping[str, str]:
        if self.name == "ThresholdAttack":
            return _SUPPLIED | {"th": _THREAT}
        if self.name in _FREE:
            return {key: value for key, value in _SUPPLIED.items() if value != _THREAT}
        return _SUPPLIED | {"eps": _THREAT}

    def check(self, victim: Victim, threat: ThreatModel) -> None:
        super().check(victim, threat)
        if self.name == "ThresholdAttack" and threat.epsilon < 2 / 255:
            raise HarnessError(
                f"art:ThresholdAttack moves whole grey values: epsilon is {threat.epsilon:g}, it must "
                "be at least 2/255"
            )

    def _class(self) -> Any:
        return getattr(imported("art.attacks.evasion", _PACKAGE), self.name)

    def arguments(self, threat: ThreatModel, count: int) -> dict[str, Any]:
        """Return what the constructor is called with besides the classifier."""
        known = self.signature()
        arguments = dict(self.parameters)
        offered: dict[str, Any] = {
            "batch_size": 1 if self.name == "SimBA" else count,
            "targeted": False,
            "verbose": False,
        }
        if self.name not in _FREE:
            offered["norm"] = "inf" if threat.norm == "linf" else 2
            offered["eps"] = threat.epsilon
        if self.name == "ThresholdAttack":
            # In grey values of 0 to 255, which it rounds down: one less keeps it in the ball.
            offered["th"] = int(threat.epsilon * 255 + 1e-9) - 1
        arguments |= {name: value for name, value in offered.items() if name in known}
        if self.name == "UniversalPerturbation":
            # Its inner attack would draw a progress bar for each image.
            plain = self.parameters.get("attacker", "deepfool") == "fgsm"
            arguments["attacker_params"] = {} if plain else {"verbose": False}
        if "eps_step" in known and "eps_step" not in arguments and self.name not in _FREE:
            # The toolbox's 0.1 leaps out of a ball of 8/255; Auto-PGD's own start is 2 epsilon.
            steps = arguments.get("max_iter", getattr(known.get("max_iter"), "default", 1))
            doubling = self.name.startswith(("Auto", "Rescaling"))
            length = library_attack.step_length(threat.epsilon, steps)
            arguments["eps_step"] = 2 * threat.epsilon if doubling else length
        return arguments

    def run(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Tensor:
        images = batch.images
        estimators = imported("art.estimators.classification", _PACKAGE)
        # clip_values keep its attacks in [0, 1]; the class runs in evaluation mode and on the device
        # of the images; a loss is asked for even where none is used.
        model = self.guard(victim, batch, draws)
        classifier = estimators.PyTorchClassifier(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=victim.classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if images.device.type == "cuda" else "cpu",
        )
        attack = self._class()(classifier, **self.arguments(threat, len(batch)))
        for inner in getattr(attack, "attacks", ()):
            inner.set_params(verbose=False)
        labels = batch.labels
        if self.name == "SaliencyMapMethod":  # reads y as the target
            labels = (labels + 1) % victim.classes
        given = nn.functional.one_hot(labels, victim.classes).float().cpu().numpy()
        with _multiprocess():
            found = attack.generate(x=images.detach().cpu().numpy().copy(), y=given)
        result = torch.as_tensor(found).to(images)
        if self.name in PREDICTED:
            with torch.no_grad():
                wrong = model(images).argmax(dim=1) != batch.labels
            result = torch.where(wrong.reshape(-1, 1, 1, 1), images, result)
        return result


@contextmanager
def _multiprocess() -> Iterator[None]:
    """Lend the toolbox's AutoAttack the package multiprocess, which it imports undeclared and uses only
    for a pool of processes, which the harness does not ask for."""
    if "multiprocess" in sys.modules:
        yield
        return
    sys.modules["multiprocess"] = multiprocessing
    try:
        yield
    finally:
        del sys.modules["multiprocess"]


@attacks.bridge("art")
def make(rest: str) -> Callable[..., Toolbox]:
    """Evasion attacks of the toolbox by their class names: `art:ProjectedGradientDescent`."""
    sheet = library_attack.sheet_of("art", SHEETS, rest)

    def build(**parameters: Any) -> Toolbox:
        return Toolbox(name=rest, parameters=parameters)

    build.__doc__ = sheet.summary
    return build


def listing() -> list[tuple[str, str, str | None]]:
    """Return (name, summary, why it is refused or None) of each attack; import nothing."""
    return library_attack.listing("art", SHEETS)


make.listing = listing  # for `harness list attacks --all`: the engine imports no plugin
