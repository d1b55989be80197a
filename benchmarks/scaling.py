"""Gain of a second worker, and cost of the scheduler.

    python -m benchmarks.scaling                    # on a machine where two cores are free: minutes
    python -m benchmarks.scaling --only scheduler

Two workers against one: the same command on digits, weights in a shared cache, fresh results each time, one
thread a process, the two in turn, wall time of the whole command with the starting of its processes.
The scheduler: planning 10,000 cells, seconds and resident memory; and what a cell of one image costs (leases,
files and their fsyncs, record) beside the seconds of attack and scoring that its timing states.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLOOR = 1.7
"""The least ratio of one worker's time to that of two."""
MOST = 0.050
"""The most seconds that a cell may cost beside its work."""
PLANNED = 10_000


def command(arguments: argparse.Namespace, folder: Path, results: str, workers: int) -> list[str]:
    """Return the words of `harness run` on a fresh results folder and the shared cache."""
    return [
        *(sys.executable, "-m", "harness", "run", "--dataset", "digits", "--quiet"),
        *("--defense", "vanilla", "--defense", "menet-usvt", "--attack", "bpda"),
        *("--epochs", "2", "--draws", "5", "--device", "cpu"),
        *("--steps", str(arguments.steps), "--limit", str(arguments.limit)),
        *("--batch-size", str(arguments.batch_size), "--workers", str(workers)),
        *("--cache", str(folder / "cache"), "--results", str(folder / results)),
    ]


def seconds(words: list[str]) -> float:
    """Return the wall time of a command, one thread a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = time.monotonic()
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - before


def speedup(arguments: argparse.Namespace, folder: Path) -> bool:
    """Time two workers against one; return True where the median ratio reaches `FLOOR`."""
    seconds(command(arguments, folder, "first", 1))  # trains; warms the disk's cache
    records = contents(folder / "first")
    ratios = []
    print("| round | one worker | two workers | ratio |\n|---|---|---|---|")
    for turn in range(arguments.rounds):
        took = {}
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            shutil.rmtree(folder / "fresh", ignore_errors=True)
            took[workers] = seconds(command(arguments, folder, "fresh", workers))
            if contents(folder / "fresh") != records:
                raise SystemExit(f"{workers} workers gave other records than one")
        ratios.append(took[1] / took[2])
        print(f"| {turn + 1} | {took[1]:.1f} s | {took[2]:.1f} s | {ratios[-1]:.2f} |", flush=True)
    median = statistics.median(ratios)
    print(
        f"median {median:.2f}, from {min(ratios):.2f} to {max(ratios):.2f}; floor {FLOOR}; "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    return median >= FLOOR


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "records").iterdir()}


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def scheduler(arguments: argparse.Namespace, folder: Path) -> bool:
    """Time planning and the cost around a cell; return True where both are as low as required."""
    import torch

    from harness.cells import defaults
    from harness.cells.cells import Cell, Target
    from harness.evaluation.plans import plan
    from harness.evaluation.runner import Runner
    from harness.results.records import Record, Timing
    from harness.storage.progress import Silent
    from harness.storage.store import Store
    from harness.targets.model_store import ModelStore
    from harness.targets.training import Stop
    from harness.types import Spec, ThreatModel

    torch.set_num_threads(1)
    target = Target(
        dataset="digits",
        model=Spec(defaults.of("digits")["model"]),
        defense=Spec("vanilla"),
        training=defaults.plan("digits", "pure", {"epochs": 1, "limit": 60}),
    )
    store = Store(folder / "scheduler")
    store.prepare()
    model_store = ModelStore(
        store=store, device=torch.device("cpu"), reporter=Silent(), stop=Stop()
    )
    runner = Runner(model_store=model_store)

    def cells(count: int) -> list[Cell]:
        first = Cell(
            target=target, attack=Spec("fgsm"), threat=ThreatModel(epsilon=0.1), draws=1, limit=1
        )
        return [
            dataclasses.replace(first, threat=ThreatModel(epsilon=0.1 + index / 1e6))
            for index in range(count)
        ]

    runner.run(cells(1))  # loads the data, trains
    few = cells(1 + arguments.cells)[1:]
    before, used = time.monotonic(), time.process_time()
    results = runner.run(few)
    spent, used = time.monotonic() - before, time.process_time() - used
    assert all(isinstance(result, Record) for result in results)
    timings = [store.read_json("timings", result.key, Timing) for result in results]
    work = sum(timing.seconds for timing in timings if timing is not None)
    cost = (spent - work) / len(few)
    print(
        f"a cell beside its attack and scoring: {cost * 1e3:.1f} ms (mean of {len(few)}; at most 50 ms); "
        f"with them {spent / len(few) * 1e3:.1f} ms, of which {used / len(few) * 1e3:.1f} ms on the CPU"
    )

    many = cells(PLANNED)
    marks = [resident()]
    before = time.monotonic()
    plans = []
    for start in range(0, PLANNED, PLANNED // 2):
        plans += [plan(cell, model_store) for cell in many[start : start + PLANNED // 2]]
        marks.append(resident())
    spent = time.monotonic() - before
    grown = [(after - first) / 2**20 for first, after in itertools.pairwise(marks)]
    print(
        f"planning {PLANNED:,} cells: {spent:.1f} s, {spent / PLANNED * 1e3:.2f} ms a cell; "
        f"{sum(grown):.0f} MB ({grown[0]:.0f} for the first half, {grown[1]:.0f} for the second)"
    )
    return cost < MOST and spent / PLANNED < MOST


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=["speedup", "scheduler"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--cells", type=int, default=100)
    arguments = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "scheduler":
            good &= speedup(arguments, Path(folder))
        if arguments.only != "speedup":
            good &= scheduler(arguments, Path(folder))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
