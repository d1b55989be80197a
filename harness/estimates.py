"""Fixed training versions of every image, made once: n x N images on disk as bytes, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import store
from harness.defended import Defended
from harness.progress import Reporter
from harness.random import Draws, Role, mix_tensor
from harness.train import Stop
from harness.types import Dataset

_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Estimates:
    """`values` (n, N, C, H, W) uint8; the order is the dataset's."""

    values: np.memmap[tuple[int, ...], np.dtype[np.uint8]]
    ids: Tensor

    def versions(self, ids: Tensor, epoch: int) -> Tensor:
        """(M, C, H, W) float32 in [0, 1]: each sample's versions take turns, epoch by epoch, starting
        anywhere, so that n epochs show every version once."""
        order = torch.argsort(self.ids)
        rows = order[torch.searchsorted(self.ids[order], ids.cpu())]
        turns = (mix_tensor(ids.cpu()) % len(self.values) + epoch) % len(self.values)
        picked = self.values[turns.numpy(), rows.numpy()]
        return torch.from_numpy(picked).to(ids.device).float() / 255.0


def obtain(
    path: Path,
    defended: Defended,
    dataset: Dataset,
    *,
    seed: int,
    device: torch.device,
    reporter: Reporter,
    stop: Stop,
) -> Estimates:
    """The stored versions, made where they are missing, from where an earlier run stopped.

    Eight bits a value: half a step of 1/255 is far below what estimation changes.

    Raises:
        DamageError: the file is not what was written.
    """
    count = defended.defense.estimates
    shape = (count, len(dataset), *dataset.shape)
    index = path.with_suffix(".json")
    if path.exists() and index.exists():
        expected = json.loads(index.read_text())
        if _digest(path) == expected["sha256"] and tuple(expected["shape"]) == shape:
            return Estimates(np.memmap(path, np.uint8, "r", shape=shape), dataset.ids)
        raise store.damaged(path, "its checksum does not match")

    partial, marker = path.with_suffix(".partial"), path.with_suffix(".position")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = int(marker.read_text()) if marker.exists() and partial.exists() else 0
    chunks = [
        (version, start) for version in range(count) for start in range(0, len(dataset), _CHUNK)
    ]
    values = np.memmap(partial, np.uint8, "r+" if done else "w+", shape=shape)
    with reporter.task("estimates", len(chunks)) as task:
        task.advance(done)
        for position in range(done, len(chunks)):
            version, start = chunks[position]
            batch = dataset.batch(slice(start, start + _CHUNK)).to(device)
            draws = Draws(seed, batch.ids, Role.ESTIMATE, draw=version)
            with torch.no_grad():
                made = defended.defense.training_transform(batch.images, draws, defended.auxiliary)
            values[version, start : start + _CHUNK] = (made * 255).round().byte().cpu().numpy()
            if position % 20 == 19 or stop.asked:
                values.flush()
                store.write_atomic(marker, str(position + 1).encode())
                stop.check()
            task.advance(1, f"version {version + 1}/{count}")
    values.flush()
    del values
    summary = {"sha256": _digest(partial), "shape": shape}
    os.replace(partial, path)
    store.write_atomic(index, json.dumps(summary).encode())
    marker.unlink(missing_ok=True)
    return Estimates(np.memmap(path, np.uint8, "r", shape=shape), dataset.ids)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
