"""What stands around every call of a guest's code: it is seen what the call changed, and whatever it raises
is one line of text.

A guest is code that the engine did not write: an attack, a defense, a model, a user's file. What it changes
in the process is put back. What cannot be seen or put back from inside of a process is the business of a
process of its own (`harness run --isolate`).
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
    """A guest's code raised something: its text is one clean line that says what."""


history: list[str] = []
"""What guests changed in this process while they attacked or were judged, in order."""
_LOST = "(it cannot be put back)"


@contextlib.contextmanager
def watched(*, noted: bool = True, keep: Collection[str] = ()) -> Iterator[list[str]]:
    """Put the process back as it was after a guest's call, and name what was changed in the list.

    Args:
        noted: whether it goes into the history of the process, too.
        keep: facets of the process that the guest may change.
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
"""What the engine itself moves between two calls of guests."""


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
    """Return whether guests changed the process after the first `since` entries of its history, or in a way
    that cannot be put back at any time."""
    return len(history) > since or any(name.endswith(_LOST) for name in history)


def named(found: list[str]) -> str:
    """Return what was changed as a phrase, shortened; empty where nothing was."""
    found = list(dict.fromkeys(found))
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def call(work: Callable[[], T], passes: Callable[[BaseException], bool] = lambda error: False) -> T:
    """Return what a guest's code returns.

    Args:
        passes: whether an error is the engine's own, raised through the guest's frames.

    Raises:
        GuestError: it raised anything else: an exit, an interrupt that no signal asked for, an error of the
            engine's that is not its to raise, something that cannot be printed.
        HarnessError: a refusal, as the guest words it.
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
    """Whether an interrupt may be the user's: nobody else takes note of the signal, as a run does."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
