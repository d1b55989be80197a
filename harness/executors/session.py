"""Run one command: with a store, a runner, handlers of signals, and the processes that the user asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import click
import torch

from harness.evaluation.runner import Executor, InProcess, Runner
from harness.executors import isolated, local, ray
from harness.storage import log, remote
from harness.storage.progress import reporter
from harness.targets import devices, memory
from harness.targets.model_store import ModelStore
from harness.targets.training import Interrupted, Stop
from harness.types import HarnessError

INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """The folders, devices and processes of a command. None of them changes a number."""

    results: Path = Path("results/runs")
    cache: Path | None = None
    """The folder of weights and estimates. Default: `results`."""
    store: str | None = None
    """The URL of an object store on which machines share work."""
    data_dir: Path | None = None
    device: str | None = None
    devices: str | None = None
    """The devices, with one process each: `0,1,2,3`."""
    workers: int | None = None
    executor: Literal["local", "ray"] = "local"
    address: str | None = None
    """The address of a Ray cluster."""
    gpus_per_cell: float | None = None
    batch_size: int = 128
    memory: int | None = None
    """The limit on memory, in bytes."""
    log: Path | None = None
    quiet: bool = False
    isolate: bool = False
    """Run each cell in a process of its own."""
    cell_limit: float | None = None
    """The seconds after which such a process is given up."""

    def __post_init__(self) -> None:
        """Check that the options go together.

        Raises:
            HarnessError: they do not (with the option to leave out or to add).
        """
        on_ray = self.executor == "ray"
        if self.isolate and (on_ray or self.devices is not None or (self.workers or 1) > 1):
            raise HarnessError("--isolate goes with one process at a time: leave out the others")
        if self.cell_limit is not None and not self.isolate:
            raise HarnessError(
                "--cell-limit needs --isolate: a cell of the run's own cannot be ended"
            )
        if on_ray and self.devices is not None:
            raise HarnessError("--devices is of the local executor: with Ray say --gpus-per-cell")
        for option in ("address", "gpus_per_cell"):
            if not on_ray and getattr(self, option) is not None:
                raise HarnessError(f"--{option.replace('_', '-')} needs --executor ray")


def run(options: SessionOptions, work: Callable[[Runner], int], *, prepare: bool = True) -> int:
    """Do some work with a runner, and return the exit status; an interruption is reported.

    Args:
        prepare: whether to create the results folder, and test that it can be written, before any work.
    """
    store = remote.opened(options.results, options.cache, options.store)
    if prepare:
        store.prepare()
    names = _devices(options)
    with _signals() as stop, log.to(options.log), store.publishing():
        model_store = ModelStore(
            store=store,
            device=devices.choose(names[0]),
            reporter=reporter(quiet=options.quiet),
            stop=stop,
            data_dir=options.data_dir,
        )
        store.noticed = model_store.notice
        runner = Runner(
            model_store=model_store,
            batch_size=options.batch_size,
            executor=_executor(options, names),
        )
        if len(names) == 1 and options.executor == "local":
            runner.isolate = options.isolate
            runner.elsewhere = isolated.Processes(
                device=str(model_store.device),
                results=store.results,
                cache=store.cache,
                data_dir=options.data_dir,
                memory=options.memory,
                store=options.store,
                log=options.log,
                limit=options.cell_limit,
            )
        if options.memory is not None:
            memory.limit(options.memory, model_store.device)
        try:
            return work(runner)
        except (Interrupted, KeyboardInterrupt):
            click.echo("stopped: what is done is kept; the same command again goes on", err=True)
            return INTERRUPTED


def _devices(options: SessionOptions) -> list[str | None]:
    """Return the device of each local process; None stands for the default one."""
    if options.executor == "ray":  # its driver plans and draws alone: it may stand where no GPU is
        return [None]
    if options.devices is not None:
        return [*local.devices(options.devices)]
    return [options.device] * (options.workers or 1)


def _executor(options: SessionOptions, names: list[str | None]) -> Executor:
    """Return the executor that divides the work among processes."""
    if options.executor == "ray":
        return ray.Cluster(
            device=options.device,
            address=options.address,
            workers=options.workers,
            gpus=options.gpus_per_cell,
            memory=options.memory,
            logs=options.log is not None,
        )
    if len(names) == 1:
        return InProcess()
    torch.set_num_threads(local.threads(len(names)))
    return local.Processes(
        devices=[str(devices.choose(name)) for name in names],
        memory=options.memory,
        store=options.store,
        log=options.log,
    )


@contextlib.contextmanager
def _signals() -> Iterator[Stop]:
    """Ask the run to stop at SIGINT or SIGTERM; a second signal ends it at once."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        click.echo("stopping at the next safe point; once more stops at once", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
