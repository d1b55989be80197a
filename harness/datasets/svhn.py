"""SVHN (Netzer et al. 2011), cropped digits, read and downloaded by torchvision."""

from __future__ import annotations

from pathlib import Path

from harness.datasets.data import Samples, Split
from harness.datasets.sources import obtain
from harness.registry import datasets
from harness.types import DamageError


@datasets.register("svhn")
def svhn(split: Split, folder: Path) -> Samples:
    """Load SVHN: 73,257 + 26,032 house numbers of 32 x 32, in the official order.

    It reads `train_32x32.mat` and `test_32x32.mat`; the extra images are not used.

    Raises:
        DamageError: the file's checksum is not the official one.
    """
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import check_integrity

    _, file, checksum = SVHN.split_list[split]
    obtain("svhn", folder, [file], lambda root: SVHN(root, split=split, download=True))
    if not check_integrity(folder / file, checksum):
        raise DamageError(
            f"{folder / file} is damaged or not the official file (its MD5 is not {checksum}). "
            "Delete it and run again with a network to download it, or put a good copy there"
        )
    stored = SVHN(folder, split=split)
    return Samples(
        images=stored.data,
        labels=stored.labels,
        classes=[str(digit) for digit in range(10)],
    )
