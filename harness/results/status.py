"""`harness status`: show how far the runs on a results folder are. Needs no torch."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from harness.cells.matrix import FOLDER, Matrix, Planned
from harness.results.records import Failure, Timing
from harness.storage.leases import Holding, Leases
from harness.storage.progress import duration
from harness.storage.store import DamagedFile, Store, files
from harness.types import DamageError, HarnessError


@dataclasses.dataclass(frozen=True)
class State:
    """The state of one cell: `done`, `running`, `failed` or `left`, with a note."""

    cell: Planned
    kind: str
    note: str = ""
    seconds: float | None = None


def holdings(store: Store) -> list[Holding]:
    """Return the leases in the results folder and in the cache, if that is another folder."""
    return [
        holding
        for folder in sorted({store.results, store.cache})
        for holding in Leases(folder / "leases").holdings()
    ]


def state(cell: Planned, store: Store, alive: Sequence[Holding]) -> State:
    """Return the state of one cell; a damaged file of it is named in the note."""
    try:
        return _stored(cell, store) or _unfinished(cell, store, alive)
    except DamagedFile as error:
        return State(
            cell, "left", f"{error.path.parent.name}/{error.path.name} is damaged: {error.reason}"
        )


def _stored(cell: Planned, store: Store) -> State | None:
    """Return the state of a cell that has its record; None where there is none.

    Raises:
        DamagedFile: the timing beside it is damaged.
    """
    if not store.has("records", cell.key):
        return None
    timing = store.read_json("timings", cell.key, Timing)
    seconds = timing.seconds if timing else None
    return State(cell, "done", "" if seconds is None else f"in {duration(seconds)}", seconds)


def _unfinished(cell: Planned, store: Store, alive: Sequence[Holding]) -> State:
    """Return the state of a cell that has no record.

    Raises:
        DamagedFile: its failure is damaged.
    """
    done = images_done(store.progress_folder(cell.generation))
    part = f"{done} of {cell.images} images" if done else ""
    own = (*(f"train-{key}" for key in cell.trainings), f"cell-{cell.key}")
    for holding in alive:
        if holding.name in own or holding.name.startswith(f"attack-{cell.generation}-"):
            told = f"{holding.owner.note}: {holding.owner}, heard {duration(holding.age)} ago"
            return State(cell, "running", ", ".join(filter(None, [told, part])))
    failure = store.read_json("failures", cell.key, Failure)
    if failure is not None:
        return State(cell, "failed", f"{failure.kind}: {failure.reason}")
    return State(cell, "left", part)


def images_done(folder: Path) -> int:
    """Return the number of stored images of an attack, read from the names of the files."""
    counts = (path.stem.partition("-")[2] for path in files(folder, ".safetensors"))
    return sum(int(count) for count in counts if count.isdecimal())


def lines(store: Store) -> list[str]:
    """Return the lines that `harness status` prints.

    There is a line for each damaged file, then a line for each run, followed by a line for each cell of the
    newest run and of those that are not complete.

    Raises:
        HarnessError: no run was ever started on this folder.
        DamageError: every file that describes a run is damaged.
    """
    matrices, damage = store.read_all(FOLDER, Matrix)
    known = sorted(matrices.values(), key=lambda each: each.started)
    if not known and damage:
        raise DamageError("; ".join(damage))
    if not known:
        raise HarnessError(f"no run was started on {store.results}: name its folder with --results")
    alive = [holding for holding in holdings(store) if holding.alive]
    found = list(damage)
    for each in known:
        states = [state(cell, store, alive) for cell in each.cells]
        told = _lines(each, states, len({str(holding.owner) for holding in alive}))
        settled = each is not known[-1] and all(one.kind == "done" for one in states)
        found += (
            told[:1] if settled else told
        )  # of an older run that is complete, only its own line
    return found


def _lines(matrix: Matrix, states: Sequence[State], workers: int) -> list[str]:
    counts = {
        kind: sum(each.kind == kind for each in states)
        for kind in ("done", "running", "failed", "left")
    }
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    first = f"{len(states)} cell{'s'[: len(states) != 1]}, started {matrix.started}: {told}"
    open_cells = counts["running"] + counts["left"]
    seconds = [each.seconds for each in states if each.seconds is not None]
    if open_cells and seconds:
        left = open_cells * statistics.mean(seconds) / max(1, workers)
        first += f"; about {duration(left)} left, trainings not counted"
    if open_cells and not workers:
        first += "; nothing runs: the same command again goes on"
    rows = [
        f"  {each.kind:8}{each.cell.label}" + (f": {each.note}" if each.note else "")
        for each in states
    ]
    return [first, *rows]
