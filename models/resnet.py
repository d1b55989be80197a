"""ResNet-18 (He et al. 2016) with the stem that small images need; the layers are torchvision's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.models.normalise import Moments, normalised
from harness.registry import models


@models.register("resnet18")
def resnet18(
    shape: tuple[int, int, int], classes: int, *, mean: Moments = None, std: Moments = None
) -> nn.Module:
    """ResNet-18 for small images: 3 x 3 stem, no max pooling; 11.2 million parameters."""
    from torchvision.models import resnet18 as build

    network = build(num_classes=classes)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    network.relu = nn.ReLU()
    for number in range(1, 5):
        stage = getattr(network, f"layer{number}")
        for place, block in enumerate(stage):
            stage[place] = Block(block)
    return normalised(network, shape[0], mean, std)


class Block(nn.Module):
    """torchvision's basic block with the same layers and names, but nothing done in place.

    In-place sums and ReLUs change what a hook has seen, and forbid backward hooks.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = stock.conv1, stock.bn1
        self.conv2, self.bn2 = stock.conv2, stock.bn2
        self.relu = nn.ReLU()
        self.downsample = stock.downsample

    def forward(self, images: Tensor) -> Tensor:
        direct = images if self.downsample is None else self.downsample(images)
        inner = self.relu(self.bn1(self.conv1(images)))
        outer: Tensor = self.relu(self.bn2(self.conv2(inner)) + direct)
        return outer
