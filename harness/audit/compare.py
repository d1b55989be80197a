"""Compare two versions of a record, and name the fields that nothing on disk can contradict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from harness.results.records import Record
from harness.storage import keys

TRUSTED: dict[str, str] = {
    "made": "who made it, where and with which libraries",
    "cell.target.training.paper_epochs": "how long the published schedule is: no key depends on it",
}
"""The fields that every finding takes on trust, because no other file states them."""

STORED = (
    "stored batches: that the attack made these images, and found no worse ones",
    "stored batches: passes, dead gradients and queries that fooled, as the view counted them, and what "
    "the attack was answered last",
    "stored batches: the trace before its end, whose images are not kept",
    "stored batches: whether victim and process were changed, and what changed while the record was scored",
)
"""The evidence that a record must agree with, but that only a new run of the attack could count again."""

_LONGEST = 60


def plain(record: Record) -> Any:
    """Return a record as a store writes it, with every field: dicts, lists, texts, numbers."""
    return json.loads(keys.canonical(_complete(record)))


def _complete(value: Any) -> Any:
    """Write out the fields that a decoder left to the defaults of their class: msgspec passes them over."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _complete(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {name: _complete(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_complete(entry) for entry in value]
    return value


def differences(stated: Any, rebuilt: Any) -> list[str]:
    """Return the differences of a stored record from the rebuilt one, a line each.

    What is named in `TRUSTED` is passed over.
    """
    return [line for path, line in _walk(stated, rebuilt, "") if path.split(".")[0] not in TRUSTED]


def _walk(stated: Any, rebuilt: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(stated, dict) and isinstance(rebuilt, dict):
        for name in sorted(stated.keys() | rebuilt.keys()):
            inner = f"{path}.{name}" if path else name
            if name not in rebuilt:
                yield inner, f"{inner} is {_short(stated[name])}: there is no such entry"
            elif name not in stated:
                yield inner, f"{inner} is missing: it must be {_short(rebuilt[name])}"
            else:
                yield from _walk(stated[name], rebuilt[name], inner)
    elif isinstance(stated, list) and isinstance(rebuilt, list):
        if len(stated) != len(rebuilt):
            yield path, f"{path} has {len(stated)} entries, where {len(rebuilt)} are right"
        for number, (one, other) in enumerate(zip(stated, rebuilt, strict=False)):
            yield from _walk(one, other, f"{path}.{number}")
    elif stated != rebuilt or isinstance(stated, bool) != isinstance(rebuilt, bool):
        yield path, f"{path} is {_short(stated)}, rebuilt it is {_short(rebuilt)}"


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def on_trust(
    record: Record,
    *,
    randomised: bool,
    whole: bool,
    same_code: bool,
    source: bool,
    same_looks: bool,
) -> tuple[str, ...]:
    """Name what a finding on this record takes on trust.

    Args:
        randomised: whether the target is; the draws of one that is not leave no mark.
        whole: whether no limit cuts the test images; then a larger one says the same.
        same_code: whether the attack's code is the one that ran.
        source: whether the model on which the images were made is at hand.
        same_looks: whether the defense answered as the record says when it was asked again.
    """
    found = [f"{field}: {what}" for field, what in TRUSTED.items()]
    if not randomised:
        found.append("cell.draws: one look at a deterministic defense is like another")
    if whole:
        found.append("cell.limit: there are no more test images than it allows")
    if not same_code:
        words = ", ".join(("access", "adaptive", "bounded", "transferred"))
        found.append(f"{words}: the attack's code has changed since")
    if not same_looks:
        found.append(
            "looks: the defense answers otherwise each time that it is asked, or rounds so"
        )
    found += STORED if record.trace else (*STORED[:2], STORED[3])
    if record.trace and not source:
        found.append(
            "stored batches: the end of the trace, on a source whose weights are not there"
        )
    return tuple(found)
