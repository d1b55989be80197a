"""Hold what figures are drawn from, where it is not records; stored, so that drawing needs no torch."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence

FOLDER = "figure-data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """Hold the approximate ranks of one dataset's images (ME-Net, Figure 1)."""

    dataset: str
    split: str
    count: int
    height: int
    width: int
    """Of the matrix: all channels side by side."""
    images_of_rank: tuple[int, ...]
    """How many images have rank 0, 1, 2, ..."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankData:
    """Hold what Figure 1 shows."""

    basis: str
    """Hash of what the data depends on."""
    datasets: tuple[Ranks, ...]
    missing: tuple[str, ...] = ()
    """Datasets that are not here, with the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """Hold one image as bytes: (C, H, W) uint8, base64."""

    shape: tuple[int, int, int]
    pixels: str

    @property
    def octets(self) -> bytes:
        return base64.b64decode(self.pixels)


def picture(shape: Sequence[int], octets: bytes) -> Picture:
    """Make a picture of (C, H, W) bytes."""
    channels, height, width = shape
    return Picture(shape=(channels, height, width), pixels=base64.b64encode(octets).decode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskData:
    """Hold what Figure 2 shows: one image, masked and rebuilt."""

    basis: str
    dataset: str
    sample: int
    label: str
    probabilities: tuple[float, ...]
    original: Picture
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    """A name (`masked`, or a defense) and one picture for each probability."""
    errors: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Root mean square error of each reconstruction, in pixel values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cloud:
    """Hold the penultimate features of one model on clean or attacked images."""

    label: str
    attacked: bool
    accuracy: float
    """Share of these images that the model gets right, under the draw of the features."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    """t-SNE, in the order of `classes`."""
    classes: tuple[int, ...]
    within: tuple[float, ...]
    among: tuple[float, ...]
    """Quantiles 0, 1/200, ..., 1 of the distances within a class and among classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureData:
    """Hold what Figures 4 and 5 show."""

    basis: str
    dataset: str
    names: tuple[str, ...]
    """Of the classes."""
    clouds: tuple[Cloud, ...]
    missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Hold one attacked image of the gallery."""

    sample: int
    label: str
    original: Picture
    adversarial: Picture
    perturbation: Picture
    """Ten times the change, around middle grey and cut where it leaves the grey scale."""
    rebuilt: Picture | None
    """What the defense makes of the attacked image; None where that is no image."""
    before: str
    after: str
    """Predicted classes, under the first scoring draw."""
    linf: float
    l2: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shelf:
    """Hold some images of one record."""

    key: str
    examples: tuple[Example, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """Hold what the report shows of the attacked images."""

    basis: str
    shelves: tuple[Shelf, ...]
