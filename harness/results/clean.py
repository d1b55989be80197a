"""`harness clean`: what could be deleted, and what it would cost to make again. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.results import status
from harness.storage.progress import duration
from harness.storage.store import DAMAGED, TEMPORARY, Store, files, header, remove
from harness.types import HarnessError

_OLD = 3600.0
"""Seconds after which a temporary file belongs to nobody who lives."""


@dataclasses.dataclass(frozen=True)
class Litter:
    """One file, and the seconds that it took to make; None where that is not known."""

    path: Path
    bytes: int
    seconds: float | None = 0.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of file that could go."""

    name: str
    summary: str
    find: Callable[[Store], Iterator[Litter]]
    by_itself: bool = False
    """Whether `--yes` alone deletes it: nothing is lost."""


def _everywhere(store: Store) -> Iterator[Path]:
    """All files of the store, none behind a link that leads out of it."""
    for root in sorted({store.results, store.cache}):
        for folder, folders, names in os.walk(root, followlinks=False):
            folders.sort()
            yield from (Path(folder) / name for name in sorted(names))


def _litter(path: Path, seconds: float | None = 0.0) -> Iterator[Litter]:
    try:
        yield Litter(path, path.lstat().st_size, seconds)
    except FileNotFoundError:  # a run has just removed it
        return


def temporaries(store: Store) -> Iterator[Litter]:
    for path in _everywhere(store):
        ours = path.name.endswith(TEMPORARY) or path.name.startswith((".probe.", ".now."))
        if path.name.startswith(".") and ours:
            for litter in _litter(path):
                if time.time() - path.lstat().st_mtime > _OLD:
                    yield litter


def damaged(store: Store) -> Iterator[Litter]:
    for path in _everywhere(store):
        if DAMAGED in path.name:
            yield from _litter(path)


def scores(store: Store) -> Iterator[Litter]:
    """Scored batches of cells that have their record."""
    for folder in _folders(store.results / "scores"):
        if store.json_path("records", folder.name).exists():
            for path in files(folder, ".safetensors"):
                yield from _litter(path)


def failures(store: Store) -> Iterator[Litter]:
    for path in files(store.results / "failures", ".json"):
        yield from _litter(path)


def attacked(store: Store) -> Iterator[Litter]:
    for folder in _folders(store.results / "progress"):
        for path in files(folder, ".safetensors"):
            yield from _litter(path, _stated(path))


def states(store: Store) -> Iterator[Litter]:
    for path in files(store.cache / "checkpoints", ".state"):
        yield from _litter(path, _stated(path))


def checkpoints(store: Store) -> Iterator[Litter]:
    for path in files(store.cache / "checkpoints", ".safetensors"):
        log = path.with_suffix(".training.json")
        yield from _litter(path, _logged(log))
        if log.exists():
            yield from _litter(log)


def estimates(store: Store) -> Iterator[Litter]:
    folder = store.cache / "estimates"
    for path in files(folder, ".bytes"):
        yield from _litter(path, _logged(path.with_suffix(".json")))
        yield from _litter(path.with_suffix(".json"))
    for suffix in (".partial", ".position"):
        for path in files(folder, suffix):
            yield from _litter(path, None)


KINDS = (
    Kind("temporary", "files that a killed run was writing", temporaries, True),
    Kind("damaged", "damaged files that were set aside", damaged, True),
    Kind("scores", "scored batches of finished cells", scores, True),
    Kind("failures", "why cells have no number", failures),
    Kind("attacked", "attacked images", attacked),
    Kind("states", "states of unfinished trainings", states),
    Kind("checkpoints", "trained weights", checkpoints),
    Kind("estimates", "fixed training versions of the images", estimates),
)


def run(store: Store, chosen: tuple[str, ...], *, yes: bool) -> list[str]:
    """What is there, or with `yes` what was deleted: a line for each kind.

    Raises:
        HarnessError: no such folder; or a run is under way that works on what was chosen.
        StoreError: a file cannot be deleted.
    """
    if not store.results.is_dir():
        raise HarnessError(f"no folder {store.results}: name it with --results")
    names = [kind.name for kind in KINDS]
    for name in chosen:
        if name not in names:
            raise HarnessError(f"--what {name}: there are {', '.join(names)}")
    if yes and chosen:
        for holding in status.holdings(store):
            if holding.alive:
                raise HarnessError(
                    f"a run is under way ({holding.owner}: {holding.owner.note}): stop it first"
                )
    told = []
    for kind in KINDS:
        going = kind.name in chosen if chosen else kind.by_itself
        if chosen and not going:
            continue
        found = list(kind.find(store))
        if yes and going:
            for litter in found:
                remove(litter.path)
        verb = "deleted" if yes and going else "would delete" if going else "kept"
        hint = "" if going else f" (--what {kind.name} deletes them)"
        told.append(f"{verb} {kind.name}: {kind.summary}: {_sizes(found)}{hint}")
    if not yes:
        told.append("nothing was deleted: --yes does it")
    return told


def _sizes(found: list[Litter]) -> str:
    if not found:
        return "none"
    megabytes = sum(litter.bytes for litter in found) / 2**20
    known = [litter.seconds for litter in found if litter.seconds is not None]
    unknown = len(found) - len(known)
    cost = f"{duration(max(1.0, sum(known)))} to make again" if sum(known) else "costs nothing"
    more = f", and {unknown} of unknown cost" if unknown else ""
    return f"{len(found)} files, {megabytes:.1f} MB, {cost}{more}"


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())


def _stated(path: Path) -> float | None:
    """The seconds in a tensor file's header."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(start := file.read(8), "little")
            content = start + file.read(min(length, 1 << 26))
        return float.fromhex(header(content)["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def _logged(path: Path) -> float | None:
    """The seconds in the log beside a file."""
    try:
        return float(json.loads(path.read_bytes())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
