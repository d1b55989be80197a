"""A small model of one's own that three test files use, trained on real digits in a second or two."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from harness.api.evaluate import load_images

SOURCE = (
    "from torch import nn\n"
    "def build():\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 48), nn.ReLU(), nn.Linear(48, 10))\n"
)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 48), nn.ReLU(), nn.Linear(48, 10))


def trained(scale: float = 1.0) -> nn.Module:
    """A model that was shown pixels from 0 to `scale`."""
    model = network()
    model.load_state_dict(_weights(scale))
    return model


@functools.cache
def _weights(scale: float) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, (images, labels) = network(), load_images("digits", "train")
        optimiser = torch.optim.Adam(model.parameters(), 3e-3 / scale**0.5)
        for _ in range(8):
            for rows in torch.randperm(len(images)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images[rows] * scale), labels[rows]).backward()
                optimiser.step()
    return {name: value.clone() for name, value in model.state_dict().items()}
