"""Help with a run from another process: `python -m harness.executors.worker`, with a job on standard input.

A worker does the same work as the run, on the same store, starting at another cell; leases keep the two from
doing the same work twice. It prints nothing, since its results are the records. It ends when the work is
done, on SIGTERM, when its parent is gone, or when a guest has left the process dirty; others then go on.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from harness.cells.cells import Cell

_WATCH = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The job of a worker, as plain data."""

    cells: tuple[Cell, ...]
    results: str
    cache: str
    data_dir: str | None
    device: str
    threads: int
    batch_size: int
    memory: int | None
    store: str | None = None
    """The URL of an object store to fetch from; the run itself publishes."""
    log: str | None = None
    index: int
    """The number of this worker among `workers`, which decides the cell that it starts with."""
    workers: int


def encode(job: Job) -> bytes:
    """Return the job as JSON."""
    return msgspec.json.encode(job)


def work(job: Job) -> int:
    """Run the cells of a job that no other process runs, and return the exit status."""
    import torch

    from harness.evaluation.runner import DIRTY, Dirty, Runner
    from harness.storage import log, remote
    from harness.storage.progress import Silent
    from harness.targets import memory
    from harness.targets.model_store import ModelStore
    from harness.targets.training import Interrupted, Stop
    from harness.types import HarnessError

    stop = Stop()
    _obey(stop)
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    model_store = ModelStore(
        store=remote.opened(Path(job.results), Path(job.cache), job.store),
        device=device,
        reporter=Silent(),
        stop=stop,
        data_dir=None if job.data_dir is None else Path(job.data_dir),
    )
    first = job.index * len(job.cells) // job.workers
    cells = [*job.cells[first:], *job.cells[:first]]
    try:
        if job.memory is not None:
            memory.limit(job.memory, device)
        with log.to(None if job.log is None else Path(job.log)):
            Runner(
                model_store=model_store, batch_size=job.batch_size, alone=True, announces=False
            ).run(cells)
    except Interrupted:
        return 130
    except Dirty:
        return DIRTY
    except HarnessError as error:  # the run itself meets and reports it too
        print(f"worker {job.index}: {error}", file=sys.stderr)
        return error.status
    return 0


def _obey(stop: object) -> None:
    """Stop on a signal, and when the parent is gone."""
    parent = os.getppid()

    def ask(*_: object) -> None:
        stop.asked = True  # type: ignore[attr-defined]

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        ask()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(work(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)))
