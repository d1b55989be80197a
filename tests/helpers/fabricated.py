"""Records that look like those of a run, made without one: for tests of tables, figures and the report."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from harness.cells.cells import Cell, Target
from harness.paper import comparison, expansion
from harness.paper.figures.data import (
    FOLDER,
    Cloud,
    Example,
    FeatureData,
    Gallery,
    Picture,
    Shelf,
    picture,
)
from harness.paper.protocol import Profile, Protocol
from harness.paper.render import remember
from harness.results.records import Accuracy, Record, Timing, TracePoint, pack
from harness.results.resolved import DatasetVersion, Plugin, Resolved, ResolvedTarget
from harness.storage import keys
from harness.storage.store import Store
from harness.types import Spec, ThreatModel

COUNT = 40


def resolved(
    target: Target, threat: ThreatModel, *, attack: str, steps: int, draws: int, limit: int = COUNT
) -> Resolved:
    """Return what is written down of a run with an attack of so many steps; plugins have no code."""

    def plugin(spec: Spec) -> Plugin:
        return Plugin(name=spec.name, parameters=dict(spec.parameters), code="none")

    weights = ResolvedTarget(
        engine=1,
        dataset=DatasetVersion(name=target.dataset, digest="none"),
        model=plugin(target.model),
        defense=plugin(target.defense),
        training={"target": keys.key(target)},
        seed=target.seed,
    )
    return Resolved(
        source=weights,
        randomness="fresh",
        attack=Plugin(name=attack, parameters={"steps": steps}, code="none"),
        threat=threat,
        test="none",
        limit=limit,
        max_queries=None,
        target=weights,
        target_randomness="fresh",
        draws=draws,
    )


def record(cell: Cell, *, robust: float = 0.5, flags: dict[str, str] | None = None) -> Record:
    """A record of a cell; its outcomes depend on the cell alone."""
    name = keys.key(cell)
    rng = random.Random(name)
    clean_attack = cell.attack.name == "clean"
    share = 0.9 if clean_attack else robust
    rows = [[rng.random() < share for _ in range(COUNT)] for _ in range(cell.draws)]
    steps = comparison.steps_of(cell.attack) or 1
    right = sum(map(sum, rows)) / (COUNT * cell.draws)
    accuracy = Accuracy(
        one_draw=sum(rows[0]) / COUNT, mean=right, vote=right, all_draws=0.1, count=COUNT
    )
    clean = Accuracy(one_draw=0.9, mean=0.9, vote=0.95, all_draws=0.8, count=COUNT)
    return Record(
        key=hashlib.sha256(name.encode()).hexdigest()[:20],
        cell=cell,
        resolved=resolved(
            cell.target, cell.threat, attack=cell.attack.name, steps=steps, draws=cell.draws
        ),
        classes=10,
        count=COUNT,
        ids="fabricated",
        clean=clean,
        robust=accuracy,
        returned=accuracy,
        clean_outcomes=tuple(pack([True] * COUNT) for _ in rows),
        robust_outcomes=tuple(pack(row) for row in rows),
        fooled_on_the_way=0.75,
        fooled_outcomes=pack([True] * 30 + [False] * 10),
        trace=tuple(TracePoint(step=s, accuracy=0.9 - 0.01 * s) for s in (7, 20) if s < steps),
        distances={"largest_linf": 0.0 if clean_attack else cell.threat.epsilon},
        passes={"forwards": 10.0, "backwards": 10.0, "dead_gradients": 0.0},
        flags=flags or {},
        access="none" if clean_attack else "gradients",
        randomised=cell.draws > 1,
        made={"commit": "0123456789ab", "device": "cpu", "threads": "1"},
    )


def fill(
    folder: Path, tables: list[Protocol], profile: Profile, *, leave_out: int | None = None
) -> list[Record]:
    """Records of every cell of some tables in a results folder; every `leave_out`-th is missing."""
    store = Store(folder)
    store.prepare()
    remember(tables, profile, store)
    places = [place for table in tables for place in expansion.expand(table, profile)]
    made = []
    for number, cell in enumerate(expansion.unique(places)):
        if leave_out and number % leave_out == 0:
            continue
        flags = {"not-converged": "52.0% after 10 steps, 41.0% after 20"} if number % 3 else {}
        found = record(cell, robust=0.2 + 0.6 * random.Random(number).random(), flags=flags)
        store.write_json("records", found.key, found)
        timing = Timing(key=found.key, seconds=3.0, images_per_second=13.0, started="2026-01-01")
        store.write_json("timings", found.key, timing)
        made.append(found)
    return made


def grey(side: int = 8, channels: int = 1) -> Picture:
    count = channels * side * side
    return picture((channels, side, side), bytes(i * 255 // count for i in range(count)))


def gallery(folder: Path, records: list[Record]) -> None:
    """A gallery of two records."""
    examples = tuple(
        Example(
            sample=number,
            label="seven",
            original=grey(),
            adversarial=grey(),
            perturbation=grey(),
            rebuilt=grey(),
            before="seven",
            after="two",
            linf=0.3,
            l2=4.0,
        )
        for number in range(3)
    )
    shelves = tuple(Shelf(key=each.key, examples=examples) for each in records[:2])
    Store(folder).write_json(FOLDER, "gallery", Gallery(basis="made up", shelves=shelves))


def features() -> FeatureData:
    rng = random.Random(0)
    return FeatureData(
        basis="made up",
        dataset="digits",
        names=tuple("0123456789"),
        clouds=tuple(
            Cloud(
                label=label,
                attacked=attacked,
                accuracy=0.5,
                x=tuple(rng.random() for _ in range(30)),
                y=tuple(rng.random() for _ in range(30)),
                classes=tuple(i % 10 for i in range(30)),
                within=tuple(i / 200 for i in range(201)),
                among=tuple(i / 100 for i in range(201)),
            )
            for label in ("Vanilla", "ME-Net")
            for attacked in (False, True)
        ),
    )
