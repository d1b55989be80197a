"""Bridges to other libraries: defenses of the harness in their scripts, its attacks in their loops."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from harness.random import Draws, Role
from harness.registry import attacks, defenses, imported
from harness.spec import build, parse
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Attack, Backward, Batch, HarnessError, Norm, ThreatModel


class DefendedModule(nn.Module):
    """A defended model as an ordinary module: images (N, C, H, W) in [0, 1] -> logits (N, K).

    Every call takes new draws of the defense's randomness; a fresh module with the same seed repeats
    them. Gradients follow the backward pass `backward`, by default the one that the defense declares.
    The module stays in evaluation mode.
    """

    def __init__(
        self, defended: Defended, *, seed: int = 0, backward: Backward = "declared"
    ) -> None:
        super().__init__()
        self.classifier, self.auxiliary = defended.model, defended.auxiliary
        self.defended = defended.frozen()
        self.seed = seed
        self.backward = backward
        self.calls = 0
        self.train(False)

    def train(self, mode: bool = True) -> DefendedModule:
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        ids = torch.arange(len(images), device=images.device)
        draws = Draws(self.seed, ids, Role.ATTACK, step=self.calls)
        self.calls += 1
        return self.defended.logits(images.float(), draws, backward=self.backward)


def to_torchattacks(defended: Defended, *, seed: int = 0) -> DefendedModule:
    """Return a module for attacks of torchattacks: `torchattacks.PGD(to_torchattacks(defended))`."""
    return DefendedModule(defended, seed=seed)


def to_foolbox(defended: Defended, *, seed: int = 0) -> Any:
    """Return a `foolbox.PyTorchModel` with bounds (0, 1)."""
    module = DefendedModule(defended, seed=seed)
    foolbox = imported("foolbox", "foolbox")
    return foolbox.PyTorchModel(module, bounds=(0, 1), device=_device(module))


def to_art(defended: Defended, shape: tuple[int, int, int], *, seed: int = 0) -> Any:
    """Return a `PyTorchClassifier` of the adversarial-robustness-toolbox for images of (C, H, W)."""
    module = DefendedModule(defended, seed=seed)
    art = imported("art.estimators.classification", "adversarial-robustness-toolbox")
    return art.PyTorchClassifier(
        model=module,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(shape),
        nb_classes=defended.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if _device(module).type == "cuda" else "cpu",
    )


@dataclasses.dataclass(kw_only=True)
class Attacker:
    """An attack of the harness on a user's model: `attacker(images, labels)` returns attacked images.

    The model is attacked in evaluation mode and then restored. An attack alone gives no accuracy that can be
    reported: `harness.evaluate` also judges its images.
    """

    victim: Defended
    attack: Attack
    threat: ThreatModel
    seed: int = 0
    calls: int = 0

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return attacked images (N, C, H, W) of images in [0, 1] with labels (N,). Each call draws anew."""
        home = _device(self.victim.model, images.device)
        # Ids go on, so that no two images of an epoch share their draws.
        ids = torch.arange(self.calls, self.calls + len(images), device=home)
        self.calls += len(images)
        if not len(images):
            return images
        batch = Batch(images.detach().to(home).float(), labels.to(home).long(), ids)
        with borrowed(self.victim.model, home):
            self.victim.frozen()
            if not self.victim.classes:
                logits = self.victim.logits(
                    batch.images[:1], Draws(self.seed, ids[:1], Role.ATTACK)
                )
                self.victim = dataclasses.replace(self.victim, classes=logits.shape[1])
            view = View(self.victim, batch, self.threat, self.attack.access)
            self.attack.check(view, self.threat)
            draws = Draws(self.seed, ids, Role.ATTACK)
            found = self.attack.perturb(view, batch, self.threat, draws)
        return found.images.detach().to(images)

    def generate(self, x: Any, y: Any) -> Any:
        """Return attacked arrays, as the toolbox's attacks do; `y` holds classes or is one-hot."""
        labels = torch.as_tensor(y)
        if labels.ndim == 2:
            labels = labels.argmax(dim=1)
        return self(torch.as_tensor(x), labels).cpu().numpy()


def attacker(
    model: Any,
    attack: str | Attack | None = None,
    *,
    epsilon: float = 8 / 255,
    norm: Norm = "linf",
    classes: int | None = None,
    seed: int = 0,
) -> Attacker:
    """Return an attack of the harness for a user's own loop (adversarial training, a comparison).

    Args:
        model: a torch module, a defended model, a foolbox model, or an estimator of the
            adversarial-robustness-toolbox, which takes images in [0, 1].
        attack: a name or an Attack; None is `bpda`, projected gradient descent through the backward
            pass that the defense declares.
        epsilon: the radius of the ball, in pixel values of [0, 1].
        classes: the number of classes of the model; None finds it by a query.

    Raises:
        HarnessError: there is no such attack, or it needs a second model.
    """
    attack = attacks.default if attack is None else attack
    chosen: Attack = attack if isinstance(attack, Attack) else build(parse(attack), attacks)
    if chosen.source is not None:
        raise HarnessError(
            "a transfer attack makes its images elsewhere: attack that model instead"
        )
    if isinstance(model, Defended):
        victim = model
    else:
        victim = Defended(_module(model), build(parse(defenses.default), defenses), classes or 0)
    return Attacker(
        victim=victim, attack=chosen, threat=ThreatModel(epsilon=epsilon, norm=norm), seed=seed
    )


class _Callable(nn.Module):
    """A foolbox model, which is no module, as a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.hint = nn.Parameter(torch.zeros(0, device=model.device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


def _module(model: Any) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if hasattr(model, "bounds") and callable(model):  # foolbox
        if tuple(model.bounds) != (0, 1):
            raise HarnessError(
                f"the foolbox model has bounds {tuple(model.bounds)}: make it (0, 1)"
            )
        return _Callable(model)
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.Module):  # an estimator of the toolbox
        return inner
    raise HarnessError(
        f"the model is a {type(model).__name__}: it must be a torch module, a defended model, a foolbox "
        "model or a PyTorchClassifier of the toolbox"
    )


@contextlib.contextmanager
def borrowed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a user's module to a device for the block, and restore its device, mode and gradients after it."""
    modes = [(part, part.training) for part in module.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    home = next((p.device for p in module.parameters()), None)
    module.to(device)
    try:
        yield
    finally:
        if home is not None and home != device:
            module.to(home)
        for part, mode in modes:
            part.training = mode
        for parameter, wanted, gradient in parameters:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


def _device(module: nn.Module, default: torch.device | None = None) -> torch.device:
    place = next(iter([*module.parameters(), *module.buffers()]), None)
    return place.device if place is not None else default or torch.device("cpu")
