from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.datasets import data
from harness.types import DamageError, HarnessError

torch.set_num_threads(1)
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (20, 8, 9, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def four(**changes: Any) -> dict[str, Any]:
    arrays = {"x_train": COLOUR, "y_train": LABELS, "x_test": COLOUR[:8], "y_test": LABELS[:8]}
    return {**arrays, **changes}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def write_and_load(split: str, arrays: dict[str, Any], **parameters: Any) -> Any:
        np.savez(tmp_path / "mine.npz", **arrays)
        return data.load(f"npz:{tmp_path / 'mine.npz'}", split, **parameters)  # type: ignore[arg-type]

    return write_and_load


def test_channels_last(load: Any) -> None:
    train = load("train", four())
    assert train.shape == (3, 8, 9)
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), COLOUR)
    assert train.classes == ("0", "1", "2", "3")
    assert load("test", four()).ids[0] == data.TEST_OFFSET


def test_channels_first_and_grey(load: Any) -> None:
    first = COLOUR.transpose(0, 3, 1, 2)
    assert load("train", four(x_train=first)).shape == (3, 8, 9)
    assert load("train", four(x_train=COLOUR[..., 0])).shape == (1, 8, 9)
    assert load("train", four(x_train=COLOUR[..., :1])).shape == (1, 8, 9)


def test_layout_that_is_not_clear_is_asked_for(load: Any) -> None:
    images = RANDOM.integers(0, 256, (20, 3, 8, 3), dtype=np.uint8)
    with pytest.raises(HarnessError, match=r"\(20, 3, 8, 3\).*layout='nchw'"):
        load("train", four(x_train=images))
    assert load("train", four(x_train=images, layout="nchw")).shape == (3, 8, 3)
    assert load("train", four(x_train=images, layout="NHWC")).shape == (3, 3, 8)
    assert load("train", four(x_train=images), layout="nhwc").shape == (3, 3, 8)
    with pytest.raises(HarnessError, match="'hwc': it must be nchw or nhwc"):
        load("train", four(x_train=images), layout="hwc")
    with pytest.raises(HarnessError, match="layout="):
        load("train", four(x_train=RANDOM.random((20, 4, 8, 4))))


def test_floats_stay(load: Any) -> None:
    train = load("train", four(x_train=COLOUR / 255.0))
    assert train.images.dtype == torch.float32
    assert np.allclose(train.images.permute(0, 2, 3, 1), COLOUR / 255.0, atol=1e-7)
    with pytest.raises(HarnessError, match="0 to 255"):
        load("train", four(x_train=COLOUR.astype(np.float32)))


def test_images_and_labels_are_split(load: Any) -> None:
    arrays = {"images": COLOUR, "labels": LABELS[:, None], "classes": np.array(list("abcd"))}
    train, test = load("train", arrays), load("test", arrays)
    assert (len(train), len(test)) == (16, 4)
    assert sorted(train.ids.tolist() + test.ids.tolist()) == list(range(20))
    assert test.labels.bincount().tolist() == [1, 1, 1, 1]
    assert test.labels.tolist() == LABELS[test.ids].tolist()
    assert train.classes == ("a", "b", "c", "d")
    with pytest.raises(HarnessError, match="20 images, 19 labels"):
        load("train", {"images": COLOUR, "labels": LABELS[:-1]})
    with pytest.raises(HarnessError, match="label -1"):
        load("train", {"images": COLOUR, "labels": LABELS - 1, "classes": list("abcd")})


def test_bad_arrays(load: Any) -> None:
    with pytest.raises(HarnessError, match="but not y_test"):
        arrays = four()
        del arrays["y_test"]
        load("train", arrays)
    with pytest.raises(HarnessError, match="not images, labels"):
        load("train", {"x": COLOUR})
    with pytest.raises(HarnessError, match="labels are float64"):
        load("train", four(y_train=LABELS / 2))
    with pytest.raises(HarnessError, match="no image belongs to 3"):
        load("test", four(y_test=LABELS[:8] % 3))
    with pytest.raises(HarnessError, match=r"\(20, 72\)"):
        load("train", four(x_train=COLOUR[..., 0].reshape(20, 72)))


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


def test_no_code_in_a_file_is_run(load: Any, tmp_path: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "loaded")], dtype=object)
    with pytest.raises(HarnessError, match="plain arrays"):
        load("train", four(extra=bomb))
    (tmp_path / "mine.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "loaded")))
    with pytest.raises(HarnessError, match="no npz file"):
        data.load(f"npz:{tmp_path / 'mine.npz'}", "train")
    assert not (tmp_path / "loaded").exists()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no file"):
        data.load(f"npz:{tmp_path / 'absent.npz'}", "train")


@pytest.mark.parametrize("packed", [False, True])
def test_damage_is_named(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "mine.npz"
    (np.savez_compressed if packed else np.savez)(path, **four())
    content = path.read_bytes()
    for changed in (content[:-50], content[: len(content) // 2]):
        path.write_bytes(changed)
        with pytest.raises(DamageError, match=r"mine\.npz is damaged"):
            data.load(f"npz:{path}", "train")
    flipped = bytearray(content)
    flipped[3000] ^= 0x10  # inside the first array's pixels
    path.write_bytes(flipped)
    with pytest.raises(DamageError, match=r"mine\.npz is damaged"):
        data.load(f"npz:{path}", "train")
