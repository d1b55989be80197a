"""Decode folders of image files to tensors, and keep a checked copy of the decoded pixels on disk.

Datasets that are such folders use this module; it registers none itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.datasets.data import cache
from harness.datasets.sources import name_ids
from harness.storage.progress import Reporter
from harness.types import DamageError, HarnessError

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
"""The formats that are decoded. Some of PIL's other formats start an external program."""
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files below `root`: relative names with `/`, ids and labels, sorted by id."""

    root: Path
    names: tuple[str, ...]
    ids: Tensor
    labels: Tensor

    @classmethod
    def of(cls, root: Path, labelled: Sequence[tuple[str, int]]) -> Files:
        """Return the files of (name, label) pairs in any order, sorted by id."""
        ids = name_ids([name for name, _ in labelled])
        order = ids.argsort(stable=True)
        return cls(
            root=root,
            names=tuple(labelled[position][0] for position in order.tolist()),
            ids=ids[order],
            labels=torch.tensor([label for _, label in labelled], dtype=torch.int64)[order],
        )


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, sorted, without hidden ones (`.complete`, `.DS_Store`).

    Raises:
        HarnessError: there is no such folder.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise HarnessError(f"{folder} cannot be read as a folder ({error.strerror})") from error


def by_class(root: Path, split: str, classes: Sequence[str]) -> Files:
    """Return the files `root/split/<class>/*` of these classes; the label is the position of the class."""
    labelled = []
    for label, name in enumerate(classes):
        inside = root / split / name
        labelled += [(f"{split}/{name}/{file}", label) for file in listing(inside)]
    if not labelled:
        raise HarnessError(f"{root / split} holds no images: it must be {split}/<class>/<image>")
    return Files.of(root, labelled)


def decode(files: Files, *, channels: int, reporter: Reporter) -> Tensor:
    """Decode images to (N, C, H, W) uint8, in the order of `files`.

    Images are greyscale with C = 1, and colour with C = 3 (grey is tripled). A copy of the decoded pixels is
    kept in the cache folder, one for each split of each folder, and used while names, sizes, times and
    decoder are the same. A damaged copy is named and made again.

    Raises:
        HarnessError: images of different sizes, or that lose something when read so.
        DamageError: a file that is no image, or is cut short.
    """
    place = _place(files)
    stamp = _stamp(files, channels)
    kept = _kept(place, stamp, reporter)
    if kept is not None:
        return kept
    width, height = _size(files.root / files.names[0])
    images = torch.empty((len(files.names), channels, height, width), dtype=torch.uint8)
    first = files.root / files.names[0]
    with reporter.task(f"decoding {files.root.name}", len(files.names)) as task:
        for position, name in enumerate(files.names):
            array = _pixels(files.root / name, channels, (width, height), first)
            pixels = torch.from_numpy(array).reshape(height, width, channels)
            images[position] = pixels.permute(2, 0, 1)
            task.advance(1)
    _keep(place, stamp, images, reporter)
    return images


def is_grey(path: Path) -> bool:
    """Return whether the file holds no colour. Only the file's header is read."""
    with _opened(path) as image:
        return image.mode in ("1", "L")


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(path, formats=_FORMATS)
    except (OSError, Image.DecompressionBombError) as error:
        raise _damage(path, error) from error


def _damage(path: Path, error: Exception) -> HarnessError:
    if isinstance(error, PermissionError | IsADirectoryError | FileNotFoundError):
        return HarnessError(f"{path} cannot be read as an image ({error.strerror})")
    reason = "not an image" if "identify" in str(error) else str(error) or type(error).__name__
    return DamageError(f"{path} is damaged ({reason}): put a good copy in its place, or delete it")


def _size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        size: tuple[int, int] = image.size
        return size


def _pixels(path: Path, channels: int, size: tuple[int, int], model: Path) -> np.ndarray[Any, Any]:
    with _opened(path) as image:
        if image.size != size:
            raise HarnessError(
                f"{path} has {image.width} x {image.height} pixels, {model.name} has "
                f"{size[0]} x {size[1]}: all images of a dataset must have one size"
            )
        try:
            image.load()
            if image.mode.startswith(("I", "F")):
                raise HarnessError(f"{path} has more than 8 bits a channel: convert it to 8 bits")
            if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
                raise HarnessError(f"{path} is partly transparent: convert it to plain colours")
            if channels == 1 and image.mode not in ("1", "L"):
                raise HarnessError(
                    f"{path} is in colour, but all training images are grey: convert it, or them"
                )
            return np.array(image.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _damage(path, error) from error


def _place(files: Files) -> Path:
    split = files.names[0].split("/")[0]
    key = hashlib.sha256(f"{files.root.resolve()}\n{split}".encode()).hexdigest()[:16]
    return cache() / "decoded" / f"{files.root.name}-{split}-{key}.npz"


def _stamp(files: Files, channels: int) -> str:
    """Return a digest of what the pixels depend on: the files' names, sizes and times, and the decoder."""
    import PIL
    from PIL import features

    total = hashlib.sha256(
        f"{_VERSION} {channels} {PIL.__version__} {features.version('jpg')}\n".encode()
    )
    for name in files.names:
        try:
            status = os.stat(files.root / name)
        except OSError as error:
            raise _damage(files.root / name, error) from error
        total.update(f"{name}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _kept(place: Path, stamp: str, reporter: Reporter) -> Tensor | None:
    if not place.exists():
        return None
    try:
        with np.load(place, allow_pickle=False) as kept:
            if str(kept["stamp"]) != stamp:
                return None
            return torch.from_numpy(kept["images"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reporter.say(f"{place} is damaged ({error}): decoding the images again")
        return None


def _keep(place: Path, stamp: str, images: Tensor, reporter: Reporter) -> None:
    """Write the copy whole or not at all. Its checksum is the zip format's, checked on reading."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            try:
                np.savez(file, stamp=np.array(stamp), images=images.numpy())
                file.close()
                os.replace(file.name, place)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        reporter.say(f"no decoded copy is kept in {place.parent} ({error})")
