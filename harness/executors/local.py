"""Run cells in worker processes on this machine: several on the CPU, or one for each GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.cells.cells import Cell
from harness.evaluation.plans import Plan
from harness.evaluation.runner import Runner
from harness.executors.worker import Job, encode
from harness.results.records import Failure, Record
from harness.types import HarnessError

_PATIENCE = 60.0


def devices(text: str) -> list[str]:
    """Return the device names in a text such as `0,1,2,3` or `cuda:0,cuda:2`.

    Raises:
        HarnessError: there is no name, or one occurs twice.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    names = [f"cuda:{name}" if name.isdecimal() else name for name in names]
    if not names or len(set(names)) < len(names):
        raise HarnessError(f"--devices {text}: name each device once, such as 0,1,2,3")
    return names


def threads(workers: int) -> int:
    """Return the number of threads for each of `workers` processes: the user's setting, or an equal share."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (available or 1) // workers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """An executor in this process and in one worker process for each further device."""

    devices: Sequence[str]
    """The devices, of which the first is this process's own."""
    memory: int | None = None
    store: str | None = None
    log: Path | None = None

    def run(self, plans: Sequence[Plan], runner: Runner) -> dict[str, Record | Failure]:
        """Return the record or failure of each cell, by its key."""
        with self._helping([each.cell for each in plans], runner):
            return runner.work(plans)

    @contextlib.contextmanager
    def _helping(self, cells: Sequence[Cell], runner: Runner) -> Iterator[None]:
        """Run workers during the block, and stop them where it ends with an error.

        A worker that dies is not replaced: its leases die with it, and the others do its work.
        """
        workers = len(self.devices)
        data_dir = runner.model_store.data_dir
        started: list[subprocess.Popen[bytes]] = []
        done = False
        try:
            for index in range(1, workers):
                job = Job(
                    cells=tuple(cells),
                    results=str(runner.store.results),
                    cache=str(runner.store.cache),
                    data_dir=None if data_dir is None else str(data_dir),
                    device=self.devices[index],
                    threads=threads(workers),
                    batch_size=runner.batch_size,
                    memory=self.memory,
                    store=self.store,
                    log=None if self.log is None else str(self.log),
                    index=index,
                    workers=workers,
                )
                started.append(_start(job))
            yield
            done = True
        finally:
            for process in started:
                if not done:
                    process.terminate()
            for process in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _start(job: Job) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.executors.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(encode(job))
    return process
