"""Extract the features in front of a classifier's last layer, which Figures 4 and 5 of ME-Net show."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.types import HarnessError


def last_linear(model: nn.Module) -> nn.Linear:
    """Return the last linear layer in order of registration: the readout of every registered model.

    Raises:
        HarnessError: the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise HarnessError(
            f"{type(model).__name__} has no linear layer to take features from: give it a method "
            "penultimate(images)"
        )
    return layers[-1]


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """Return the penultimate features (N, F) of `images` (N, C, H, W), differentiable.

    They are the result of the model's own hook `penultimate(images)` or, in a model without this hook, the
    input of its last linear layer. The model's mode is left as it is: in `train()`, features depend on the
    rest of the batch.

    Raises:
        HarnessError: the model has no hook, and either no linear layer or one that does not run exactly once
            in a pass.
    """
    hook = getattr(model, "penultimate", None)
    if hook is not None:
        features: Tensor = hook(images)
        return features
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    handle = last_linear(model).register_forward_pre_hook(remember)
    try:
        model(images)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise HarnessError(
            f"the last linear layer of {type(model).__name__} ran {len(seen)} times in one pass: give "
            "the model a method penultimate(images)"
        )
    return seen[0]
