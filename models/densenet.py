"""DenseNet-121 (Huang et al. 2017); the layers are torchvision's."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from harness.models.normalise import Moments, normalised
from harness.registry import models
from harness.types import HarnessError

_LEAST = 32


@models.register("densenet121")
def densenet121(
    shape: tuple[int, int, int], classes: int, *, mean: Moments = None, std: Moments = None
) -> nn.Module:
    """DenseNet-121 for images of 32 x 32 and more, as for Tiny-ImageNet (7.2 million parameters).

    The stem is the published one: 7 x 7 of stride 2, then max pooling; 64 x 64 ends as 2 x 2.

    Raises:
        HarnessError: the images are smaller.
    """
    from torchvision.models import densenet121 as build

    channels, height, width = shape
    if min(height, width) < _LEAST:
        raise HarnessError(
            f"densenet121 halves its input five times: images of {height} x {width} are too small, "
            f"{_LEAST} x {_LEAST} is the least (resnet18 serves smaller ones)"
        )
    stock = build(num_classes=classes)
    if channels != 3:
        stock.features.conv0 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stock.features.conv0.weight)
    for module in stock.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # a hook must see what a layer returned
    network = nn.Sequential(
        OrderedDict(
            features=stock.features,
            relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            output=stock.classifier,
        )
    )
    return normalised(network, channels, mean, std)
