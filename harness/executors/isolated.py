"""Run each cell in a process of its own, so that a guest's changes to the process end with it."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from harness.cells.cells import Cell
from harness.executors.worker import Job, encode
from harness.targets.training import Stop
from harness.types import HarnessError

_LOOK = 0.1
_PATIENCE = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """An executor of single cells in fresh processes on this machine; results come through the store."""

    device: str
    results: Path
    cache: Path
    data_dir: Path | None
    memory: int | None = None
    store: str | None = None
    log: Path | None = None
    limit: float | None = None
    """The seconds after which a cell is given up, since a guest may hang."""

    def run(self, cell: Cell, *, batch_size: int, stop: Stop) -> int:
        """Run a cell until its process ends; return the exit status, negative for a signal.

        Raises:
            Interrupted: a signal came; finished work is kept.
            HarnessError: no process can be started.
        """
        job = Job(
            cells=(cell,),
            results=str(self.results.absolute()),
            cache=str(self.cache.absolute()),
            data_dir=None if self.data_dir is None else str(self.data_dir.absolute()),
            device=self.device,
            threads=torch.get_num_threads(),
            batch_size=batch_size,
            memory=self.memory,
            store=self.store,
            log=None if self.log is None else str(self.log.absolute()),
            index=0,
            workers=1,
        )
        nursery = _nursery()
        assert nursery.stdin is not None
        nursery.stdin.write(encode(job) + b"\n")
        nursery.stdin.flush()
        started = time.monotonic()
        try:
            while (status := _answer(nursery)) is None:
                stop.check()
                if self.limit is not None and time.monotonic() - started > self.limit:
                    _end(nursery, patience=1.0)
                    return -signal.SIGKILL
        except BaseException:
            _end(nursery)
            raise
        return status


_running: list[subprocess.Popen[bytes]] = []
"""The nursery of this process, which is started when it is first needed and shared by all runs."""


def _nursery() -> subprocess.Popen[bytes]:
    """Return the nursery, started if need be; raise HarnessError where it does not start."""
    if _running and _running[0].poll() is None:
        return _running[0]
    _running.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.executors.nursery"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise HarnessError("no process of its own can be started for a cell: see the lines above")
    _running.append(process)
    atexit.register(_end, process)
    return process


def _answer(nursery: subprocess.Popen[bytes]) -> int | None:
    """Return the exit status of the running job, or None if it has not ended after a moment."""
    assert nursery.stdout is not None
    ready, _, _ = select.select([nursery.stdout], [], [], _LOOK)
    if not ready:
        return None
    line = nursery.stdout.readline()
    if not line:  # it is gone, and its child with it
        return nursery.wait()
    return int(line)


def _end(nursery: subprocess.Popen[bytes], patience: float = _PATIENCE) -> None:
    """End the running job, which first saves its work, and then the nursery."""
    with contextlib.suppress(OSError):
        nursery.terminate()
        assert nursery.stdin is not None
        nursery.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        nursery.wait(patience)
    if nursery.poll() is None:
        nursery.kill()
        nursery.wait()
