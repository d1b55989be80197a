"""Records: the results of cells, as plain data. Needs no torch."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence

from harness.cells.cells import Cell
from harness.results.resolved import Resolved
from harness.results.statistics import wilson
from harness.types import Access


def pack(bits: Sequence[bool]) -> str:
    """Return outcomes as text: base64 of one bit each, with the first image in the highest bit."""
    import numpy as np

    return base64.b64encode(np.packbits(np.asarray(bits, dtype=bool)).tobytes()).decode()


def unpack(text: str, count: int) -> list[bool]:
    """Return `count` outcomes from the text that `pack` made of them.

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
    """The share that is right under the first draw alone, which is the number in the paper."""
    mean: float
    """The mean over all draws."""
    vote: float
    """The share whose true label is predicted more often than any other."""
    all_draws: float
    """The share that is right in every draw."""
    count: int

    def __post_init__(self) -> None:
        """Raise ValueError where these are no shares of a number of images."""
        shares = (self.one_draw, self.mean, self.vote, self.all_draws)
        if self.count < 0 or not all(0 <= each <= 1 for each in shares):
            raise ValueError(f"no shares of {self.count} images: {', '.join(map(str, shares))}")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `mean`, with images as the independent units."""
        return wilson(self.mean * self.count, self.count)


TRACE_DRAWS = 5
"""The number of draws on which an iterate of the trace is scored, for a randomised defense."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracePoint:
    """The robust accuracy if the attack had stopped after `step` steps."""

    step: int
    accuracy: float
    fell: int = 0
    """The number of images that are right in fewer of the trace's draws at the end than at this step."""
    rose: int = 0
    """The number of images that are right in more of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The result of a cell.

    The same cell on the same machine gives the same record, bit for bit; durations are kept apart, in a
    timing.
    """

    key: str
    cell: Cell
    resolved: Resolved
    """Every parameter of model, defense and attack, defaults included."""
    classes: int
    count: int
    ids: str
    """The digest of the sample ids, in order. Two records with the same digest can be compared by image."""
    clean: Accuracy
    robust: Accuracy
    returned: Accuracy
    """Robust accuracy with the images as returned, outside the ball or not."""
    clean_outcomes: tuple[str, ...]
    """For each draw, packed: whether the prediction on the original image is right."""
    robust_outcomes: tuple[str, ...]
    clean_votes: str = ""
    """Packed: whether the true label is predicted more often than any other on the original image."""
    robust_votes: str = ""
    access: Access = "gradients"
    """The access that the attack has to the victim, or to its source."""
    adaptive: bool = False
    bounded: bool = True
    transferred: bool = False
    """True where the images were made on another model."""
    randomised: bool = False
    """True where two queries of one image may be answered differently."""
    images: str = ""
    """The digest of the attacked images as they are stored, in order."""
    fooled_on_the_way: float
    """The share of images that were fooled inside the ball at some query, whatever was returned."""
    fooled_outcomes: str
    fooled_once_a_step: float | None = None
    """The share of images that were fooled inside the ball at some step, judged by the step's first draw
    alone (as Tramer et al. 2020 do); None in records that did not count it."""
    trace: tuple[TracePoint, ...] = ()
    distances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The largest L-infinity distance, and medians over the images that are wrong, as returned, in any
    draw."""
    passes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The mean forwards and backwards of an image, and the shares of backwards and of probed pixels that
    had no gradient."""
    looks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The number of images that the judge queried again, most of the first batch (`asked`, and `replayed` for
    the attack's own queries), and of those answered differently: `alone`, `later`, `gradients`, `attack`."""
    invalid: tuple[int, ...] = ()
    """The ids of images that broke the threat model, which count as not attacked."""
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The evidence flags, each with its reason."""
    notes: tuple[str, ...] = ()
    made: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The commit, library versions, device and number of threads."""

    def __post_init__(self) -> None:
        """Raise ValueError where outcomes are not of so many images, so that nothing can be counted."""
        if self.count < 0 or self.classes < 1:
            raise ValueError(f"it counts {self.count} images of {self.classes} classes")
        if any(each.count != self.count for each in (self.clean, self.robust, self.returned)):
            raise ValueError(f"its accuracies are not of {self.count} images")
        if not self.clean_outcomes or len(self.clean_outcomes) != len(self.robust_outcomes):
            raise ValueError("its outcomes are not of the same draws")
        octets = -(-self.count // 8)
        rows = (*self.clean_outcomes, *self.robust_outcomes, self.fooled_outcomes)
        for row in (*rows, *filter(None, (self.clean_votes, self.robust_votes))):
            if len(base64.b64decode(row, validate=True)) != octets:
                raise ValueError(f"its outcomes are not of {self.count} images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that gave no number, with the reason."""

    key: str
    cell: Cell
    reason: str
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """The time that a cell took, over all the runs that worked on it."""

    key: str
    seconds: float
    """The wall-clock time of attack and scoring."""
    images_per_second: float
    started: str
