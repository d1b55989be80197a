"""Wide residual networks (Zagoruyko and Komodakis 2016, "Wide Residual Networks"), without dropout.

Madry et al. (2018) use a network of the same depth and widths for CIFAR-10, which they call w32-10
(five blocks in each of three groups, 160, 320 and 640 channels). Theirs has leaky ReLUs of slope
0.1 and shortcuts without parameters (average pooling, zero padding); here are the original's ReLUs
and 1 x 1 shortcuts, as in most later work that says WRN-34-10.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from harness.models.normalise import Moments, normalised
from harness.registry import models
from harness.types import HarnessError


class Block(nn.Module):
    """A block with pre-activation: x + conv(relu(bn(conv(relu(bn(x)))))).

    (N, channels, H, W) -> (N, wide, H / stride, W / stride), sides rounded up. Where the shape
    changes, the shortcut is a 1 x 1 convolution of the first activation.
    """

    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, wide, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Conv2d(channels, wide, 1, stride=stride, bias=False)
            if channels != wide or stride != 1
            else None
        )

    def forward(self, images: Tensor) -> Tensor:
        active = self.relu(self.norm1(images))
        residual = self.conv2(self.relu(self.norm2(self.conv1(active))))
        direct = images if self.shortcut is None else self.shortcut(active)
        summed: Tensor = direct + residual
        return summed


@models.register("wideresnet-34-10", depth=34, width=10)
@models.register("wideresnet-28-10", depth=28, width=10)
@models.register("wideresnet-10-1", depth=10, width=1)
def wide_resnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    depth: int,
    width: int,
    mean: Moments = None,
    std: Moments = None,
) -> nn.Module:
    """Wide residual network: `depth` = 6n + 4 layers, 16, 32, 64 channels times `width`.

    34-10 has 46.2 million parameters, 28-10 36.5; 10-1 has 78 thousand and trains on a laptop.

    Raises:
        HarnessError: no such depth or width.
    """
    if depth < 10 or (depth - 4) % 6:
        raise HarnessError(
            f"depth is {depth}: it must be 6n + 4 with n of at least 1: 10, 16, 22, 28, 34"
        )
    if width < 1:
        raise HarnessError(f"width is {width}: it must be 1 or more")
    channels = 16
    groups = OrderedDict[str, nn.Module]()
    groups["stem"] = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
    for number, wide in enumerate((16 * width, 32 * width, 64 * width), start=1):
        blocks = []
        for place in range((depth - 4) // 6):
            stride = 2 if place == 0 and number > 1 else 1
            blocks.append(Block(channels, wide, stride))
            channels = wide
        groups[f"group{number}"] = nn.Sequential(*blocks)
    groups["norm"] = nn.BatchNorm2d(channels)
    groups["relu"] = nn.ReLU()
    groups["pool"] = nn.AdaptiveAvgPool2d(1)
    groups["flatten"] = nn.Flatten()
    output = nn.Linear(channels, classes)
    nn.init.zeros_(output.bias)
    groups["output"] = output
    network = nn.Sequential(groups)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return normalised(network, shape[0], mean, std)
