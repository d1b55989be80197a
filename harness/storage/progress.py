"""Show the progress of everything longer than two seconds: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO


class Task(Protocol):
    """A piece of work whose progress is shown."""

    def advance(self, amount: float, note: str = "") -> None: ...
    def __enter__(self) -> Task: ...
    def __exit__(self, *error: Any) -> None: ...


class Reporter(Protocol):
    """The receiver of a run's progress and messages."""

    def task(self, title: str, total: float) -> Task: ...
    def say(self, line: str) -> None: ...


def duration(seconds: float) -> str:
    """Return a time as `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Timed:
    """A task shown as plain lines: none in the first two seconds, then at most one in each interval."""

    def __init__(self, title: str, total: float, stream: TextIO, interval: float) -> None:
        self.title, self.total, self.stream, self.interval = (
            title,
            max(total, 1e-9),
            stream,
            interval,
        )
        self.done, self.note = 0.0, ""
        self.start = self.last = time.monotonic()
        self.shown = False

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        first = not self.shown and now - self.start > 2.0
        if first or (self.shown and now - self.last >= self.interval):
            self.last, self.shown = now, True
            self.show(now - self.start)

    def show(self, elapsed: float) -> None:
        share = min(1.0, self.done / self.total)
        left = elapsed * (1 - share) / share if share > 0 else 0.0
        note = f", {self.note}" if self.note else ""
        print(
            f"{self.title}: {share:.0%}, {duration(elapsed)}, about {duration(left)} left{note}",
            file=self.stream,
            flush=True,
        )

    def __enter__(self) -> _Timed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.shown and kind is None:
            elapsed = duration(time.monotonic() - self.start)
            note = f", {self.note}" if self.note else ""
            print(f"{self.title}: done in {elapsed}{note}", file=self.stream, flush=True)


class Lines:
    """A reporter of plain lines, by default every ten seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.interval = interval

    def task(self, title: str, total: float) -> Task:
        return _Timed(title, total, self.stream, self.interval)

    def say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


class Silent:
    """A reporter that shows nothing."""

    def task(self, title: str, total: float) -> Task:
        return _Bare()

    def say(self, line: str) -> None:
        return


class _Bare:
    def advance(self, amount: float, note: str = "") -> None:
        return

    def __enter__(self) -> _Bare:
        return self

    def __exit__(self, *error: Any) -> None:
        return


class Bars:
    """A reporter of progress bars (by rich), with an estimate of the time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def task(self, title: str, total: float) -> Task:
        return _Bar(self.console, title, total)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)


class _Bar:
    def __init__(self, console: Any, title: str, total: float) -> None:
        from rich import progress

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            progress.TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.task = self.bar.add_task(title, total=total, note="")

    def advance(self, amount: float, note: str = "") -> None:
        if note:
            self.bar.update(self.task, note=note)
        self.bar.advance(self.task, amount)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()


def reporter(*, quiet: bool = False) -> Reporter:
    """Return the reporter for this process: bars on a terminal, lines elsewhere, nothing where quiet."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()
