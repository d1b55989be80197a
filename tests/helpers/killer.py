"""Runs `harness` in forked children and kills them; started by the tests as a process of its own.

A child of this process starts in milliseconds, because all that is slow to import is imported here,
once. Reads one JSON request a line, answers one JSON line each.
"""

from __future__ import annotations

import functools
import importlib
import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults

from harness import registry
from harness.cli import main as command_line
from harness.datasets import data
from harness.executors import session
from harness.results import provenance
from harness.storage import keys, store
from harness.targets import estimates, training

PHASES = ("starting", "training", "estimates", "attack", "scoring", "writing")
place = mmap.mmap(-1, 1)
"""Shared with the children: the number of the phase that the child is in."""


class Watcher:
    """A reporter that notes the phase."""

    def task(self, title: str, total: float) -> Watcher:
        first = title.split()[0]
        place[0] = PHASES.index(first if first in PHASES else "attack")
        return self

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def advance(self, amount: float, note: str = "") -> None:
        return

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *error: Any) -> None:
        return


def prepare() -> None:
    """Import everything, save at every step, and note the phase."""
    for kind in (registry.attacks, registry.defenses, registry.models):
        for entry in kind:
            keys.code_version(entry.make)  # kept, so that an edit under way changes no key
    provenance.commit()
    provenance.versions()
    data.load("digits", "test")
    for slow in ("tabulate", "torch._dynamo"):  # an optimiser imports the latter
        importlib.import_module(slow)
    training.SAVE_EVERY = estimates.SAVE_EVERY = 0.0
    training._SAVE_COST = 0
    session.reporter = lambda **_: Watcher()  # type: ignore[assignment]
    whole = store.write_atomic

    def noted(path: Path, content: bytes) -> None:
        before, place[0] = place[0], PHASES.index("writing")
        whole(path, content)
        place[0] = before
        print(f"wrote {path.parent.name}/{path.name}", flush=True)  # into the log

    store.write_atomic = noted  # type: ignore[assignment]


def start(arguments: list[str], log: Path, first: Callable[[], None] | None = None) -> int:
    """The process id of a child that runs the command, and calls `first` before."""
    place[0] = 0
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if first is not None:
            first()
        try:
            command_line(arguments, standalone_mode=False)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int, wait: float | None) -> int | None:
    """The exit status, or None where it still runs after `wait` seconds."""
    limit = None if wait is None else time.monotonic() + wait
    while True:
        found, status = os.waitpid(child, os.WNOHANG if limit is not None else 0)
        if found:
            return os.waitstatus_to_exitcode(status)
        if limit is not None and time.monotonic() > limit:
            return None
        time.sleep(0.001)


def _pause(child: int, draws: random.Random, longest: float) -> int | None:
    """Wait for a random moment, mostly one at which work is under way."""
    if draws.random() < 0.9:
        while PHASES[place[0]] in ("starting", "writing"):  # a probe is written at the start
            if (status := ended(child, 0.0)) is not None:
                return status
    return ended(child, draws.uniform(0, longest))


def kill_often(request: dict[str, Any]) -> dict[str, Any]:
    """Run the command on fresh folders, killing it again and again, until so many kills are done and
    the last folder is finished. Returns the folders, and the kills by phase."""
    draws = random.Random(request["seed"])
    kills = dict.fromkeys(PHASES, 0)
    folders = []
    base, log = Path(request["folder"]), Path(request["log"])
    while sum(kills.values()) < request["kills"]:
        folder = base / f"store-{len(folders)}"
        folders.append(str(folder))
        while True:
            enough = sum(kills.values()) >= request["kills"]
            child = start([*request["arguments"], "--results", str(folder)], log)
            status = _pause(child, draws, request["longest"]) if not enough else ended(child, None)
            if status is None:
                phase = PHASES[place[0]]
                os.kill(child, signal.SIGKILL)
                status = ended(child, None)
                if status == -signal.SIGKILL:
                    kills[phase] += 1
                    continue
            if status != 0:
                return {"error": f"exit status {status}", "kills": kills, "folders": folders}
            break
    return {"kills": kills, "folders": folders}


def run_once(request: dict[str, Any]) -> dict[str, Any]:
    """Run the command; where the request says so, send `signal` once the child is in phase `when`."""
    child = start(request["arguments"], Path(request["log"]))
    status = None
    while status is None:
        status = ended(child, 0.0 if "when" in request else None)
        if status is None and PHASES[place[0]] == request["when"]:
            os.kill(child, request["signal"])
            status = ended(child, None)
    return {"status": status}


def run_together(request: dict[str, Any]) -> dict[str, Any]:
    """Run several commands at once."""
    log = Path(request["log"])
    children = [start(arguments, log) for arguments in request["together"]]
    return {"statuses": [ended(child, None) for child in children]}


def main() -> None:
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        act: Callable[[dict[str, Any]], dict[str, Any]] = run_once
        if "kills" in request:
            act = kill_often
        elif "together" in request:
            act = run_together
        elif "fault" in request:
            act = functools.partial(faults.run_with_faults, start=start)
        print(json.dumps(act(request)), flush=True)


if __name__ == "__main__":
    main()
