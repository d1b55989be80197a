"""The features in front of a classifier's last linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.types import HarnessError


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer in order of registration: the readout of every registered model.

    Raises:
        HarnessError: the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise HarnessError(f"{type(model).__name__} has no linear layer to take features from")
    return layers[-1]


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """(N, F) what the last linear layer receives for `images` (N, C, H, W); differentiable.

    The model's mode is left as it is: in `train()` features depend on the rest of the batch.
    """
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
            f"the last linear layer of {type(model).__name__} ran {len(seen)} times in one pass: "
            "penultimate features need a model that runs it once"
        )
    return seen[0]
