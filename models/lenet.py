"""The MNIST network of Madry et al. (2018): two convolutional layers and a hidden layer of 1,024."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from harness.registry import models


@models.register("lenet")
def lenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet with 5 x 5 convolutions of 32 and 64 channels, max pooling, 1,024 hidden units."""
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(64 * (height // 4) * (width // 4), 1024),
            relu3=nn.ReLU(),
            output=nn.Linear(1024, classes),
        )
    )


@models.register("small-cnn")
def small_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Quick network for small images: strided 4 x 4 convolutions, 16 and 32 channels, 100 hidden units.

    The one that Wong et al. (2020, "Fast is better than free") train on MNIST.
    """
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 4, stride=2, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            hidden=nn.Linear(32 * (height // 4) * (width // 4), 100),
            relu3=nn.ReLU(),
            output=nn.Linear(100, classes),
        )
    )
