"""Attacked images are read in one way: an image counts once, and what is damaged is handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.storage import batches, store


def put(folder: Path, name: str, positions: list[int], value: float, **other: Any) -> Path:
    tensors: dict[str, Tensor] = {
        "positions": torch.tensor(positions),
        "images": torch.full((len(positions), 1, 2, 2), value),
    }
    tensors |= other.pop("tensors", {})
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.safetensors"
    store.write_tensors(path, tensors, {"generation": other.get("generation", folder.name)})
    return path


def test_images_are_found_by_position(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    put(folder, "00000002-2", [2, 3], 0.5)
    put(folder, "00000000-2", [0, 1], 0.25)
    found = batches.images(folder, 5)
    assert {position: float(image[0, 0, 0]) for position, image in found.items()} == {
        0: 0.25,
        1: 0.25,
        2: 0.5,
        3: 0.5,
    }
    assert batches.images(tmp_path / "absent", 5) == {}


def test_of_batches_that_overlap_the_first_counts_whole(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    put(folder, "00000000-2", [0, 1], 0.25)
    put(folder, "00000001-2", [1, 2], 0.5)
    put(folder, "00000002-2", [2, 3], 0.75)
    found = batches.images(folder, 4)
    assert [float(found[n][0, 0, 0]) for n in range(4)] == [0.25, 0.25, 0.75, 0.75]


def test_what_was_read_before_is_not_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    first, second = put(folder, "00000000-1", [0], 0.25), put(folder, "00000001-1", [1], 0.5)
    found = batches.batches(folder, torch.zeros(2, dtype=torch.bool), print, {first.name})
    assert [path for path, _, _ in found] == [second]


BAD: dict[str, dict[str, Any]] = {
    "of another attack": {"generation": "other"},
    "beyond the images": {"tensors": {"positions": torch.tensor([0, 9])}},
    "before the images": {"tensors": {"positions": torch.tensor([-1, 0])}},
    "twice": {"tensors": {"positions": torch.tensor([1, 1])}},
    "no numbers": {"tensors": {"positions": torch.tensor([0.0, 1.0])}},
    "too few images": {"tensors": {"images": torch.zeros(1, 1, 2, 2)}},
    "in half precision": {"tensors": {"images": torch.zeros(2, 1, 2, 2).half()}},
}


@pytest.mark.parametrize("how", BAD)
def test_a_batch_that_does_not_fit_is_handed_on(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "key"
    bad = put(folder, "00000000-2", [0, 1], 0.25, **BAD[how])
    put(folder, "00000002-2", [2, 3], 0.5)
    mended: list[store.DamagedFile] = []
    assert sorted(batches.images(folder, 4, mended.append)) == [2, 3]
    assert [error.path for error in mended] == [bad]
