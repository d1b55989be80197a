"""Plan a cell before anything is trained: its plugins, its keys, and the source of its images."""

from __future__ import annotations

import dataclasses

from harness.cells import defaults, plugins
from harness.cells.cells import Cell, Target
from harness.results.resolved import Resolved
from harness.targets.source import TargetSource, resolve
from harness.types import Attack, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A cell with all that follows from it."""

    cell: Cell
    attack: Attack
    source: Target
    """The model on which the images are made: the target itself, or the source of a transfer attack."""
    resolved: Resolved
    key: str
    generation_key: str
    """The key of the attacked images, which cells that score them differently share."""


def plan(cell: Cell, model_store: TargetSource) -> Plan:
    """Keys and plugins of a cell; trains nothing.

    Raises:
        HarnessError: a plugin or parameter that does not exist, or an attack that cannot serve.
    """
    attack = plugins.attack(cell.attack)
    source = source_of(cell.target, plugins.guarded(str(cell.attack), lambda: attack.source))
    test = model_store.dataset(cell.target.dataset, "test")
    defense = model_store.defense(cell.target)
    resolved = Resolved(
        source=model_store.resolved(source),
        randomness=model_store.defense(source).randomness,
        attack=plugins.guarded(str(cell.attack), lambda: resolve(attack, cell.attack)),
        threat=cell.threat,
        test=test.digest,
        limit=min(cell.limit or len(test), len(test)),
        max_queries=cell.max_queries,
        target=model_store.resolved(cell.target),
        target_randomness=defense.randomness,
        draws=cell.draws if defense.is_random else 1,
    )
    return Plan(
        cell=cell,
        attack=attack,
        source=source,
        resolved=resolved,
        key=resolved.key,
        generation_key=resolved.generation_key,
    )


def source_of(target: Target, source: Source | None) -> Target:
    """Return the model on which an attack makes its images: the target itself unless it names a source."""
    if source is None:
        return target
    training = target.training
    if source.training not in (None, training.kind):
        same = {"epochs": training.epochs, "limit": training.limit}
        training = defaults.plan(target.dataset, source.training, same)
    return dataclasses.replace(
        target,
        training=training,
        defense=source.defense or target.defense,
        seed=target.seed + source.seed_offset,
    )
