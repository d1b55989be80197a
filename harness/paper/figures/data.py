"""The data behind figures that need more than records; it is stored, so that drawing needs no torch."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence

FOLDER = "figure-data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """The approximate ranks of one dataset's images (ME-Net, Figure 1)."""

    dataset: str
    split: str
    count: int
    height: int
    width: int
    """The width of the matrix, which has all channels side by side."""
    images_of_rank: tuple[int, ...]
    """The number of images of rank 0, 1, 2, ..."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankData:
    """The data of Figure 1."""

    basis: str
    """The hash of all that the data depends on."""
    datasets: tuple[Ranks, ...]
    missing: tuple[str, ...] = ()
    """The datasets that are not available, with the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as bytes: (C, H, W) uint8, base64."""

    shape: tuple[int, int, int]
    pixels: str

    @property
    def octets(self) -> bytes:
        return base64.b64decode(self.pixels)


def picture(shape: Sequence[int], octets: bytes) -> Picture:
    """Return a picture of (C, H, W) bytes."""
    channels, height, width = shape
    return Picture(shape=(channels, height, width), pixels=base64.b64encode(octets).decode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskData:
    """The data of Figure 2: one image, masked and rebuilt."""

    basis: str
    dataset: str
    sample: int
    label: str
    probabilities: tuple[float, ...]
    original: Picture
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    """For each row, a name (`masked`, or a defense) and one picture for each probability."""
    errors: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """The root mean square error of each reconstruction, in pixel values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cloud:
    """The penultimate features of one model on clean or attacked images."""

    label: str
    attacked: bool
    accuracy: float
    """The share of these images that the model gets right, under the draw of the features."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    """The coordinates of t-SNE, in the order of `classes`."""
    classes: tuple[int, ...]
    within: tuple[float, ...]
    among: tuple[float, ...]
    """The quantiles 0, 1/200, ..., 1 of the distances within a class and among classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureData:
    """The data of Figures 4 and 5."""

    basis: str
    dataset: str
    names: tuple[str, ...]
    """The names of the classes."""
    clouds: tuple[Cloud, ...]
    missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One attacked image of the gallery."""

    sample: int
    label: str
    original: Picture
    adversarial: Picture
    perturbation: Picture
    """Ten times the change, around middle grey and cut where it leaves the grey scale."""
    rebuilt: Picture | None
    """The defense's transformation of the attacked image; None where that is no image."""
    before: str
    after: str
    """The predicted classes before and after the attack, under the first scoring draw."""
    linf: float
    l2: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shelf:
    """Some attacked images of one record."""

    key: str
    examples: tuple[Example, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """The attacked images that the report shows."""

    basis: str
    shelves: tuple[Shelf, ...]
