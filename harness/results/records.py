"""Records: what was found for a cell, as plain data. Needs no torch."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence

from harness.cells.cells import Cell
from harness.results.resolved import Resolved
from harness.results.statistics import wilson
from harness.types import Access


def pack(bits: Sequence[bool]) -> str:
    """Return outcomes as text: base64 of one bit each, first image in the highest bit."""
    import numpy as np

    return base64.b64encode(np.packbits(np.asarray(bits, dtype=bool)).tobytes()).decode()


def unpack(text: str, count: int) -> list[bool]:
    """Return the inverse of `pack` for `count` outcomes.

    Raises:
        ValueError: the text holds fewer.
    """
    import numpy as np

    octets = np.frombuffer(base64.b64decode(text), np.uint8)
    if 8 * len(octets) < count:
        raise ValueError(f"{8 * len(octets)} packed outcomes, where {count} are asked for")
    outcomes: list[bool] = np.unpackbits(octets, count=count).astype(bool).tolist()
    return outcomes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Four ways to count K scoring draws of n images, each a share in [0, 1]."""

    one_draw: float
    """Under the first draw alone: the paper's number."""
    mean: float
    """Mean over all draws."""
    vote: float
    """The true label is predicted more often than any other."""
    all_draws: float
    """Right in every draw."""
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return 95 % Wilson interval of `mean`, images taken as the independent units."""
        return wilson(self.mean * self.count, self.count)


TRACE_DRAWS = 5
"""Draws by which an iterate of the trace is scored on a randomised defense."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracePoint:
    """Robust accuracy had the attack stopped after so many steps."""

    step: int
    accuracy: float
    fell: int = 0
    """Images that the end of the attack left right in fewer of the trace's draws than this step."""
    rose: int = 0
    """Images that it left right in more of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What was found for a cell. The same cell on the same machine gives the same record, bit for bit:
    durations stand in a timing beside it."""

    key: str
    cell: Cell
    resolved: Resolved
    """Every parameter of model, defense and attack, defaults included."""
    classes: int
    count: int
    ids: str
    """Digest of the sample ids, in order: two records with the same one can be compared image by image."""
    clean: Accuracy
    robust: Accuracy
    returned: Accuracy
    """Robust accuracy with the images as returned, outside the ball or not."""
    clean_outcomes: tuple[str, ...]
    """For each draw, packed: right on the original image."""
    robust_outcomes: tuple[str, ...]
    clean_votes: str = ""
    """Packed: the true label is predicted more often than any other, on the original image."""
    robust_votes: str = ""
    access: Access = "gradients"
    """What the attack asked for, of the victim or of its source."""
    adaptive: bool = False
    bounded: bool = True
    transferred: bool = False
    """Whether the images were made on another model."""
    randomised: bool = False
    """Whether two looks at one image may differ."""
    images: str = ""
    """Digest of the attacked images as they are stored, in order."""
    fooled_on_the_way: float
    """Share of images that were fooled inside the ball at some query, whatever was returned."""
    fooled_outcomes: str
    fooled_once_a_step: float | None = None
    """Share of images that were fooled inside the ball at some step, looking at the first draw of each
    alone, as Tramer et al. 2020 do; None in records that did not count it."""
    trace: tuple[TracePoint, ...] = ()
    distances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Median and largest L-infinity and L2 distances."""
    passes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Mean forwards and backwards for each image; the share of backwards, and of probed pixels, without a
    gradient."""
    looks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Images, most of batch one, that the judge asked about again (`asked`, and `replayed` of an attack's
    questions), and how many were answered otherwise: `alone`, `later`, `gradients`, `attack`."""
    invalid: tuple[int, ...] = ()
    """Ids of images that broke the threat model and count as not attacked."""
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Evidence flags with the reason of each."""
    notes: tuple[str, ...] = ()
    made: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Commit, library versions, device, threads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that did not give a number, and why."""

    key: str
    cell: Cell
    reason: str
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a cell took, over all the runs that worked on it."""

    key: str
    seconds: float
    """Wall-clock time of attack and scoring."""
    images_per_second: float
    started: str
