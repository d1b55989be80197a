"""MNIST (LeCun et al. 1998) from its original idx files; torchvision downloads them."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from harness.datasets.data import Samples, Split
from harness.datasets.sources import obtain
from harness.registry import datasets
from harness.types import DamageError

_PLACE = "MNIST/raw"
_ORIGINAL = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the original files, unpacked."""


@datasets.register("mnist")
def mnist(split: Split, folder: Path) -> Samples:
    """Load MNIST: 60,000 + 10,000 handwritten digits of 28 x 28, in the official order.

    It reads `MNIST/raw/*-ubyte` (torchvision's layout), also packed as `.gz`. Other files of that
    format are read too, but the dataset's note then says that they are not the originals.

    Raises:
        DamageError: a file is cut short, or is no idx file.
    """
    kind = "train" if split == "train" else "t10k"
    names = [f"{kind}-images-idx3-ubyte", f"{kind}-labels-idx1-ubyte"]
    raw = folder / _PLACE
    found = [f"{_PLACE}/{name}" + (".gz" if _packed(raw / name) else "") for name in names]
    obtain("mnist", folder, found, _download)
    contents = [_read(folder / file) for file in found]
    images = parse_idx(contents[0], folder / found[0], dimensions=3)
    labels = parse_idx(contents[1], folder / found[1], dimensions=1)
    original = all(
        hashlib.sha256(content).hexdigest() == _ORIGINAL[name]
        for content, name in zip(contents, names, strict=True)
    )
    return Samples(
        images=images[:, None],
        labels=labels,
        classes=[str(digit) for digit in range(10)],
        note="" if original else "not the original MNIST files",
    )


def _packed(path: Path) -> bool:
    return not path.exists() and path.with_name(path.name + ".gz").exists()


def _download(root: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(root, download=True)


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamageError(f"{path} is damaged ({error}). {_MEND}") from error


def parse_idx(content: bytes, path: Path, *, dimensions: int) -> np.ndarray[Any, Any]:
    """Return the unsigned bytes in an idx file: a magic number 0x0000080D (D dimensions), D sizes, values.

    Raises:
        DamageError: the magic number is another one, or the length is not what the sizes announce.
    """
    head = 4 + 4 * dimensions
    magic = 0x0800 + dimensions
    if len(content) < head or int.from_bytes(content[:4], "big") != magic:
        raise DamageError(
            f"{path} is damaged: it begins with {content[:4].hex() or 'nothing'}, "
            f"an idx file of this kind with {magic:08x}. {_MEND}"
        )
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, head, 4)]
    if len(content) - head != math.prod(sizes):
        raise DamageError(
            f"{path} is damaged: {len(content):,} bytes, but its header announces "
            f"{head + math.prod(sizes):,}. {_MEND}"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)


_MEND = "Delete it and run again with a network to download it, or put a good copy there"
