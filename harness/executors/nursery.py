"""Fork one child for each job from a clean process: `python -m harness.executors.nursery`.

The process has imported the slow modules and never runs a guest's code, so a child is as good as a new
interpreter and starts in milliseconds. Jobs come on standard input, one line of JSON each; the exit status of
each child goes to standard output, one line each. The process ends with its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from harness.executors.worker import Job, work

_LOOK = 0.005
_seen: set[str] = set()


def serve() -> None:
    """Fork for each job until standard input ends."""
    import torch

    import harness.evaluation.runner  # noqa: F401
    from harness import registry
    from harness.cells import process

    for kind in (registry.attacks, registry.defenses, registry.models):
        kind.names()
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    process.warm()
    parent, child = os.getppid(), 0

    def forward(*_: object) -> None:
        if child:
            os.kill(child, signal.SIGTERM)
        else:
            sys.exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    signal.signal(signal.SIGTERM, forward)
    print("ready", flush=True)
    while line := sys.stdin.buffer.readline():
        job = msgspec.json.decode(line, type=Job)
        _look(job)
        child = os.fork()
        if not child:
            _grow(job)
        status = None
        while status is None:
            found, status_word = os.waitpid(child, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(status_word)
            elif os.getppid() != parent:
                os.kill(child, signal.SIGTERM)
                os.waitpid(child, 0)
                return
            else:
                time.sleep(_LOOK)
        child = 0
        print(status, flush=True)


def _look(job: Job) -> None:
    """Load the job's datasets once, so that their readers' imports are done; not those of guests."""
    from harness.datasets import data
    from harness.registry import datasets

    own = {entry.name for entry in datasets if entry.origin.startswith("harness.")}
    for name in {cell.target.dataset for cell in job.cells} & own - _seen:
        _seen.add(name)
        with contextlib.suppress(Exception):  # the child meets and reports it too
            data.load(name, "test", data_dir=None if job.data_dir is None else Path(job.data_dir))


def _grow(job: Job) -> None:
    """Do a job in the forked child, which never returns."""
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)  # guests must touch neither the jobs nor the answers
        os.dup2(null, 1)
        status = work(job)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
