"""A user's own arrays: `npz:FILE`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.datasets.data import TEST_OFFSET, Samples, Split
from harness.datasets.sources import stratified
from harness.registry import datasets
from harness.types import DamageError, HarnessError

_LAYOUTS = ("nchw", "nhwc")
_KEYS = "x_train, y_train, x_test, y_test; or images and labels (a fifth becomes the test split)"

Array = np.ndarray[Any, Any]


@datasets.bridge("npz")
def npz(path: str) -> Callable[..., Samples]:
    """Load arrays that numpy.savez wrote: x_train, y_train, x_test, y_test, or images and labels.

    Images are uint8, or float in [0, 1]. The file may also hold `classes` (names), `ids` (or
    `ids_train`, `ids_test`) and `layout` ("nchw" or "nhwc").
    """

    def load(split: Split, folder: Path, *, layout: str | None = None) -> Samples:
        arrays = read(Path(path).expanduser())
        given = layout or (str(arrays["layout"]) if "layout" in arrays else None)
        if given is not None and given.lower() not in _LAYOUTS:
            raise HarnessError(f"npz:{path}: layout is {given!r}: it must be nchw or nhwc")
        what = f"npz:{path}"
        if "x_train" in arrays:
            _need(arrays, ("x_train", "y_train", "x_test", "y_test"), what)
            kind = "train" if split == "train" else "test"
            images = channels_first(arrays[f"x_{kind}"], given, f"{what}: x_{kind}")
            labels = _flat(arrays[f"y_{kind}"])
            classes = _classes(arrays, (arrays["y_train"], arrays["y_test"]))
            start = 0 if split == "train" else TEST_OFFSET
            return Samples(
                images=images,
                labels=labels,
                classes=classes,
                ids=arrays.get(f"ids_{kind}", start + np.arange(len(labels))),
            )
        _need(arrays, ("images", "labels"), what)
        images = channels_first(arrays["images"], given, f"{what}: images")
        labels = _flat(arrays["labels"])
        ids = arrays.get("ids", np.arange(len(labels)))
        if not len(images) == len(labels) == len(ids):
            raise HarnessError(
                f"{what}: {len(images)} images, {len(labels)} labels, {len(ids)} ids: "
                "every image needs one label and one id"
            )
        classes = _classes(arrays, (labels,))
        train, test = stratified(torch.from_numpy(labels.astype(np.int64)), 0.2)
        chosen = (train if split == "train" else test).numpy()
        return Samples(
            images=images[chosen],
            labels=labels[chosen],
            classes=classes,
            ids=ids[chosen],
            note="a fifth of each class is the test split",
        )

    return load


def read(path: Path) -> dict[str, Array]:
    """Return the arrays in an npz file. Python objects are refused, so that no code in it is ever run.

    Raises:
        HarnessError: no such file, another format, or arrays of Python objects.
        DamageError: the file is cut short or a checksum is wrong.
    """
    if not path.is_file():
        raise HarnessError(f"there is no file {path}: npz:FILE holds {_KEYS}")
    with path.open("rb") as file:
        packed = file.read(2) == b"PK"
    if not packed:
        raise HarnessError(f"{path} is no npz file: numpy.savez writes one, with {_KEYS}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DamageError(f"{path} is damaged ({error}): write it again") from error
    except ValueError as error:
        raise HarnessError(
            f"{path} holds something other than plain arrays of numbers ({error}): "
            "store uint8 or float images and integer labels"
        ) from error


def channels_first(images: Array, layout: str | None, what: str) -> Array:
    """Return images (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W).

    The channels are where `layout` says; without it, at the one of the two places that has 1 or 3 entries.

    Raises:
        HarnessError: it cannot be told which axis holds the channels.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise HarnessError(
            f"{what} has the shape {images.shape}: "
            "it must be (N, C, H, W), (N, H, W, C) or (N, H, W)"
        )
    if layout is None:
        second, last = (images.shape[axis] in (1, 3) for axis in (1, 3))
        if second == last:
            raise HarnessError(
                f"{what} has the shape {images.shape}: either axis could hold the channels. "
                "Say which by a string in the file: numpy.savez(..., layout='nchw'), or 'nhwc'"
            )
        layout = "nchw" if second else "nhwc"
    return (
        images if layout.lower() == "nchw" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    )


def _need(arrays: Mapping[str, Array], keys: tuple[str, ...], what: str) -> None:
    absent = [key for key in keys if key not in arrays]
    if absent:
        raise HarnessError(
            f"{what} has {', '.join(arrays) or 'nothing'}, but not {', '.join(absent)}. "
            f"It needs {_KEYS}"
        )


def _flat(labels: Array) -> Array:
    """Return (N,) integers of (N,) or, as some libraries store them, (N, 1)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise HarnessError(
            f"labels are {labels.dtype} of shape {labels.shape}: "
            "they must be integers of shape (N,)"
        )
    return labels


def _classes(arrays: Mapping[str, Array], labels: tuple[Array, ...]) -> list[str]:
    """Return the file's own `classes`, else 0 up to the greatest label of either split."""
    if "classes" in arrays:
        return [str(name) for name in arrays["classes"].tolist()]
    return [str(label) for label in range(max(int(part.max(initial=0)) for part in labels) + 1)]
