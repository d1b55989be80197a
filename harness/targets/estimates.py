"""Make the fixed training versions of every image once: n x N images on disk as bytes, resumable.

The file grows from its start. It is written at explicit offsets, not through a memory map: a full disk is
then an error that can be reported, not a signal that kills, and two runs that write the same file write the
same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.random import Draws, Role, mix_tensor
from harness.storage import store
from harness.storage.progress import Reporter
from harness.targets.defended import Defended
from harness.targets.training import Stop
from harness.types import Dataset

_CHUNK = 500
SAVE_EVERY = 5.0
"""Seconds between two notes of how much of the file is whole."""


@dataclasses.dataclass(frozen=True)
class Estimates:
    """The stored versions: `values` (n, N, C, H, W) uint8, in the order of the dataset."""

    values: np.memmap[tuple[int, ...], np.dtype[np.uint8]]
    ids: Tensor

    def versions(self, ids: Tensor, epoch: int) -> Tensor:
        """Return one version of each sample for an epoch: (M, C, H, W) float32 in [0, 1].

        A sample's versions take turns from epoch to epoch, from a start of its own, so that n epochs show
        every version once.
        """
        known, order = self._sorted
        rows = order[torch.searchsorted(known, ids.cpu())]
        turns = (mix_tensor(ids.cpu()) % len(self.values) + epoch) % len(self.values)
        picked = self.values[turns.numpy(), rows.numpy()]
        return torch.from_numpy(picked).to(ids.device).float() / 255.0

    @functools.cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The ids in ascending order, and the row of each id."""
        return torch.sort(self.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Position:
    """The part of the growing file that is whole: the number of chunks, their shape and their digest."""

    chunks: int
    sha256: str
    shape: tuple[int, ...]
    seconds: float


def obtain(
    path: Path,
    defended: Defended,
    dataset: Dataset,
    *,
    seed: int,
    device: torch.device,
    reporter: Reporter,
    stop: Stop,
    mend: Callable[[store.DamagedFile], object],
) -> Estimates:
    """Return the stored versions; missing ones are made, from where an earlier run stopped.

    Values have eight bits: half a step of 1/255 is far below the changes that estimation makes. A damaged
    file is passed to `mend`, which sets it aside, and made again. If another run finishes the file meanwhile
    (this one was stopped for so long that its lease was taken over), that file is used.

    Raises:
        Interrupted: a signal came; the versions made so far are kept.
        StoreError: the file cannot be read or written.
    """
    count = defended.defense.estimates
    shape = (count, len(dataset), *dataset.shape)
    try:
        while not _is_whole(path, shape, mend):
            _make(path, shape, defended, dataset, seed, device, reporter, stop, mend)
        return Estimates(np.memmap(path, np.uint8, "r", shape=shape), dataset.ids)
    except OSError as error:
        raise store.unwritable(path, error) from error


def _is_whole(
    path: Path, shape: tuple[int, ...], mend: Callable[[store.DamagedFile], object]
) -> bool:
    """Return whether the finished file is there and whole; a damaged one is set aside."""
    if not path.exists():
        return False
    try:
        expected = json.loads(path.with_suffix(".json").read_bytes())
        if tuple(expected["shape"]) != shape:
            raise ValueError(f"its shape is {expected['shape']}, not {list(shape)}")
        if _digest(path) != expected["sha256"]:
            raise ValueError("its checksum does not match")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        mend(store.damaged(path, error))
        return False
    return True


def _make(
    path: Path,
    shape: tuple[int, ...],
    defended: Defended,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    reporter: Reporter,
    stop: Stop,
    mend: Callable[[store.DamagedFile], object],
) -> None:
    """Make the rest of the file; return early where another run has finished it."""
    partial, marker = path.with_suffix(".partial"), path.with_suffix(".position")
    path.parent.mkdir(exist_ok=True)
    image = int(np.prod(shape[2:]))
    chunks = [
        (version, start) for version in range(shape[0]) for start in range(0, shape[1], _CHUNK)
    ]
    ends = [
        (version * shape[1] + min(start + _CHUNK, shape[1])) * image for version, start in chunks
    ]
    done, seconds = _resume(partial, marker, shape, ends, mend)
    digest = _hash(partial, ends[done - 1] if done else 0)
    started = saved = time.monotonic()

    def note() -> None:
        file.flush()
        os.fsync(file.fileno())
        spent = seconds + time.monotonic() - started
        at = _Position(chunks=done, sha256=digest.hexdigest(), shape=shape, seconds=spent)
        store.write_atomic(marker, store.render_json(at))

    with (
        open(partial, "r+b" if done else "wb") as file,
        reporter.task("estimates", len(chunks)) as task,
    ):
        file.seek(ends[done - 1] if done else 0)
        task.advance(done)
        while done < len(chunks):
            version, start = chunks[done]
            batch = dataset.batch(slice(start, start + _CHUNK)).to(device)
            draws = Draws(seed, batch.ids, Role.ESTIMATE, draw=version)
            with torch.no_grad():
                made = defended.training_transform(batch.images, draws, version=version)
            content = (made * 255).round().byte().cpu().numpy().tobytes()
            if (
                path.exists()
            ):  # the finished file is the one open here: it must not be written any more
                return
            file.write(content)
            digest.update(content)
            done += 1
            if stop.asked or time.monotonic() - saved > SAVE_EVERY:
                note()
                saved = time.monotonic()
                stop.check()
            task.advance(1, f"version {version + 1}/{shape[0]}")
        file.truncate()
        note()
    summary = {
        "sha256": digest.hexdigest(),
        "shape": shape,
        "seconds": seconds + time.monotonic() - started,
    }
    # The index first: a finished file is never without it.
    store.write_atomic(path.with_suffix(".json"), json.dumps(summary).encode())
    try:
        os.replace(partial, path)
    except FileNotFoundError:
        if not path.exists():
            raise
    store.remove(marker)


def _resume(
    partial: Path,
    marker: Path,
    shape: tuple[int, ...],
    ends: list[int],
    mend: Callable[[store.DamagedFile], object],
) -> tuple[int, float]:
    """Return (number of whole chunks, seconds spent on them); chunks that were not noted are made again."""
    if not (partial.exists() and marker.exists()):
        return 0, 0.0
    try:
        at = store.read_json(marker, marker.read_bytes(), _Position)
    except store.DamagedFile as error:
        mend(error)
        return 0, 0.0
    whole = at.shape == shape and 0 < at.chunks <= len(ends)
    if not whole or _hash(partial, ends[at.chunks - 1]).hexdigest() != at.sha256:
        mend(store.damaged(partial, "it is not what its .position says"))
        return 0, 0.0
    return at.chunks, at.seconds


def _hash(path: Path, length: int) -> hashlib._Hash:
    """Return the SHA-256 object of the first `length` bytes, ready for more."""
    digest = hashlib.sha256()
    if length:
        with open(path, "rb") as file:
            while length and (part := file.read(min(length, 1 << 22))):
                digest.update(part)
                length -= len(part)
    return digest


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
