"""Checks that every dataset passes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.datasets import data, sources
from harness.datasets.data import Samples, assemble
from harness.registry import datasets
from harness.types import HarnessError

torch.set_num_threads(1)


def samples(**changes: Any) -> Samples:
    """Twelve valid images of three classes, with changes."""
    images = torch.arange(12 * 3 * 4 * 5).reshape(12, 3, 4, 5).to(torch.uint8)
    valid: dict[str, Any] = {
        "images": images,
        "labels": torch.arange(12) % 3,
        "classes": ["a", "b", "c"],
    }
    return Samples(**{**valid, **changes})


def test_assembles() -> None:
    dataset = assemble("mine", "test", samples(note="made up"))
    assert dataset.shape == (3, 4, 5)
    assert dataset.ids.tolist() == [data.TEST_OFFSET + position for position in range(12)]
    assert (dataset.labels.dtype, dataset.ids.dtype) == (torch.int64, torch.int64)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.note == "made up"


def test_training_and_test_ids_differ() -> None:
    train, test = assemble("mine", "train", samples()), assemble("mine", "test", samples())
    assert not set(train.ids.tolist()) & set(test.ids.tolist())


def test_takes_read_only_big_endian_and_strided_arrays() -> None:
    images = np.frombuffer(samples().images.numpy().tobytes(), np.uint8).reshape(12, 3, 4, 5)
    labels = (np.arange(24) % 3)[::2].astype(">i4")
    dataset = assemble("mine", "train", samples(images=images, labels=labels))
    assert torch.equal(dataset.images, samples().images)
    assert dataset.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_floats_become_float32(dtype: torch.dtype) -> None:
    dataset = assemble("mine", "train", samples(images=torch.rand(12, 1, 4, 4).to(dtype)))
    assert dataset.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(12, 4, 5)}, ["(12, 4, 5)", "(N, C, H, W)"]),
        ({"images": torch.zeros(0, 3, 4, 5)}, ["(0, 3, 4, 5)"]),
        ({"images": torch.rand(12, 28, 28, 3)}, ["(N, H, W, C)", "second place"]),
        ({"images": torch.zeros(12, 1, 4, 4).long()}, ["int64", "uint8"]),
        ({"images": torch.full((12, 1, 4, 4), 255.0)}, ["0 to 255", "255"]),
        ({"images": torch.full((12, 1, 4, 4), -1.0)}, ["-1", "normalised"]),
        ({"images": torch.full((12, 1, 4, 4), 1 + 1e-3)}, ["1.001"]),
        ({"images": torch.full((12, 1, 4, 4), 0.5 / 255)}, ["black"]),
        ({"images": torch.ones(12, 1, 4, 4).byte()}, ["black", "uint8"]),
        ({"labels": torch.arange(11) % 3}, ["12 images", "(11,)"]),
        ({"labels": torch.arange(12) % 4}, ["label 3", "0 to 2", "3 samples"]),
        ({"labels": torch.arange(12) % 3 - 1}, ["label -1"]),
        ({"labels": (torch.arange(12) % 3).float()}, ["labels", "float32", "integers"]),
        ({"labels": torch.arange(12) % 2}, ["no image belongs to c", "1 of 3"]),
        ({"classes": ["a", "b", "b"]}, ["different names"]),
        ({"classes": ["a"]}, ["two or more"]),
        ({"ids": torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 5])}, ["1 ids", "(5)"]),
        ({"ids": torch.arange(3)}, ["12 images", "(3,)"]),
        ({"ids": torch.rand(12)}, ["ids", "integers"]),
        ({"images": np.array([{}] * 12)}, ["object"]),
    ],
)
def test_unusable_samples_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(HarnessError) as refused:
        assemble("mine", "train", samples(**changes))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_located(value: float) -> None:
    images = torch.rand(5000, 1, 2, 2)
    images[4321, 0, 1, 1] = value
    with pytest.raises(HarnessError, match="image 4321 has values that are NaN or infinite"):
        assemble("mine", "train", samples(images=images, labels=torch.arange(5000) % 3))


def test_digest_is_the_stated_hash() -> None:
    dataset = assemble("mine", "train", samples())
    content = b"(12, 3, 4, 5) torch.uint8\n" + dataset.images.numpy().tobytes()
    content += dataset.labels.numpy().astype("<i8").tobytes()
    content += dataset.ids.numpy().astype("<i8").tobytes()
    assert dataset.digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": (torch.arange(12) + 1) % 3},
        {"ids": torch.arange(1, 13)},
        {"images": samples().images.reshape(12, 3, 5, 4)},
        {"images": samples().images.float() / 255},
        {"images": torch.cat((samples().images[:-1], samples().images[-1:] ^ 1))},
    ],
)
def test_digest_sees_every_part(changes: dict[str, Any]) -> None:
    assert (
        assemble("mine", "train", samples(**changes)).digest
        != assemble("mine", "train", samples()).digest
    )


def test_digest_does_not_depend_on_memory_layout() -> None:
    images = samples().images.to(memory_format=torch.channels_last)
    assert (
        assemble("mine", "train", samples(images=images)).digest
        == assemble("mine", "train", samples()).digest
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=200), st.sampled_from([0.1, 0.2, 0.5]))
def test_stratified_split(values: list[int], share: float) -> None:
    labels = torch.tensor(values)
    train, test = sources.stratified(labels, share)
    assert sorted(train.tolist() + test.tolist()) == list(range(len(values)))
    assert train.tolist() == sorted(train.tolist())
    for label in set(values):
        expected = max(1, round(share * values.count(label)))
        assert int((labels[test] == label).sum()) == expected


def test_name_ids_stay_when_files_come_and_are_exact_in_json() -> None:
    names = [f"train/cat/{number}.jpg" for number in range(2000)]
    ids = sources.name_ids(names)
    assert torch.equal(sources.name_ids(names[::2]), ids[::2])
    assert len(set(ids.tolist())) == 2000
    assert int(ids.min()) >= 0 and int(ids.max()) < 2**53
    assert sources.name_ids(["caf\u00e9"]).item() == sources.name_ids(["cafe\u0301"]).item()


def test_unknown_names_splits_and_parameters() -> None:
    with pytest.raises(HarnessError, match="mnist"):
        data.load("mnits", "train")
    with pytest.raises(HarnessError, match="train and test"):
        data.load("digits", "validation")  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match="parameters are: none"):
        data.load("digits", "train", side=3)
    with pytest.raises(HarnessError, match="parameters are: none") as refused:
        data.load("cifar10-jpeg", "train", side=3)
    assert "reporter" not in str(refused.value)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "svhn", "cifar10-jpeg"])
def test_built_in_datasets_say_what_they_are(name: str) -> None:
    assert name in datasets.names()
    assert all(entry.summary for entry in datasets)


def test_data_dir_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "environment"))
    assert data.folder(tmp_path) == tmp_path
    assert data.folder() == tmp_path / "environment"
    monkeypatch.setenv("HARNESS_DATA", "")
    assert data.folder() == data.cache()


def test_a_dataset_of_ones_own_from_a_file(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "import torch\nfrom harness.datasets.data import Samples\n"
        "def coins(split, folder, *, sides: int = 2):\n"
        "    return Samples(images=torch.rand(6, 1, 4, 4), labels=torch.arange(6) % sides,\n"
        "                   classes=[str(side) for side in range(sides)])\n"
        "def nothing(split, folder):\n    return None\n"
    )
    dataset = data.load(f"{source}:coins", "train", sides=3)
    assert dataset.classes == ("0", "1", "2")
    with pytest.raises(HarnessError, match=r"NoneType.*harness\.datasets\.data\.Samples"):
        data.load(f"{source}:nothing", "train")


def test_download_that_fails_names_files_and_ways(tmp_path: Path) -> None:
    def fetch(root: Path) -> None:
        (root / "half").write_text("half")
        raise URLError("no route")

    with pytest.raises(HarnessError) as refused:
        sources.obtain("thing", tmp_path, ["a/b", "c"], fetch)
    message = str(refused.value)
    for word in ("thing", "a/b, c", "no route", "--data-dir", "HARNESS_DATA", "torchvision"):
        assert word in message
    assert len(message.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_download_moves_missing_files_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("mine")

    def fetch(root: Path) -> None:
        (root / "a").mkdir()
        for name in ("old", "new", "rest"):
            (root / "a" / name).write_text("theirs")

    sources.obtain("thing", tmp_path, ["a/old", "a/new"], fetch)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "new", "old"]
    assert (tmp_path / "a" / "old").read_text() == "mine"
    sources.obtain(
        "thing", tmp_path, ["a/old", "a/new"], lambda root: pytest.fail("downloads again")
    )


def test_a_folder_that_the_user_named_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no such folder"):
        sources.obtain("thing", tmp_path / "typo", ["a"], lambda root: pytest.fail("downloads"))
    assert not (tmp_path / "typo").exists()


def test_summary_counts(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    labels = np.arange(12) % 2
    test = np.concatenate((images[:3], 255 - images[3:6]))
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=test, y_test=labels[:6])
    train_part, test_part = data.summary(f"npz:{tmp_path / 'a.npz'}")
    assert (train_part.count, test_part.count) == (12, 6)
    assert train_part.per_class == {"0": 6, "1": 6}
    assert (train_part.repeated, test_part.repeated) == (3, 3)
    assert train_part.shape == (1, 4, 4)
    assert (train_part.low, train_part.high) == (images.min() / 255, images.max() / 255)
    assert train_part.digest == data.load(f"npz:{tmp_path / 'a.npz'}", "train").digest


def test_summary_refuses_splits_that_do_not_fit(tmp_path: Path) -> None:
    images, labels = np.full((4, 4, 4), 9, np.uint8), np.arange(4) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "ids.npz", **arrays, ids_train=np.arange(4), ids_test=np.arange(3, 7))
    with pytest.raises(HarnessError, match=r"1 ids are in both splits \(3\)"):
        data.summary(f"npz:{tmp_path / 'ids.npz'}")
    np.savez(tmp_path / "shape.npz", **{**arrays, "x_test": np.full((4, 5, 5), 9, np.uint8)})
    with pytest.raises(HarnessError, match="must be alike"):
        data.summary(f"npz:{tmp_path / 'shape.npz'}")
