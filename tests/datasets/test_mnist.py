from __future__ import annotations

import gzip
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from harness.datasets import data
from harness.types import DamageError, HarnessError

torch.set_num_threads(1)
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return (0x0800 + array.ndim).to_bytes(4, "big") + sizes + array.tobytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with 40 made-up training images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    (raw / IMAGES).write_bytes(idx(images))
    (raw / LABELS).write_bytes(idx((np.arange(40) % 10).astype(np.uint8)))
    return tmp_path


def test_reads_idx_files(root: Path) -> None:
    dataset = data.load("mnist", "train", data_dir=root)
    expected = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(expected))
    assert dataset.labels.tolist() == [label % 10 for label in range(40)]
    assert dataset.ids.tolist() == list(range(40))
    assert "not the original" in dataset.note


def test_reads_packed_files(root: Path) -> None:
    plain = data.load("mnist", "train", data_dir=root)
    for name in (IMAGES, LABELS):
        path = root / "MNIST" / "raw" / name
        path.with_name(name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert data.load("mnist", "train", data_dir=root).digest == plain.digest
    packed = root / "MNIST" / "raw" / (IMAGES + ".gz")
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(DamageError, match=r"idx3-ubyte\.gz is damaged"):
        data.load("mnist", "train", data_dir=root)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("keep", [0, 3, 6, 30, -1])
def test_truncated_files_are_named(root: Path, name: str, keep: int) -> None:
    path = root / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamageError) as refused:
        data.load("mnist", "train", data_dir=root)
    assert refused.value.status == 1
    assert str(path) in str(refused.value)
    assert "Delete it" in str(refused.value)


def test_other_files_are_no_idx_files(root: Path) -> None:
    path = root / "MNIST" / "raw" / IMAGES
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DamageError, match=r"begins with 3c68746d.*00000803"):
        data.load("mnist", "train", data_dir=root)


def test_trailing_bytes_are_damage(root: Path) -> None:
    path = root / "MNIST" / "raw" / IMAGES
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamageError, match=r"31,377 bytes, but its header announces 31,376"):
        data.load("mnist", "train", data_dir=root)


def test_missing_files_and_no_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    def refuse(self: MNIST) -> None:
        raise URLError("no network")

    monkeypatch.setattr(MNIST, "download", refuse)
    with pytest.raises(HarnessError) as refused:
        data.load("mnist", "test", data_dir=root)
    message = str(refused.value)
    for word in ("t10k-images-idx3-ubyte", "--data-dir", "HARNESS_DATA", "network"):
        assert word in message
    assert refused.value.status == 2
    assert not list(root.glob(".download-*"))


def test_downloads_through_torchvision(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    target = tmp_path_factory.mktemp("fresh")
    contents = {
        name.replace("train", kind): (root / "MNIST" / "raw" / name).read_bytes()
        for name in (IMAGES, LABELS)
        for kind in ("train", "t10k")
    }

    def download(self: MNIST) -> None:
        os.makedirs(self.raw_folder)
        for name, content in contents.items():
            (Path(self.raw_folder) / name).write_bytes(content)

    monkeypatch.setattr(MNIST, "download", download)
    assert len(data.load("mnist", "train", data_dir=target)) == 40
    assert len(data.load("mnist", "test", data_dir=target)) == 40
    assert [path.name for path in target.iterdir()] == ["MNIST"]


@pytest.mark.skipif(
    not (Path(os.environ.get("HARNESS_DATA", "/nowhere")) / "MNIST/raw").is_dir(),
    reason="HARNESS_DATA names no folder with MNIST/raw",
)
def test_the_real_files() -> None:
    from torchvision.datasets import MNIST

    for split, count, first in (("train", 60_000, 5), ("test", 10_000, 7)):
        dataset = data.load("mnist", split)  # type: ignore[arg-type]
        assert (len(dataset), dataset.shape, dataset.note) == (count, (1, 28, 28), "")
        assert int(dataset.labels[0]) == first
        theirs = MNIST(data.folder(), train=split == "train")
        assert torch.equal(dataset.images[:, 0], theirs.data)
        assert torch.equal(dataset.labels, theirs.targets)
