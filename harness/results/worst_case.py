"""Find the worst case of several attacks on one target, image by image. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from harness.results import flags
from harness.results.paired import comparable
from harness.results.records import Record, unpack
from harness.results.statistics import wilson
from harness.types import ThreatModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worst:
    """The robust accuracy that several attacks on one target leave together."""

    count: int
    mean: float
    """The robust accuracy if each image meets its worst attack, mean over the scoring draws. One half of the
    draws chooses the attack and the other half scores it, so that luck in scoring is no success. It never
    exceeds what the strongest attack alone leaves, since using that one on every image is a choice too."""
    vote: float
    """The share of images whose vote is right under every attack."""
    attacks: tuple[str, ...]
    alone: Mapping[str, int]
    """For each attack, the number of images that only this attack fools, by vote."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `mean`."""
        return wilson(self.mean * self.count, self.count)


def groups(records: Sequence[Record]) -> dict[tuple[str, ThreatModel], list[Record]]:
    """Return the records grouped by target, images and ball: only within a group may outcomes be joined."""
    found: dict[tuple[str, ThreatModel], list[Record]] = {}
    for record in records:
        place = (flags.target_key(record), record.cell.threat)
        found.setdefault(place, []).append(record)
    return found


def worst_case(records: Sequence[Record]) -> Worst:
    """Return the worst case of records of one target on the same images.

    Raises:
        ValueError: no records, or of different images or numbers of draws.
    """
    first = records[0]
    draws = len(first.robust_outcomes)
    if any(not comparable(first, r) or len(r.robust_outcomes) != draws for r in records):
        raise ValueError("a worst case needs records of the same images and draws")
    rows = [[unpack(row, r.count) for row in r.robust_outcomes] for r in records]
    votes = [vote_outcomes(record) for record in records]
    standing = [all(column) for column in zip(*votes, strict=True)]
    alone = {
        str(record.cell.attack): sum(
            not own[image] and all(v[image] for other, v in enumerate(votes) if other != place)
            for image in range(first.count)
        )
        for place, (record, own) in enumerate(zip(records, votes, strict=True))
    }
    split = sum(_split_minimum(rows, image) for image in range(first.count)) / first.count
    return Worst(
        count=first.count,
        mean=min([split, *(record.robust.mean for record in records)]),
        vote=sum(standing) / first.count,
        attacks=tuple(str(record.cell.attack) for record in records),
        alone=alone,
    )


def vote_outcomes(record: Record) -> list[bool]:
    """Return whether the vote is right on each image; in records without votes, by a strict majority."""
    if record.robust_votes:
        return unpack(record.robust_votes, record.count)
    rows = [unpack(row, record.count) for row in record.robust_outcomes]
    return [2 * sum(column) > len(rows) for column in zip(*rows, strict=True)]


def _split_minimum(rows: Sequence[Sequence[Sequence[bool]]], image: int) -> float:
    """Return the share of draws in which one image is right under the attack that is its worst.

    With one draw it is the plain minimum. With more, the even draws choose the attack for the odd ones, and
    the odd for the even; attacks that tie count equally. The outcomes are `rows[attack][draw][image]`.
    """
    outcomes = [[draw[image] for draw in attack] for attack in rows]
    draws = len(outcomes[0])
    if draws == 1:
        return float(min(own[0] for own in outcomes))
    total = 0.0
    for choosing, scoring in ((0, 1), (1, 0)):
        shares = [sum(own[choosing::2]) for own in outcomes]
        lowest = min(shares)
        scores = [
            sum(own[scoring::2])
            for own, share in zip(outcomes, shares, strict=True)
            if share == lowest
        ]
        total += sum(scores) / len(scores)
    return total / draws
