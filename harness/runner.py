"""Missing cells -> records. Plugins are seen only through the registries."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from harness import keys, store, summary
from harness.defended import Defended
from harness.evaluate import judge
from harness.generation import Generation, Shard
from harness.records import Cell, Failure, Record, Target, Timing
from harness.registry import attacks
from harness.spec import build
from harness.summary import Scored
from harness.train import Interrupted
from harness.types import Attack, Dataset, HarnessError, Source
from harness.workshop import Workshop, resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A cell with all that follows from it."""

    cell: Cell
    attack: Attack
    source: Target
    """Where the images are made: the target itself, or the source of a transfer attack."""
    resolved: dict[str, Any]
    key: str
    generation_key: str
    """The key of the attacked images, which cells that score them differently share."""


def plan(cell: Cell, workshop: Workshop) -> Plan:
    """Keys and plugins of a cell; trains nothing.

    Raises:
        HarnessError: a plugin or parameter that does not exist, or an attack that cannot serve.
    """
    attack: Attack = build(cell.attack, attacks)
    source = _source(cell.target, attack.source)
    test = workshop.dataset(cell.target.dataset, "test")
    target_facts = workshop.resolved(cell.target)
    generation = {
        "source": workshop.resolved(source) if source != cell.target else target_facts,
        "randomness": workshop.defense(source).randomness,
        "attack": resolve(attack, cell.attack),
        "threat": cell.threat,
        "test": test.digest,
        "limit": min(cell.limit or len(test), len(test)),
        "max_queries": cell.max_queries,
    }
    draws = cell.draws if workshop.defense(cell.target).randomised else 1
    resolved = {
        **generation,
        "target": target_facts,
        "target_randomness": workshop.defense(cell.target).randomness,
        "draws": draws,
    }
    return Plan(
        cell=cell,
        attack=attack,
        source=source,
        resolved=msgspec.to_builtins(resolved),
        key=keys.key(resolved),
        generation_key=keys.key(generation),
    )


def _source(target: Target, source: Source | None) -> Target:
    if source is None:
        return target
    return dataclasses.replace(
        target,
        defense=source.defense or target.defense,
        seed=target.seed + source.seed_offset,
    )


@dataclasses.dataclass(kw_only=True)
class Runner:
    """Runs cells on this machine, in this process."""

    workshop: Workshop
    batch_size: int = 128

    @property
    def store(self) -> store.Store:
        return self.workshop.store

    def run(self, cells: Sequence[Cell]) -> list[Record | Failure]:
        """A record or a failure for each cell, in their order. What is stored already is not run again.

        Raises:
            Interrupted: a signal came; what is done is kept.
        """
        plans = [plan(cell, self.workshop) for cell in cells]
        results: dict[str, Record | Failure] = {}
        # Cells of one trained model run together, so that it is trained and loaded once.
        order = sorted(range(len(plans)), key=lambda i: self._group(plans, i))
        for index in order:
            current = plans[index]
            if current.key not in results:
                results[current.key] = self._one(current)
        return [results[each.key] for each in plans]

    @staticmethod
    def _group(plans: Sequence[Plan], index: int) -> int:
        return next(i for i, p in enumerate(plans) if p.cell.target == plans[index].cell.target)

    def _one(self, current: Plan) -> Record | Failure:
        try:
            stored = self.store.read_json("records", current.key, Record)
            if stored is not None:
                return stored
            record = self._measure(current)
        except Interrupted:
            raise
        except HarnessError as error:
            return self._fail(current, str(error), "damaged" if error.status == 1 else "refused")
        except Exception as error:  # a guest's failure is one cell's failure
            reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            return self._fail(current, reason, "failed")
        self.store.write_json("records", current.key, record)
        self.store.remove("failures", current.key)
        return record

    def _fail(self, current: Plan, reason: str, kind: str) -> Failure:
        failure = Failure(key=current.key, cell=current.cell, reason=reason, kind=kind)
        self.store.write_json("failures", current.key, failure)
        return failure

    def _measure(self, current: Plan) -> Record:
        cell, workshop = current.cell, self.workshop
        target = workshop.obtain(cell.target)
        source = target if current.source == cell.target else workshop.obtain(current.source)
        test = workshop.dataset(cell.target.dataset, "test").first(cell.limit)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        title = f"{cell.attack} on {cell.target.label}"
        generation = Generation(
            title=title,
            attack=current.attack,
            threat=cell.threat,
            max_queries=cell.max_queries,
            seed=current.source.seed,
            source=source,
            test=test,
            device=workshop.device,
            batch_size=self.batch_size,
            folder=self.store.progress_folder(current.generation_key),
            reporter=workshop.reporter,
            stop=workshop.stop,
        )
        shards = generation.shards()
        self.batch_size = generation.batch_size  # smaller where memory ran out
        scored = self._score(current, target, test, shards, title)
        record = summary.record(
            key=current.key,
            cell=cell,
            attack=current.attack,
            resolved=current.resolved,
            test=test,
            shards=shards,
            scored=scored,
            device=workshop.device,
        )
        seconds = sum(shard.seconds for shard in shards) + scored.seconds
        timing = Timing(
            key=current.key,
            seconds=seconds,
            images_per_second=len(test) / max(seconds, 1e-9),
            started=started,
        )
        self.store.write_json("timings", current.key, timing)
        return record

    def _score(
        self, current: Plan, target: Defended, test: Dataset, shards: list[Shard], title: str
    ) -> Scored:
        cell = current.cell
        draws = current.resolved["draws"]
        before = time.monotonic()
        parts: dict[str, list[Tensor]] = {}
        with self.workshop.reporter.task(f"scoring {title}", 2 * draws * len(test)) as task:
            for shard in shards:
                batch = shard.batch(test, self.workshop.device)
                judged = judge(
                    target,
                    batch,
                    shard.images.to(batch.images),
                    cell.threat,
                    seed=cell.target.seed,
                    draws=draws,
                    bounded=current.attack.bounded,
                )
                for field in dataclasses.fields(judged):
                    parts.setdefault(field.name, []).append(getattr(judged, field.name).cpu())
                task.advance(2 * draws * len(batch))
                self.workshop.stop.check()
        joined = {
            name: torch.cat(values, dim=-1) if values else torch.zeros(0)
            for name, values in parts.items()
        }
        return Scored(**joined, seconds=time.monotonic() - before)
