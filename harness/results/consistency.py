"""Find signs in a record that the defense answered one question in two ways. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from harness.results.records import TRACE_DRAWS, Record
from harness.results.statistics import fisher

LUCK = 1e-4
"""The chance of a false alarm where two scorings of the same images are compared."""

_LOOKS: Mapping[str, tuple[str, str]] = {
    "alone": ("asked", "change with the rest of the batch"),
    "later": ("asked", "change with what was asked before, or beside which images"),
    "gradients": ("asked", "change with gradients on"),
    "attack": ("replayed", "were answered otherwise to the attack than now to the judge"),
}
"""For each name in `Record.looks`: the name of the images that it is a part of, and its meaning."""


def inconsistent(record: Record, *, smallest: float) -> str:
    """Return the reason why the defense is no function of images and draws; empty where it may be one.

    One image in eight may change, since rounding in a solver explains it.

    Args:
        smallest: the smallest difference of accuracy that is worth a flag.
    """
    reasons = []
    for name, (asked, says) in _LOOKS.items():
        count, other = record.looks.get(asked, 0), record.looks.get(name, 0)
        if 8 * other > count:
            reasons.append(f"{other} of {count} images {says}")
    return "; ".join(reasons) or _trace_against_score(record, smallest)


def _trace_against_score(record: Record, smallest: float) -> str:
    """Return the reason where the end of the trace and the score differ by more than luck; empty otherwise.

    Both score the same images, under different draws. Since some images are harder than others, Fisher's
    test is conservative here (Hoeffding 1956).
    """
    if not record.trace or record.transferred or record.invalid or not record.count:
        return ""
    end, score = record.trace[-1].accuracy, record.returned.mean
    if abs(end - score) <= smallest or round(abs(end - score) * record.count) <= 1:
        return ""
    says = f"{end:.1%} at the end of the trace, {score:.1%} when the same images are scored"
    if not record.randomised:
        return says
    counts = TRACE_DRAWS * record.count, record.resolved.draws * record.count
    right = round(end * counts[0]), round(score * counts[1])
    return says if fisher(right[0], counts[0], right[1], counts[1]) < LUCK else ""
