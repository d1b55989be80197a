"""A run in which every file operation fails once. Part of `killer.py`'s process.

At each operation the run forks: the copy gets the error and lives with it to its end, the run itself
waits for the copy and then goes on as if nothing had been. So one run meets a fault at each of its
operations, and each copy starts from the folder as the run had made it by then.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WENT_ON = 77
REAL_OPEN = builtins.open


class Faults:
    """Counts the operations on files below `folder`, and forks at each."""

    def __init__(self, folder: Path, number: int, report: Path) -> None:
        self.folder = str(folder)
        self.number = number
        self.report = report
        self.copies = 0
        self.inside = False
        self.left: int | None = None
        """In a copy: operations until it is clear that it lives on with its error."""

    def point(self, name: str, path: Any) -> None:
        """Raises OSError in a copy of this process; returns in this one."""
        if threading.current_thread() is not threading.main_thread():
            return
        if not str(path).startswith(self.folder) or (name == "mkdir" and os.path.isdir(path)):
            return
        if self.left is not None:
            self.left -= 1
            if self.left < 0:  # it went on: the run itself does the work
                os._exit(WENT_ON)
        if self.inside:
            return
        self.inside = True
        self.copies += 1
        output = self.report.with_suffix(f".{self.copies}")
        # The copy tidies up the temporary file that it shares with us: keep its inode.
        kept = self.report.with_suffix(".kept")
        temporary = str(path).endswith(".tmp") and os.path.exists(path)
        if temporary:
            os.link(path, kept)
        child = os.fork()
        if child == 0:  # stays inside: no faults in the copy after this one
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            self.left = 12
            raise OSError(self.number, os.strerror(self.number), str(path))
        _, status = os.waitpid(child, 0)
        if temporary:
            os.rename(kept, path)
            kept.unlink(missing_ok=True)
        line = {
            "operation": name,
            "path": str(path)[len(self.folder) :],
            "status": os.waitstatus_to_exitcode(status),
            "said": output.read_text(),
        }
        with REAL_OPEN(self.report, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.inside = False

    def install(self) -> None:
        """Stand before everything by which the harness touches files."""

        def before(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(path: Any, *words: Any, **named: Any) -> Any:
                self.point(name, path)
                return call(path, *words, **named)

            return wrapped

        for name in ("replace", "mkdir", "unlink", "open", "scandir", "listdir"):
            setattr(os, name, before(name, getattr(os, name)))
        shutil.rmtree = before("rmtree", shutil.rmtree)  # type: ignore[assignment]
        real_fsync = os.fsync

        def fsync(handle: int) -> None:
            # A name that was taken away and put back reads as deleted.
            name = os.readlink(f"/proc/self/fd/{handle}")
            self.point("fsync", name.removesuffix(" (deleted)"))
            real_fsync(handle)

        os.fsync = fsync  # type: ignore[assignment]

        def opened(path: Any, mode: str = "r", *words: Any, **named: Any) -> Any:
            self.point(f"open {mode}", path)
            file = REAL_OPEN(path, mode, *words, **named)
            ours = str(path).startswith(self.folder)
            return _Writing(file, self, path) if ours and mode != "rb" else file

        builtins.open = io.open = opened  # type: ignore[assignment]


class _Writing:
    """A file whose writes can fail."""

    def __init__(self, file: Any, faults: Faults, path: Any) -> None:
        self._file, self._faults, self._path = file, faults, path

    def write(self, content: Any) -> int:
        self._faults.point("write", self._path)
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()


def run_with_faults(request: dict[str, Any], start: Callable[..., int]) -> dict[str, Any]:
    """Returns the run's own status; what the copies met lies in the report, a JSON line each."""
    fault = getattr(errno, request["fault"])
    watch = Faults(Path(request["folder"]), fault, Path(request["report"]))
    child = start(request["arguments"], Path(request["log"]), watch.install)
    _, status = os.waitpid(child, 0)
    return {"status": os.waitstatus_to_exitcode(status)}
