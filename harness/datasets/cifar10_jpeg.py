"""A copy of CIFAR-10 as JPEG files, for measurements where the original is not at hand."""

from __future__ import annotations

from pathlib import Path

from harness.datasets.data import Samples, Split
from harness.datasets.pictures import by_class, decode, listing
from harness.datasets.sources import obtain
from harness.registry import datasets
from harness.storage.progress import Reporter

_PLACE = "cifar10-jpeg"


@datasets.register("cifar10-jpeg")
def cifar10_jpeg(split: Split, folder: Path, *, reporter: Reporter) -> Samples:
    """Load CIFAR-10 after JPEG compression: not the official CIFAR-10.

    It reads `cifar10-jpeg/{train,test}/<class>/*.jpg`. The order is a fixed mixture of the classes;
    the id is a hash of `split/class/file`.
    """
    obtain("cifar10-jpeg", folder, [f"{_PLACE}/train", f"{_PLACE}/test"])
    classes = listing(folder / _PLACE / "train")
    files = by_class(folder / _PLACE, split, classes)
    return Samples(
        images=decode(files, channels=3, reporter=reporter),
        labels=files.labels,
        classes=classes,
        ids=files.ids,
        note="CIFAR-10 (JPEG copy), not the official CIFAR-10",
    )
