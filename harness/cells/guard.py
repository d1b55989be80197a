"""Guard every call of a guest's code: changes are found and undone, and any error becomes one line of text.

A guest is code that the engine did not write: an attack, a defense, a model, a user's file. Its changes to
the process are put back. Against changes that cannot be seen or put back from inside, a guest gets a process
of its own (`harness run --isolate`).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from harness.cells import code, process
from harness.registry import describe
from harness.types import HarnessError

T = TypeVar("T")
_NAMED = 5


class GuestError(Exception):
    """Raised where a guest's code raised anything; the text is one clean line that names the error."""


history: list[str] = []
"""The changes that guests made to this process while they attacked or were judged, in order."""
_LOST = "(it cannot be put back)"


@contextlib.contextmanager
def watched(*, noted: bool = True, keep: Collection[str] = ()) -> Iterator[list[str]]:
    """Restore the process after a guest's call, and name the changes in the list.

    Args:
        noted: whether the changes also go into the history of the process.
        keep: the facets of the process that the guest may change.
    """
    if noted:
        process.warm()
    functions, facets = code.read(), process.read()
    restore_code, restore_process = code.restore, process.restore  # these, whatever the guest does
    found: list[str] = []
    try:
        yield found
    finally:
        # Code first: what is put back next is then put back by the true functions.
        found += [*restore_code(functions), *restore_process(facets, keep)]
        if noted:
            history.extend(found)


_LATE = (process.RANDOM, process.PATH, process.THREADS)
"""Facets that the engine itself moves between two calls of guests."""


class Baseline:
    """Code and process as they are when a run begins, to compare between its cells: what a guest leaves
    behind may act after its call, when it is freed or called back."""

    def __init__(self) -> None:
        process.warm()
        self._functions, self._facets = code.read(), process.read()

    def restore(self) -> list[str]:
        """Put back what differs; return the names of it, which go into the history, too."""
        found = [*code.restore(self._functions), *process.restore(self._facets, _LATE)]
        history.extend(found)
        return found


def is_dirty(since: int = 0) -> bool:
    """Return whether guests changed the process after the first `since` entries of its history.

    A change that cannot be put back counts at any place in the history.
    """
    return len(history) > since or any(name.endswith(_LOST) for name in history)


def named(found: list[str]) -> str:
    """Return changes as a phrase, shortened; empty where there are none."""
    found = list(dict.fromkeys(found))
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def call(work: Callable[[], T], passes: Callable[[BaseException], bool] = lambda error: False) -> T:
    """Call a guest's code and return its result.

    Args:
        passes: whether an error is the engine's own, raised through the guest's frames.

    Raises:
        GuestError: the guest raised anything else: an exit, an interrupt without a signal, one of the
            engine's own errors, an error that cannot be printed.
        HarnessError: the guest refused, in its own words.
    """
    try:
        return work()
    except BaseException as error:
        if passes(error) or (type(error) is KeyboardInterrupt and _from_keyboard()):
            raise
        refused, reason = type(error) is HarnessError, describe(error)
    # Outside of the handler: the guest's error, and what its frames hold, are free by now.
    raise HarnessError(reason.removeprefix("HarnessError: ")) if refused else GuestError(reason)


def _from_keyboard() -> bool:
    """Return whether an interrupt may be the user's: no handler of a run takes the signal."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
