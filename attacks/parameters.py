"""Check attack parameters: each function raises HarnessError with what was given and what is allowed."""

from __future__ import annotations

import math

from harness.types import HarnessError, Victim


def at_least_one(name: str, value: object) -> None:
    """Raise HarnessError unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise HarnessError(f"{name} is {value!r}: it must be an integer of at least 1")


def positive(name: str, value: object) -> None:
    """Raise HarnessError unless `value` is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and value > 0):  # type: ignore[arg-type,operator]
        raise HarnessError(f"{name} is {value!r}: it must be a finite number above 0")


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise HarnessError unless `value` is one of the words in `allowed`."""
    if value not in allowed:
        raise HarnessError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")


def text(name: str, value: object) -> None:
    """Raise HarnessError unless `value` is a string that is not empty."""
    if not (isinstance(value, str) and value):
        raise HarnessError(f"{name} is {value!r}: it must be a word")


def offered(victim: Victim, backward: str) -> None:
    """Raise HarnessError unless the victim's defense offers this backward pass."""
    if backward not in victim.backward_passes:
        raise HarnessError(
            f"backward is {backward!r}, which this defense does not offer: "
            f"it offers {', '.join(victim.backward_passes)}",
            page="attacks",
        )
