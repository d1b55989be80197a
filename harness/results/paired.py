"""Compare two cells on the same images, image by image. Needs no torch."""

from __future__ import annotations

import dataclasses
import functools

from harness.results.records import Record, unpack
from harness.results.statistics import mcnemar


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference between the robust accuracies of two records, image by image."""

    difference: float
    """The mean robust accuracy of the first minus that of the second, in [-1, 1]."""
    more: int
    """Images that are right in a greater share of the scoring draws in the first record."""
    fewer: int
    """Images that are right in a smaller share."""

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the sign test of `more` against `fewer` (McNemar's for one draw each).

        If neither attack is the stronger, an image on which they differ is as likely to be in `more`
        as in `fewer`; images, not draws, are the independent units.
        """
        return mcnemar(self.more, self.fewer)


@functools.lru_cache(maxsize=4096)
def right_counts(outcomes: tuple[str, ...], count: int) -> tuple[int, ...]:
    """Return the (n,) number of draws in which each image was right.

    Args:
        outcomes: one text of packed outcomes for each draw.
        count: the number of images n.
    """
    rows = [unpack(row, count) for row in outcomes]
    return tuple(sum(column) for column in zip(*rows, strict=True))


def shares(outcomes: tuple[str, ...], count: int) -> list[float]:
    """Return the (n,) share of draws in which each image was right, from packed outcomes as above."""
    return [right / len(outcomes) for right in right_counts(outcomes, count)]


def comparable(first: Record, second: Record) -> bool:
    """Return whether both were scored on the same images, in the same order."""
    return first.ids == second.ids and first.count == second.count > 0


def compare(first: Record, second: Record) -> Comparison:
    """Compare `first` with `second`.

    Raises:
        ValueError: they are of different images.
    """
    if not comparable(first, second):
        raise ValueError(f"records {first.key} and {second.key} are of different images")
    each = [shares(record.robust_outcomes, record.count) for record in (first, second)]
    pairs = list(zip(*each, strict=True))
    return Comparison(
        difference=sum(a - b for a, b in pairs) / len(pairs),
        more=sum(a > b for a, b in pairs),
        fewer=sum(a < b for a, b in pairs),
    )
