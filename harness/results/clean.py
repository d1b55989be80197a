"""Find the files that `harness clean` could delete, and the cost of making them again. Needs no torch.

Only regular files that the store itself wrote are deleted: their place, their name and their content must
say so. Links are neither followed nor deleted.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.results import status
from harness.storage.progress import duration
from harness.storage.store import (
    DAMAGED,
    MARKER,
    TEMPORARY,
    DamagedFile,
    Store,
    header,
    read_json,
    remove,
)
from harness.types import HarnessError

_OLD = 3600.0
"""Seconds after which no living process owns a temporary file."""
_TRIED = 20
"""The number of files that are read, in a folder without a mark, before it counts as somebody else's."""
_WRITTEN = (
    *("records", "timings", "failures", "matrices", "progress", "scores", "leases", "checkpoints"),
    *(
        "estimates",
        "audits",
        "audit-sizes",
        "cells",
        "protocols",
        "figure-data",
        "tables",
        "figures",
    ),
)
"""The folders that the store and what builds on it write to."""
_KEY = re.compile(r"[0-9a-f]{20}")
_ASIDE = re.compile(rf".+{re.escape(DAMAGED)}[0-9a-f]{{6}}")
_TEMPORARY = re.compile(
    rf"\.(probe|now)\.[0-9a-f]{{8}}|\..+\.\d+\.[0-9a-f]{{8}}{re.escape(TEMPORARY)}"
)


@dataclasses.dataclass(frozen=True)
class Litter:
    """One file, and the seconds that it took to make; None where that is not known."""

    path: Path
    bytes: int
    seconds: float | None = 0.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of file that could be deleted."""

    name: str
    summary: str
    find: Callable[[Store], Iterator[Litter]]
    by_itself: bool = False
    """True where `--yes` alone deletes it, because nothing is lost."""


def _regular(folder: Path, suffix: str = "") -> list[Path]:
    """Return the files of a folder with this suffix, hidden ones too; no links, and nothing behind one."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.endswith(suffix)]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are named by a key; no links."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    named = [each for each in folder.iterdir() if _KEY.fullmatch(each.name)]
    return sorted(each for each in named if each.is_dir() and not each.is_symlink())


def _everywhere(store: Store) -> Iterator[Path]:
    """Yield all files of the folders that the store writes to, none behind a link."""
    for root in sorted({store.results, store.cache}):
        yield from (path for path in root.iterdir() if path.is_file() and not path.is_symlink())
        for name in _WRITTEN:
            yield from _regular(root / name)
            for folder in _folders(root / name):
                yield from _regular(folder)


def _litter(path: Path, seconds: float | None = 0.0) -> Iterator[Litter]:
    try:
        yield Litter(path, path.lstat().st_size, seconds)
    except FileNotFoundError:  # a run has just removed it
        return


def temporaries(store: Store) -> Iterator[Litter]:
    """Yield old temporary files of runs."""
    for path in _everywhere(store):
        if _TEMPORARY.fullmatch(path.name):
            for litter in _litter(path):
                if time.time() - path.lstat().st_mtime > _OLD:
                    yield litter


def damaged(store: Store) -> Iterator[Litter]:
    """Yield damaged files that were set aside."""
    for path in _everywhere(store):
        if _ASIDE.fullmatch(path.name):
            yield from _litter(path)


def scores(store: Store) -> Iterator[Litter]:
    """Yield scored batches of cells that have their record."""
    for folder in _folders(store.results / "scores"):
        if store.has("records", folder.name):
            for path in _regular(folder, ".safetensors"):
                if _states(path, "cell", folder.name):
                    yield from _litter(path)


def failures(store: Store) -> Iterator[Litter]:
    """Yield the failures of cells."""
    for path in _regular(store.results / "failures", ".json"):
        if is_written(path):
            yield from _litter(path)


def attacked(store: Store) -> Iterator[Litter]:
    """Yield batches of attacked images."""
    for folder in _folders(store.results / "progress"):
        for path in _regular(folder, ".safetensors"):
            if _states(path, "generation", folder.name):
                yield from _litter(path, _seconds(path))


def states(store: Store) -> Iterator[Litter]:
    """Yield the states of unfinished trainings."""
    for path in _regular(store.cache / "checkpoints", ".state"):
        if _states(path, "training", path.stem):
            yield from _litter(path, _seconds(path))


def checkpoints(store: Store) -> Iterator[Litter]:
    """Yield trained weights, each with its log."""
    for path in _regular(store.cache / "checkpoints", ".safetensors"):
        if not _states(path, "key", path.stem):
            continue
        log = path.with_suffix(".training.json")
        told = _log(log)
        yield from _litter(path, told.get("seconds"))
        if told.get("key") == path.stem:
            yield from _litter(log)


def estimates(store: Store) -> Iterator[Litter]:
    """Yield the fixed training versions of images, whole or unfinished."""
    folder = store.cache / "estimates"
    for path in _regular(folder, ".bytes"):
        told = _log(path.with_suffix(".json"))
        if {"sha256", "shape"} <= told.keys() and _KEY.fullmatch(path.stem):
            yield from _litter(path, told.get("seconds"))
            yield from _litter(path.with_suffix(".json"))
    for path in _regular(folder, ".position"):
        if is_written(path, keyed=False) and _KEY.fullmatch(path.stem):
            for each in (path, path.with_suffix(".partial")):
                if each in _regular(folder):
                    yield from _litter(each, None)


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
    """Return a line for each kind of file: what could be deleted or, with `yes`, what was deleted.

    Raises:
        HarnessError: there is no such folder, the harness did not make it, or a run is working on the
            chosen files.
        StoreError: a file cannot be deleted.
    """
    for folder in dict.fromkeys((store.results, store.cache)):
        if not folder.is_dir():
            raise HarnessError(f"no folder {folder}: name it with --results (and --cache)")
        if not is_results_folder(folder):
            raise HarnessError(
                f"{folder} is no results folder: it has neither the mark {MARKER} nor records that the "
                "harness wrote, so nothing in it is touched. Name another with --results (and --cache)"
            )
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


def is_results_folder(folder: Path) -> bool:
    """Return whether the harness made a folder: it has the mark, or a record or weights of the harness."""
    marker = folder / MARKER
    if marker.is_file() and not marker.is_symlink():
        return True
    records = _regular(folder / "records", ".json")[:_TRIED]
    weights = _regular(folder / "checkpoints", ".safetensors")[:_TRIED]
    return any(map(is_written, records)) or any(_states(path, "key", path.stem) for path in weights)


def is_written(path: Path, *, keyed: bool = True) -> bool:
    """Return whether a JSON file is whole, and under the name that it was written with."""
    try:
        value = read_json(path, path.read_bytes(), dict[str, object])
    except (OSError, DamagedFile):
        return False
    return not keyed or value.get("key") == path.stem


def _sizes(found: list[Litter]) -> str:
    if not found:
        return "none"
    megabytes = sum(litter.bytes for litter in found) / 2**20
    known = [litter.seconds for litter in found if litter.seconds is not None]
    unknown = len(found) - len(known)
    cost = f"{duration(max(1.0, sum(known)))} to make again" if sum(known) else "costs nothing"
    more = f", and {unknown} of unknown cost" if unknown else ""
    return f"{len(found)} files, {megabytes:.1f} MB, {cost}{more}"


def _states(path: Path, field: str, own: str) -> bool:
    """Return whether a tensor file says in its header that it belongs to `own`."""
    return _header(path).get(field) == own


def _seconds(path: Path) -> float | None:
    """Return the seconds in a tensor file's header; None where there are none."""
    try:
        return float.fromhex(_header(path)["seconds"])
    except (ValueError, KeyError):
        return None


def _header(path: Path) -> dict[str, str]:
    """Return the metadata of a tensor file; empty where it is no such file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(start := file.read(8), "little")
            content = start + file.read(min(length, 1 << 26))
        return header(content)
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _log(path: Path) -> dict[str, Any]:
    """Return the log beside a file; empty where there is none, or a link."""
    try:
        told = json.loads(path.read_bytes()) if not path.is_symlink() else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(told, dict):
        return {}
    return {k: v for k, v in told.items() if k != "seconds" or isinstance(v, int | float)}
