"""Write the events of a run as JSON lines, for other programs to read, where `--log FILE` asks for it.

Each line has `time` (UTC), `event`, `process` (host:id), and where they are known `cell` (the key of
its record), `batch`, `seconds` and `message`. Several processes may append to one file.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.storage.store import unwritable

_sink: Callable[[str], object] | None = None
_noted: dict[tuple[str | None, str, str], float] = {}
EVERY = 60.0
"""The least seconds between two notes of the same repeated event."""
_cell: contextvars.ContextVar[str | None] = contextvars.ContextVar("cell", default=None)


def event(
    name: str, message: str = "", *, batch: str | None = None, seconds: float | None = None
) -> None:
    """Note that something happened: `cell done`, `lease taken over`."""
    if _sink is None:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    facts = {
        "time": now,
        "event": name,
        "process": f"{socket.gethostname()}:{os.getpid()}",
        "cell": _cell.get(),
        "batch": batch,
        "seconds": None if seconds is None else round(seconds, 3),
        "message": message or None,
    }
    _sink(json.dumps({key: value for key, value in facts.items() if value is not None}) + "\n")


def now_and_then(name: str, message: str = "") -> None:
    """Note an event of which there may be many, at most once a minute for each cell and message."""
    place = (_cell.get(), name, message)
    now = time.monotonic()
    if _sink is not None and now - _noted.get(place, -math.inf) >= EVERY:
        _noted[place] = now
        event(name, message)


@contextlib.contextmanager
def about(cell: str) -> Iterator[None]:
    """Attach this cell to all events of the block."""
    token = _cell.set(cell)
    try:
        yield
    finally:
        _cell.reset(token)


@contextlib.contextmanager
def to(place: Path | list[str] | None) -> Iterator[None]:
    """Send the events of the block to the end of a file, or into a list.

    Raises:
        StoreError: the file cannot be written.
    """
    global _sink
    before = _sink
    with contextlib.ExitStack() as stack:
        if isinstance(place, Path):
            try:
                # Unbuffered: each line is one append, so lines of several processes do not mix.
                file = stack.enter_context(open(place, "ab", buffering=0))
            except OSError as error:
                raise unwritable(place, error) from error
            _sink = lambda line: file.write(line.encode())  # noqa: E731
        elif place is not None:
            _sink = place.append
        try:
            yield
        finally:
            _sink = before
            _noted.clear()


def copy(lines: list[str]) -> None:
    """Copy events that another process sent into a list."""
    if _sink is not None:
        for line in lines:
            _sink(line)
