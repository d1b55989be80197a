"""cifar10 and svhn on small files of the official formats, their checksums put into torchvision."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from harness.datasets import data
from harness.types import DamageError, HarnessError

torch.set_num_threads(1)
NAMES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training files and a test file of 20 images each, rows of 3 x 1024 as in the original."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        content = {"data": pixels(number, 20, 3072), "labels": [k % 10 for k in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    monkeypatch.setattr(
        CIFAR10, "train_list", [[n, md5(folder / n)] for n in ("data_batch_1", "data_batch_2")]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(
        CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")},
    )
    return tmp_path


def test_cifar10(cifar: Path) -> None:
    train = data.load("cifar10", "train", data_dir=cifar)
    test = data.load("cifar10", "test", data_dir=cifar)
    assert (len(train), len(test), train.shape) == (40, 20, (3, 32, 32))
    expected = torch.from_numpy(pixels(1, 20, 3072).reshape(20, 3, 32, 32))
    assert torch.equal(train.images[20:], expected)
    assert train.images.is_contiguous()
    assert train.classes == tuple(NAMES)
    assert train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert test.ids[0] == data.TEST_OFFSET


class Bomb:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_no_pickle_is_loaded_whose_checksum_differs(cifar: Path, name: str) -> None:
    trace = cifar / "loaded"
    (cifar / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(DamageError, match=rf"{name} is damaged or not the official file"):
        data.load("cifar10", "train", data_dir=cifar)
    assert not trace.exists()


def test_cifar10_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def refuse(self: CIFAR10) -> None:
        raise URLError("no network")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(HarnessError, match="cifar-10-batches-py/data_batch_1") as refused:
        data.load("cifar10", "train", data_dir=tmp_path)
    assert refused.value.status == 2
    assert "HARNESS_DATA" in str(refused.value)


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 images in a file of the official form: X (32, 32, 3, N), y (N, 1) from 1 to 10."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    path = tmp_path / "test_32x32.mat"
    labels = (np.arange(30) % 10 + 1).astype(np.uint8)[:, None]
    savemat(path, {"X": pixels(3, 32, 32, 3, 30), "y": labels})
    monkeypatch.setitem(SVHN.split_list, "test", ["nowhere", "test_32x32.mat", md5(path)])
    return tmp_path


def test_svhn(svhn: Path) -> None:
    dataset = data.load("svhn", "test", data_dir=svhn)
    assert (len(dataset), dataset.shape) == (30, (3, 32, 32))
    assert dataset.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # 10 stands for 0
    source = pixels(3, 32, 32, 3, 30)
    assert dataset.images[7, 2, 5, 9] == int(source[5, 9, 2, 7])


def test_svhn_truncated(svhn: Path) -> None:
    path = svhn / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamageError, match=r"test_32x32\.mat is damaged"):
        data.load("svhn", "test", data_dir=svhn)


def test_svhn_missing(svhn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    def refuse(self: SVHN) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(SVHN, "download", refuse)
    with pytest.raises(HarnessError, match=r"lacks train_32x32\.mat.*no network"):
        data.load("svhn", "train", data_dir=svhn)
