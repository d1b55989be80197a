"""Limit the time of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.targets.training import Interrupted, Stop
from harness.types import HarnessError


class BudgetSpent(Interrupted):
    """Raised where the allowed time is over; finished work is kept."""


class Deadline(Stop):
    """A request to stop that is also made when the time is over."""

    def __init__(self, inner: Stop, until: float, clock: Callable[[], float]) -> None:
        self._inner, self._until, self._clock = inner, until, clock

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self._until - self._clock()

    @property
    def asked(self) -> bool:
        return self._inner.asked or self.left <= 0

    @asked.setter
    def asked(self, value: bool) -> None:
        self._inner.asked = value

    def check(self) -> None:
        self._inner.check()
        if self.left <= 0:
            raise BudgetSpent


def seconds(text: str) -> float:
    """Return the seconds that a text such as `90`, `90s`, `10m` or `1.5h` states.

    Raises:
        HarnessError: the text is no such time.
    """
    units: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0}
    unit = units.get(text[-1:], 1.0)
    try:
        value = float(text[:-1] if text[-1:] in units else text) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise HarnessError(f"a time of {text!r}: write 90s, 10m or 2h", page="flags")
    return value
