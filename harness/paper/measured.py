"""Find the numbers of a table: the claim, the measurement, and what a stronger attack leaves of it.

All are queries over records. Needs no torch, and never gives a number that no record backs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from harness.cells.cells import Cell
from harness.paper import claims, expansion
from harness.paper.comparison import Compared, compare
from harness.paper.expansion import Place
from harness.paper.protocol import Profile, Protocol
from harness.results import flags as audit
from harness.results import worst_case
from harness.results.records import Failure, Record
from harness.results.statistics import in_percent, wilson
from harness.results.tables import Loaded, load
from harness.storage import keys
from harness.storage.store import DamagedFile, Store

T = TypeVar("T")
CELLS = "cells"
"""The folder of the results that says which record answers a cell: one record may answer cells that are
spelled differently, and older records of a cell may lie beside the one that counts."""

ANY_ITERATE = "accuracy-any-iterate"

State = Literal["holds", "fell", "untested", "unknown"]


@dataclasses.dataclass(frozen=True)
class Share:
    """A proportion with its 95 % Wilson interval, with images as the independent units."""

    mean: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the mean."""
        return wilson(self.mean * self.count, self.count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class After:
    """The worst case over all attacks on one target in one ball, image by image."""

    share: Share
    attacks: tuple[str, ...]
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """The measured number in one place of a table, with its worst case, flags and records."""

    place: Place
    measured: Share | None
    """The accuracy in the ball or, where `outside`, of the images as returned."""
    after: After | None
    flags: Mapping[str, str]
    records: tuple[Record, ...]
    reason: str = ""
    """The reason why there is no number: skipped, refused, failed. Empty where nothing was run yet."""

    @property
    def outside(self) -> bool:
        """True where most images left the ball, so that the accuracy in it is not the attack's result."""
        return audit.OUTSIDE in self.flags

    @property
    def compared(self) -> Compared | None:
        """The comparison of the number with its claim, by the rule of `comparison`; None without either."""
        claim = self.place.claim
        if claim is None or claim.value is None or self.measured is None:
            return None
        found = self.place.differences
        if self.place.settings.metric == ANY_ITERATE:
            found += _other_looks(self.records)
        return compare(claim.value / 100, self.measured.interval, found)


def cell_name(cell: Cell) -> str:
    """Return the name of a cell in the results folder."""
    said = msgspec.to_builtins(cell)
    if (
        cell.target.precision == "auto"
    ):  # as in `ModelStore.resolved`; earlier records do not say it
        said["target"].pop("precision", None)
    if cell.target.training.inner_transform == "inference":
        said["target"]["training"].pop("inner_transform", None)
    return keys.key(said)


class Results:
    """The content of a results folder, which can be queried cell by cell."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.loaded: Loaded = load(store)
        self.damage = list(self.loaded.damage)
        """A line for each file that was left out because it is damaged, or is no file of the store."""
        self.flags = {record.key: record.flags for record in self.loaded.records}
        self.records = {record.key: record for record in self.loaded.records}
        self.failures = {failure.key: failure for failure in self.loaded.failures}
        self._cells: dict[str, list[str]] = {}
        found: list[Record | Failure] = [*self.loaded.failures, *self.loaded.records]
        for item in found:
            self._cells.setdefault(cell_name(item.cell), []).append(item.key)
        self._groups: dict[tuple[object, ...], list[Record]] = {}
        for record in self.loaded.records:
            self._groups.setdefault(_group(record), []).append(record)

    def find(self, cell: Cell) -> Record | Failure | None:
        """Return the record or failure of a cell; None where there is neither."""
        name = cell_name(cell)
        key = self.read(CELLS, name, str)
        candidates = [key] if key is not None else self._cells.get(name, [])
        records = [self.records[each] for each in candidates if each in self.records]
        if records:
            return max(records, key=self._age)
        failures = [self.failures[each] for each in candidates if each in self.failures]
        return max(failures, key=lambda failure: failure.key) if failures else None

    def read(self, folder: str, name: str, kind: type[T]) -> T | None:
        """Return a value of the results folder; None, with a line in `damage`, where it is damaged."""
        try:
            return self.store.read_json(folder, name, kind)
        except DamagedFile as error:
            line = f"{error.path} is damaged: {error.reason}"
            if line not in self.damage:
                self.damage.append(line)
            return None

    def _age(self, record: Record) -> tuple[str, str]:
        timing = self.loaded.timings.get(record.key)
        return (timing.started if timing else "", record.key)

    def choose(self, table: Protocol, profile: Profile) -> dict[str, str]:
        """Return the stand-ins for datasets that a table's records used: the first of each with a record."""
        return {
            dataset: next(
                (name for name in options if self._answers(table, profile, dataset, name)),
                options[0],
            )
            for dataset, options in profile.datasets.items()
        }

    def _answers(self, table: Protocol, profile: Profile, dataset: str, name: str) -> bool:
        """Return whether a cell of the table was run with `name` in place of `dataset`."""
        return any(
            place.settings.dataset == dataset and any(map(self.find, place.cells))
            for place in expansion.expand(table, profile, {dataset: name})
        )

    def numbers(self, table: Protocol, profile: Profile) -> list[Number]:
        """Return the number in every place of a table."""
        places = expansion.expand(table, profile, self.choose(table, profile))
        return [self.number(place) for place in places]

    def number(self, place: Place) -> Number:
        """Return the number in one place of a table."""
        found = [self.find(cell) for cell in place.cells]
        records = tuple(item for item in found if isinstance(item, Record))
        failures = [item for item in found if isinstance(item, Failure)]
        reason = place.skip
        if not records and failures:
            reason = f"{failures[0].kind}: {failures[0].reason}"
        flags: dict[str, str] = {}
        for record in records:
            flags |= self.flags[record.key]
        return Number(
            place=place,
            measured=_pooled(place, records),
            after=self.after(records[0]) if len(records) == 1 else self._after_all(records),
            flags=dict(sorted(flags.items())),
            records=records,
            reason=reason,
        )

    def after(self, record: Record) -> After | None:
        """Return the worst case over all attacks on this target, ball and set of images.

        It is None where no second attack was run. Attacks whose images left the ball are left out.
        """
        group = [
            other
            for other in self._groups[_group(record)]
            if len(other.robust_outcomes) == len(record.robust_outcomes)
            and not _is_clean(other)
            and audit.OUTSIDE not in other.flags
        ]
        names = tuple(sorted({str(other.cell.attack) for other in group}))
        if _is_clean(record) or len(names) < 2:
            return None
        worst = worst_case.worst_case(sorted(group, key=lambda other: other.key))
        return After(
            share=Share(worst.mean, worst.count),
            attacks=names,
            keys=tuple(sorted(other.key for other in group)),
        )

    def _after_all(self, records: Sequence[Record]) -> After | None:
        """Return the worst case as the mean over seeds; None unless every seed has one."""
        every = [self.after(record) for record in records]
        found = [after for after in every if after is not None]
        if not found or len(found) < len(every):
            return None
        mean = sum(after.share.mean for after in found) / len(found)
        return After(
            share=Share(mean, min(after.share.count for after in found)),
            attacks=tuple(sorted({name for after in found for name in after.attacks})),
            keys=tuple(sorted({key for after in found for key in after.keys})),
        )


def _is_clean(record: Record) -> bool:
    return record.access == "none" and record.distances.get("largest_linf") == 0


def _group(record: Record) -> tuple[object, ...]:
    threat = record.cell.threat
    return (audit.target_key(record), threat.norm, threat.epsilon)


def share(place: Place, record: Record) -> Share:
    """Return the share that one record, of one seed, gives for a place of a table."""
    if audit.OUTSIDE in record.flags:
        return Share(record.returned.mean, record.count)
    if place.settings.metric == ANY_ITERATE:
        looked = record.fooled_once_a_step
        return Share(1 - (record.fooled_on_the_way if looked is None else looked), record.count)
    return Share(record.robust.mean, record.count)


def _other_looks(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the note for records made before one look a step was counted; empty for others."""
    if all(record.fooled_once_a_step is not None for record in records):
        return ()
    return ("every draw of every step counts, not one look a step",)


def _pooled(place: Place, records: Sequence[Record]) -> Share | None:
    """Return the mean over seeds. Its count is that of one seed, because the images are the same."""
    if not records:
        return None
    shares = [share(place, record) for record in records]
    return Share(
        sum(each.mean for each in shares) / len(shares), min(each.count for each in shares)
    )


# --- what became of a claim -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The state of a claim. Only numbers at the paper's own settings and scale decide it."""

    state: State
    says: str
    scaled_down: bool = False


def verdict(number: Number) -> Verdict | None:
    """Return the verdict on the claim of a number; None where nothing is claimed."""
    claim = number.place.claim
    if claim is None:
        return None
    if claim.value is None:
        return Verdict(state="unknown", says=f"the number is not known here ({claim.note})")
    refuted = claims.refutations(claim)
    scaled = number.measured is not None
    hint = _hint(number, claim.value / 100)
    compared = number.compared
    if number.place.full_scale and compared is not None and not compared.differences:
        judged = _judged(number, claim.value / 100)
        if judged.state == "fell" or not refuted:
            return judged
        scaled, hint = False, f"; the attack of the claim leaves {judged.says} here"
    if refuted:
        lowest = min(refuted, key=lambda other: other.value or 0.0)
        says = f"{lowest.source}: {lowest.value:g} ({_recipe(lowest)})"
        return Verdict(state="fell", says=says + hint, scaled_down=scaled)
    if scaled:
        return Verdict(
            state="untested", says=f"measured at {_where(number)}" + hint, scaled_down=True
        )
    return Verdict(state="untested", says=number.reason or "nothing was measured")


def _where(number: Number) -> str:
    """Return the settings in words: `other settings: ...`, or the claim's own on fewer images."""
    compared = number.compared
    if compared is None or not compared.differences:
        return "the claim's settings on fewer images"
    return str(compared)


def _recipe(claim: claims.Claim) -> str:
    return f"{claim.attack}{f', {claim.steps} steps' if claim.steps else ''}"


def _judged(number: Number, claimed: float) -> Verdict:
    assert number.measured is not None
    low, high = number.measured.interval
    if high < claimed:
        return Verdict(state="fell", says=f"{percent(number.measured)} under the same attack")
    after = _after_same_access(number)
    if after is not None and after.share.interval[1] < claimed:
        says = f"{percent(after.share)} after {len(after.attacks)} attacks"
        return Verdict(state="fell", says=says)
    says = f"{percent(number.measured)}" + (", above the claim" if low > claimed else "")
    return Verdict(state="holds", says=says)


def _after_same_access(number: Number) -> After | None:
    """Return the worst case if it bears on the claim: white-box attacks refute no black-box claim."""
    claim = number.place.claim
    return None if claim is None or claim.black_box else number.after


def _hint(number: Number, claimed: float) -> str:
    if number.measured is None:
        return ""
    after = _after_same_access(number)
    lowest = after.share if after is not None else number.measured
    side = "below" if lowest.interval[1] < claimed else "not below"
    return f"; here {percent(lowest)}, {side} the claim"


def percent(share: Share) -> str:
    """Return a share and its interval in percent, as `41.2 [38.2, 44.3]`."""
    return in_percent(share.mean, share.interval)


@functools.cache
def symbols(count: int) -> tuple[str, ...]:
    """Return footnote marks: a, b, ... z, aa, ab, ..."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [*letters, *(first + second for first in letters for second in letters)]
    return tuple(names[:count])
