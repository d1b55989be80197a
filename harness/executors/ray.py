"""Run a matrix as Ray tasks: train, then attack in parts, then score.

The driver plans and submits. Ray places the tasks, repeats those whose worker or node was lost, and uses new
nodes as they join. All nodes share one results folder or, where there is a `store` URL, each works in a
scratch folder of its own and shares through the store. A task reads the finished work and makes the missing
parts, as a run does. So a task that is repeated goes on, and one that ran twice wrote the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.evaluation.plans import Plan
from harness.evaluation.runner import Runner
from harness.executors import local
from harness.executors.ray_worker import Outcome, Place, Step, work
from harness.results.records import Failure, Record
from harness.storage import log
from harness.storage.store import TEMPORARY, StoreError, remove, write_atomic
from harness.targets import own_models
from harness.targets.training import Interrupted
from harness.types import HarnessError

RETRIES = 3
"""The number of times that Ray repeats a task whose worker died."""
_LOOK = 0.5
_PATIENCE = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """An executor on a Ray cluster: the one at `address`, or else one of this machine alone."""

    device: str | None = None
    """The device of the tasks. Default: a GPU where the cluster has one."""
    address: str | None = None
    workers: int | None = None
    """On this machine, the number of workers; on a cluster, the most parts that an attack is cut into."""
    gpus: float | None = None
    """The GPUs of each task. Default: 1 where the device is a GPU."""
    memory: int | None = None
    logs: bool = False

    def run(self, plans: Sequence[Plan], runner: Runner) -> dict[str, Record | Failure]:
        """Return the record or failure of each cell, by its key.

        Raises:
            HarnessError: Ray is not installed, or there is no cluster.
            StoreError: a worker cannot reach the results.
            Interrupted: a signal came; finished work is kept.
        """
        ray = _ray()
        place = self._place(runner)
        witness = Path(place.witness)
        write_atomic(witness, b"")
        try:
            with self._connected(ray, place.threads):
                return _Drive(self, place, ray, runner).run(plans)
        finally:
            remove(witness)

    def _place(self, runner: Runner) -> Place:
        """Return the folders and settings of a run's tasks."""
        store, data_dir = runner.store, runner.model_store.data_dir
        witness = store.results / f".driver.{secrets.token_hex(4)}{TEMPORARY}"
        return Place(
            results=str(store.results.resolve()),
            cache=str(store.cache.resolve()),
            store=store.url,
            witness=str(witness.resolve()),
            data_dir=None if data_dir is None else str(data_dir.resolve()),
            folder=os.getcwd(),
            device=self.device or "",
            threads=local.threads(os.cpu_count() or 1),  # one, unless the user says otherwise
            batch_size=runner.batch_size,
            memory=self.memory,
            logs=self.logs,
        )

    @contextlib.contextmanager
    def _connected(self, ray: Any, threads: int) -> Iterator[None]:
        address = self.address or os.environ.get("RAY_ADDRESS")
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address:
                _knock(address)
                ray.init(address=address, **quiet)
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                cores = None if self.workers is None else self.workers * threads
                ray.init(num_cpus=cores, include_dashboard=False, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            raise HarnessError(
                f"no Ray cluster at {address or 'this machine'}: {first}. `ray start --head` starts one; "
                "without --address one is started on this machine",
                page="scaling",
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError at once where no server listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise HarnessError(
            "--executor ray: Ray is not installed. pip install 'robustness-harness[ray]' (in a checkout: "
            "pip install -e '.[ray]'), on every node"
        ) from error
    return ray


class _Drive:
    """The run of one matrix on a cluster."""

    def __init__(self, cluster: Cluster, place: Place, ray: Any, runner: Runner) -> None:
        self.ray, self.runner = ray, runner
        room = ray.cluster_resources()
        device = place.device or ("cuda" if room.get("GPU") else "cpu")
        gpus = cluster.gpus
        if gpus is None:
            gpus = 1.0 if device.startswith("cuda") else 0.0
        slots = int(room.get("GPU", 0) / gpus if gpus else room.get("CPU", 0) / place.threads)
        if not slots:
            need = f"{gpus:g} GPUs" if gpus else f"{place.threads} CPU cores"
            runner.model_store.reporter.say(
                f"no node has {need} for a task: waiting for one that does"
            )
        self.parts = cluster.workers or max(1, slots)
        self.place = ray.put(dataclasses.replace(place, device=device))
        self.task = ray.remote(
            num_cpus=place.threads,
            num_gpus=gpus,
            max_retries=RETRIES,
            retry_exceptions=[Interrupted],
        )(work)
        self.open: dict[Any, Plan | None] = {}
        """The tasks whose outcome was not seen yet, each with the plan that it scores, if any."""

    def run(self, plans: Sequence[Plan]) -> dict[str, Record | Failure]:
        results: dict[str, Record | Failure] = {}
        ready = []
        for each in plans:  # refused now rather than on a worker
            with log.about(each.key):
                refused = self.runner.guarded(each, functools.partial(self.runner.check, each))
            if refused is None:
                ready.append(each)
            else:
                results[each.key] = refused
        try:
            self._submit(ready)
            with self.runner.model_store.reporter.task("cells on Ray", max(1, len(ready))) as task:
                while self.open:
                    for current, result in self._finished():
                        results[current.key] = result
                        task.advance(1)
                    self.runner.model_store.stop.check()
        except BaseException:
            self._cancel()
            raise
        return results

    def _submit(self, plans: Sequence[Plan]) -> None:
        trained: dict[str, Any] = {}
        attacked: dict[str, list[Any]] = {}
        model_store = self.runner.model_store
        for each in plans:
            for target in (each.source, each.cell.target):
                name = model_store.key(target)
                if name not in trained and not own_models.is_given(target.model):
                    trained[name] = self._send(None, each, "train", target=target)
        for each in plans:
            name = each.generation_key
            if name not in attacked:
                needed = [trained[key] for key in [model_store.key(each.source)] if key in trained]
                attacked[name] = [
                    self._send(None, each, "attack", needed, part=part)
                    for part in parts(each.resolved.limit, self.runner.batch_size, self.parts)
                ]
        for each in plans:
            key = model_store.key(each.cell.target)
            needed = [*attacked[each.generation_key], *([trained[key]] if key in trained else [])]
            self._send(each, each, "score", needed)

    def _send(
        self, scored: Plan | None, current: Plan, kind: Any, before: Sequence[Any] = (), **what: Any
    ) -> Any:
        step = Step(kind=kind, cell=current.cell, key=current.key, **what)
        reference = self.task.remote(self.place, step, *before)
        self.open[reference] = scored
        return reference

    def _finished(self) -> Iterator[tuple[Plan, Record | Failure]]:
        """Wait a moment, then yield the cells that were scored since."""
        every = list(self.open)
        done, _ = self.ray.wait(every, num_returns=len(every), timeout=_LOOK)
        for reference in done:
            current = self.open.pop(reference)
            try:
                outcome: Outcome = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                if current is not None:  # else the scoring that needs it reports it
                    yield current, self._lost(current, error)
                continue
            log.copy(list(outcome.log))
            self.runner.model_store.damage += outcome.damage
            if outcome.fatal:
                raise StoreError(outcome.fatal)
            if current is not None:
                yield current, self._known(current, outcome)

    def _known(self, current: Plan, outcome: Outcome) -> Record | Failure:
        """Return the result of a cell, after fetching its record to the driver's own folder."""
        store = self.runner.store
        if outcome.failure is not None:
            store.write_json("failures", current.key, outcome.failure)
            return outcome.failure
        store.refresh()
        store.remove("failures", current.key)
        record = store.read_json("records", current.key, Record) or outcome.record
        assert record is not None
        return record

    def _lost(self, current: Plan, error: Exception) -> Failure:
        cause = getattr(error, "cause", None) or error
        reason = f"Ray gave it up after {RETRIES} retries: {type(cause).__name__}"
        with log.about(current.key):
            return self.runner.fail(current, reason, "failed")

    def _cancel(self) -> None:
        """Cancel all tasks: those that run save their work, those that wait are dropped."""
        references = list(self.open)
        with contextlib.suppress(Exception):  # there may be no cluster any more
            for reference in references:
                self.ray.cancel(reference, force=False)
            self.ray.wait(references, num_returns=len(references), timeout=_PATIENCE)


def parts(images: int, batch_size: int, most: int) -> list[tuple[int, int]]:
    """Return at most `most` parts of about the same size, each of whole batches, as (first image, end)."""
    batches = -(-images // batch_size)
    count = min(batches, most)
    bounds = [batch_size * (batches * place // count) for place in range(count + 1)]
    return list(itertools.pairwise(bounds))
