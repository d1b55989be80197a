"""The matrix as Ray tasks: train -> attack, in parts -> score. The driver plans and submits; Ray places the
tasks, repeats those whose worker or node was lost, and takes nodes in as they come.

All nodes reach one results folder; or, where there is a `store` URL, each works in a scratch folder of its
own and they meet there. A task does what a run does: it looks what is there and makes what is missing. So
a task that is repeated goes on, and one that ran twice wrote the same bytes.
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
"""How often Ray repeats a task whose worker died."""
_LOOK = 0.5
_PATIENCE = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Runs cells on a Ray cluster: the one at `address`, else one of this machine alone."""

    device: str | None = None
    """Default: the GPU where the cluster has any."""
    address: str | None = None
    workers: int | None = None
    """On this machine: how many. On a cluster: into how many parts an attack is cut at most."""
    gpus: float | None = None
    """Of each task. Default: 1 where the device is a GPU."""
    memory: int | None = None
    logs: bool = False

    def run(self, plans: Sequence[Plan], runner: Runner) -> dict[str, Record | Failure]:
        """What became of each cell, by its key.

        Raises:
            HarnessError: Ray is not installed, or there is no cluster. StoreError: a worker cannot reach
            the results. Interrupted: a signal came; what is done is kept.
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
        """Return where the tasks of a run find things."""
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
    """Raises OSError where nobody listens: Ray itself tries for minutes."""
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
    """One matrix on its way through a cluster."""

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
        """Tasks whose outcome was not seen yet; a plan where the task scores it."""

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
        """Wait a moment; what was scored since."""
        every = list(self.open)
        done, _ = self.ray.wait(every, num_returns=len(every), timeout=_LOOK)
        for reference in done:
            current = self.open.pop(reference)
            try:
                outcome: Outcome = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                if current is not None:  # else the scoring that needs it says it
                    yield current, self._lost(current, error)
                continue
            log.copy(list(outcome.log))
            self.runner.model_store.damage += outcome.damage
            if outcome.fatal:
                raise StoreError(outcome.fatal)
            if current is not None:
                yield current, self._known(current, outcome)

    def _known(self, current: Plan, outcome: Outcome) -> Record | Failure:
        """The result, which the driver's own folder shall have too."""
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
        """Tasks that run save what they have; those that wait are forgotten."""
        references = list(self.open)
        with contextlib.suppress(Exception):  # there may be no cluster any more
            for reference in references:
                self.ray.cancel(reference, force=False)
            self.ray.wait(references, num_returns=len(references), timeout=_PATIENCE)


def parts(images: int, batch_size: int, most: int) -> list[tuple[int, int]]:
    """Consecutive batches, in at most so many parts of about the same size: (first image, end)."""
    batches = -(-images // batch_size)
    count = min(batches, most)
    bounds = [batch_size * (batches * place // count) for place in range(count + 1)]
    return list(itertools.pairwise(bounds))
