"""Do one step of a matrix in a Ray worker, on the store that all nodes reach."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from harness.cells.cells import Cell, Target
from harness.evaluation.plans import plan
from harness.evaluation.runner import Runner
from harness.results.records import Failure, Record
from harness.storage import keys, log, remote
from harness.storage.leases import Busy, Lease, Leases
from harness.storage.progress import Silent
from harness.storage.store import StoreError, make_folder
from harness.targets import memory
from harness.targets.model_store import ModelStore
from harness.targets.training import Interrupted, Stop
from harness.types import HarnessError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The folders and settings of workers, as plain data."""

    results: str
    cache: str
    store: str | None
    """The URL of an object store; where it is set, each machine works in a scratch folder instead."""
    witness: str
    """A file that the driver made in the results folder: a worker that sees it shares the folder."""
    data_dir: str | None
    folder: str
    """The driver's working directory, to which the paths of plugins are relative."""
    device: str
    threads: int
    batch_size: int
    memory: int | None
    logs: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A task: one step of the matrix."""

    kind: Literal["train", "attack", "score"]
    cell: Cell
    key: str
    target: Target | None = None
    """The model that `train` trains."""
    part: tuple[int, int] = (0, 0)
    """The range (first image, end) of the batches that `attack` makes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a task."""

    record: Record | None = None
    failure: Failure | None = None
    """A failure, after which later tasks of the cell are not tried."""
    fatal: str = ""
    """The reason why no cell can go on; empty where there is none."""
    damage: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


def work(place: Place, step: Step, *before: Outcome) -> Outcome:
    """Do one step on a worker, whose process keeps models and datasets for the next step.

    Args:
        before: the outcomes of the steps that this one depends on.

    Raises:
        Interrupted: a signal came; finished work is kept.
    """
    failed = next((each.failure for each in before if each.failure), None)
    if failed is not None and step.kind == "attack":
        return Outcome(failure=failed)
    lines: list[str] = []
    damage: list[str] = []
    result: Record | Failure | None
    try:
        runner = _runner(place)
        runner.model_store.damage = damage
        with (
            log.to(lines if place.logs else None),
            _obeying(runner.model_store.stop),
            runner.store.publishing(),
        ):
            result = _step(runner, step, failed)
    except Interrupted:
        raise
    except HarnessError as error:
        fatal = f"{error} (on {socket.gethostname()})"
        return Outcome(fatal=fatal, damage=tuple(damage), log=tuple(lines))
    return Outcome(
        record=result if isinstance(result, Record) else None,
        failure=result if isinstance(result, Failure) else None,
        damage=tuple(damage),
        log=tuple(lines),
    )


def _step(runner: Runner, step: Step, failed: Failure | None) -> Record | Failure | None:
    model_store = runner.model_store
    runner.store.refresh()
    runner.store.noticed = model_store.damage.append
    current = plan(step.cell, model_store)
    if current.key != step.key:
        raise StoreError(
            f"the same cell has the key {current.key} here and {step.key} on the driver: "
            "their code or data differ. Install the same on all nodes"
        )
    with log.about(current.key):
        if step.kind == "train":
            assert step.target is not None
            target = step.target
            found = runner.guarded(current, lambda: model_store.obtain(target))
            return found if isinstance(found, Failure) else None
        if step.kind == "attack":
            part = _Part(runner.leases, range(*step.part))

            def attack() -> None:
                with contextlib.suppress(Busy):  # the other parts are other tasks
                    runner.attack(current, part)

            return runner.guarded(current, attack)
        if failed is not None:
            return runner.fail(current, failed.reason, failed.kind)
    (result,) = runner.run([step.cell])
    return result


class _Part(Leases):
    """Leases on some batches of an attack; all other batches count as taken by others."""

    def __init__(self, whole: Leases, starts: range) -> None:
        super().__init__(whole.folder)
        self._whole, self._starts = whole, starts

    def take(self, name: str, note: str = "") -> Lease | None:
        mine = int(name.rpartition("-")[2]) in self._starts
        return self._whole.take(name, note) if mine else None


@functools.lru_cache(maxsize=1)
def _runner(place: Place) -> Runner:
    with contextlib.suppress(OSError):
        os.chdir(place.folder)
    results, cache = Path(place.results), Path(place.cache)
    if place.store is not None:
        results = cache = _scratch(place.store)
    elif not Path(place.witness).exists():
        raise StoreError(
            f"{results} is not the driver's folder: share it with all nodes, or name an object store "
            "that they reach with --store",
            page="scaling",
        )
    torch.set_num_threads(place.threads)
    device = torch.device(place.device)
    if place.memory is not None:
        memory.limit(place.memory, device)
    model_store = ModelStore(
        store=remote.opened(results, cache, place.store),
        device=device,
        reporter=Silent(),
        stop=Stop(),
        data_dir=None if place.data_dir is None else Path(place.data_dir),
    )
    return Runner(model_store=model_store, batch_size=place.batch_size, announces=False)


def _scratch(url: str) -> Path:
    """Return this machine's scratch folder for a store; a folder of another user is refused."""
    user = os.getuid()
    folder = Path(tempfile.gettempdir()) / f"harness-{user}-{keys.key(url)}"
    make_folder(folder)
    folder.chmod(0o700)
    if folder.stat().st_uid != user:
        raise StoreError(f"{folder} is somebody else's: set TMPDIR to a folder of your own")
    return folder


@contextlib.contextmanager
def _obeying(stop: Stop) -> Iterator[None]:
    """Stop the work of the block when its task is cancelled, so that it saves its progress."""
    stop.asked = False

    def ask(*_: object) -> None:
        stop.asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
