"""CIFAR-10 (Krizhevsky 2009) in its official Python files, read and downloaded by torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.datasets.data import Samples, Split
from harness.datasets.sources import obtain
from harness.registry import datasets
from harness.types import DamageError


@datasets.register("cifar10")
def cifar10(split: Split, folder: Path) -> Samples:
    """Load CIFAR-10: 50,000 + 10,000 colour images of 32 x 32, in the official order.

    It reads `cifar-10-batches-py/`. The files are pickles, so none is loaded before all checksums agree.

    Raises:
        DamageError: a file's checksum is not the official one.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    checksums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    checksums[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    files = {f"{CIFAR10.base_folder}/{name}": checksum for name, checksum in checksums.items()}

    obtain("cifar10", folder, list(files), lambda root: CIFAR10(root, download=True))
    for file, checksum in files.items():
        if not check_integrity(folder / file, checksum):
            raise DamageError(
                f"{folder / file} is damaged or not the official file (its MD5 is not {checksum}). "
                "Delete it and run again with a network to download it, or put a good copy there"
            )
    stored = CIFAR10(folder, train=split == "train")
    return Samples(
        images=stored.data.transpose(0, 3, 1, 2),
        labels=np.array(stored.targets),
        classes=stored.classes,
    )
