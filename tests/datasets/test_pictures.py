"""The datasets that are folders of image files: folder:PATH, cifar10-jpeg, tiny-imagenet."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.datasets import data, sources
from harness.storage.progress import Lines
from harness.types import DamageError, HarnessError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setattr(data, "cache", lambda: place)
    monkeypatch.setattr(sources, "cache", lambda: place)
    monkeypatch.setattr("harness.datasets.pictures.cache", lambda: place)
    return place


def pixels(name: str, *shape: int) -> np.ndarray:
    seed = int(sources.name_ids([name])[0])
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, *shape: int, name: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(name or path.name, *shape)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, 12 + 4 PNG images each of 6 wide and 5 high."""
    for split, count in (("train", 12), ("test", 4)):
        for kind in ("cat", "dog"):
            for number in range(count):
                write(tmp_path / "own" / split / kind / f"{kind}{number}.png", 5, 6, 3)
    (tmp_path / "own" / "train" / ".DS_Store").touch()
    (tmp_path / "own" / "train" / "cat" / ".hidden").touch()
    return tmp_path / "own"


def test_folder(root: Path) -> None:
    train = data.load(f"folder:{root}", "train")
    assert (len(train), train.shape, train.classes) == (24, (3, 5, 6), ("cat", "dog"))
    names = {
        int(sources.name_ids([f"train/{kind}/{kind}{number}.png"])[0]): (
            label,
            f"{kind}{number}.png",
        )
        for label, kind in enumerate(("cat", "dog"))
        for number in range(12)
    }
    for image, label, key in zip(train.images, train.labels, train.ids, strict=True):
        expected_label, name = names[int(key)]
        assert int(label) == expected_label
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(name, 5, 6, 3))
    assert len(set(train.first(8).labels.tolist())) == 2


def test_order_does_not_depend_on_the_file_system(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = data.load(f"folder:{root}", "train")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    (tmp_path / "moved").mkdir()
    moved = root.rename(tmp_path / "moved" / "elsewhere")
    after = data.load(f"folder:{moved}", "train")
    assert after.digest == before.digest


def test_a_new_file_leaves_the_other_ids(root: Path) -> None:
    before = data.load(f"folder:{root}", "train")
    write(root / "train" / "cat" / "another.png", 5, 6, 3)
    after = data.load(f"folder:{root}", "train")
    assert len(after) == 25
    assert set(before.ids.tolist()) < set(after.ids.tolist())


def test_grey_images_have_one_channel(root: Path) -> None:
    for path in root.rglob("*.png"):
        write(path, 5, 6)
    assert data.load(f"folder:{root}", "test").shape == (1, 5, 6)
    write(root / "test" / "cat" / "cat0.png", 5, 6, 3)
    with pytest.raises(HarnessError, match=r"cat0\.png is in colour"):
        data.load(f"folder:{root}", "test")


def test_one_grey_image_among_colours_is_tripled(root: Path) -> None:
    write(root / "train" / "cat" / "cat0.png", 5, 6)
    train = data.load(f"folder:{root}", "train")
    place = int((train.ids == sources.name_ids(["train/cat/cat0.png"])).nonzero()[0])
    assert torch.equal(train.images[place, 0], train.images[place, 2])


@pytest.mark.parametrize(
    ("mode", "words"),
    [("RGBA", "partly transparent"), ("I;16", "more than 8 bits"), ("F", "more than 8 bits")],
)
def test_images_that_would_lose_something(root: Path, mode: str, words: str) -> None:
    suffix = "tiff" if mode == "F" else "png"
    Image.new(mode, (6, 5)).save(root / "train" / "cat" / f"odd.{suffix}")
    with pytest.raises(HarnessError, match=rf"odd\.{suffix}.*{words}"):
        data.load(f"folder:{root}", "train")


def test_sizes_must_agree(root: Path) -> None:
    write(root / "train" / "dog" / "wide.png", 5, 7, 3)
    with pytest.raises(HarnessError, match=r"7 x 5.*one size|6 x 5.*one size") as refused:
        data.load(f"folder:{root}", "train")
    assert "wide.png" in str(refused.value)


def test_damaged_images_are_named(root: Path) -> None:
    path = root / "train" / "dog" / "dog3.png"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        path.write_bytes(content)
        with pytest.raises(DamageError, match=r"dog3\.png is damaged") as refused:
            data.load(f"folder:{root}", "train")
        assert refused.value.status == 1


def test_truncated_jpeg(root: Path) -> None:
    packed = io.BytesIO()
    Image.fromarray(pixels("jpeg", 5, 6, 3)).save(packed, "JPEG")
    (root / "train" / "dog" / "cut.jpg").write_bytes(packed.getvalue()[:-40])
    with pytest.raises(DamageError, match=r"cut\.jpg"):
        data.load(f"folder:{root}", "train")


def test_layout_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"no folder .*nowhere.train"):
        data.load(f"folder:{tmp_path}/nowhere", "train")
    (root / "train" / "bird").mkdir()
    with pytest.raises(HarnessError, match="bird is not in both"):
        data.load(f"folder:{root}", "train")
    (root / "test" / "bird").mkdir()
    with pytest.raises(HarnessError, match="no image belongs to bird"):
        data.load(f"folder:{root}", "train")
    (root / "train" / "notes.txt").touch()
    (root / "test" / "notes.txt").touch()
    with pytest.raises(HarnessError, match=r"notes\.txt cannot be read as a folder"):
        data.load(f"folder:{root}", "train")
    (root / "train" / "notes.txt").unlink()
    (root / "test" / "notes.txt").unlink()
    (root / "train" / "cat" / "deeper").mkdir()
    with pytest.raises(HarnessError, match="deeper cannot be read as an image"):
        data.load(f"folder:{root}", "train")


def test_decoded_copy_is_used_and_remade(
    root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    reporter = Lines(stream)
    first = data.load(f"folder:{root}", "train", reporter=reporter)
    (copy,) = (own_cache / "decoded").iterdir()

    with monkeypatch.context() as patch:
        patch.setattr("harness.datasets.pictures._pixels", lambda *_: pytest.fail("decodes"))
        assert data.load(f"folder:{root}", "train", reporter=reporter).digest == first.digest

    content = bytearray(copy.read_bytes())
    for place in (40, len(content) // 2, len(content) - 30):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        copy.write_bytes(damaged)
        assert data.load(f"folder:{root}", "train", reporter=reporter).digest == first.digest
    copy.write_bytes(content[:100])
    assert data.load(f"folder:{root}", "train", reporter=reporter).digest == first.digest
    assert "is damaged" in stream.getvalue()
    assert str(copy) in stream.getvalue()

    write(root / "train" / "cat" / "cat0.png", 5, 6, 3, name="another")
    changed = data.load(f"folder:{root}", "train", reporter=reporter)
    assert changed.digest != first.digest
    assert list((own_cache / "decoded").iterdir()) == [copy]


def test_works_without_a_cache(root: Path, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    stream = io.StringIO()
    dataset = data.load(f"folder:{root}", "train", reporter=Lines(stream))
    assert len(dataset) == 24
    assert "no decoded copy is kept" in stream.getvalue()


def test_cifar10_jpeg(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("ship", "airplane"):
            for number in range(6):
                write(tmp_path / "cifar10-jpeg" / split / kind / f"{number:04}.jpg", 32, 32, 3)
    train = data.load("cifar10-jpeg", "train", data_dir=tmp_path)
    assert (len(train), train.shape, train.classes) == (12, (3, 32, 32), ("airplane", "ship"))
    assert train.note == "CIFAR-10 (JPEG copy), not the official CIFAR-10"
    data.summary("cifar10-jpeg", tmp_path)  # ids differ between the splits
    with pytest.raises(HarnessError, match=r"cifar10-jpeg/train.*no download") as refused:
        data.load("cifar10-jpeg", "train", data_dir=tmp_path / "cifar10-jpeg")
    assert "HARNESS_DATA" in str(refused.value)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three classes in Tiny-ImageNet's layout, some images grey."""
    root = tmp_path / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]
    for wnid in wnids:
        for number in range(4):
            shape = (64, 64) if number == 0 else (64, 64, 3)
            write(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", *shape)
        (root / "train" / wnid / f"{wnid}_boxes.txt").touch()
    lines = []
    for number in range(6):
        write(root / "val" / "images" / f"val_{number}.JPEG", 64, 64, 3)
        lines.append(f"val_{number}.JPEG\t{wnids[number % 3]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tbee\nn03\toboe, hautboy\n")
    return tmp_path


def test_tiny_imagenet(tiny: Path) -> None:
    train = data.load("tiny-imagenet", "train", data_dir=tiny)
    test = data.load("tiny-imagenet", "test", data_dir=tiny)
    assert (len(train), len(test), train.shape) == (12, 6, (3, 64, 64))
    assert train.classes == ("oboe", "goldfish", "bee")
    assert train.note == "3 classes of 200"
    ids = sources.name_ids([f"val/images/val_{number}.JPEG" for number in range(6)]).tolist()
    labels = dict(zip(test.ids.tolist(), test.labels.tolist(), strict=True))
    assert [labels[key] for key in ids] == [0, 1, 2, 0, 1, 2]
    ids = sources.name_ids([f"train/n01/images/n01_{number}.JPEG" for number in range(4)]).tolist()
    labels = dict(zip(train.ids.tolist(), train.labels.tolist(), strict=True))
    assert [labels[key] for key in ids] == [1, 1, 1, 1]


def test_tiny_imagenet_without_words(tiny: Path) -> None:
    (tiny / "tiny-imagenet-200" / "words.txt").unlink()
    assert data.load("tiny-imagenet", "test", data_dir=tiny).classes == ("n03", "n01", "n02")


def test_tiny_imagenet_damage(tiny: Path) -> None:
    root = tiny / "tiny-imagenet-200"
    (root / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(DamageError, match=r"lacks 1 files .*val_3\.JPEG"):
        data.load("tiny-imagenet", "test", data_dir=tiny)
    with (root / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_9.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(DamageError, match="line 7: 'n99' is no class"):
        data.load("tiny-imagenet", "test", data_dir=tiny)
    (root / "wnids.txt").unlink()
    with pytest.raises(HarnessError, match=r"lacks tiny-imagenet-200/wnids\.txt"):
        data.load("tiny-imagenet", "train", data_dir=tiny)


@pytest.mark.parametrize(
    ("name", "place", "split", "count", "shape"),
    [
        ("cifar10-jpeg", "cifar10-jpeg", "test", 10_000, (3, 32, 32)),
        ("tiny-imagenet", "tiny-imagenet-200", "test", 50, (3, 64, 64)),
    ],
)
def test_the_real_files(
    name: str, place: str, split: data.Split, count: int, shape: tuple[int, int, int]
) -> None:
    if not (Path(os.environ.get("HARNESS_DATA", "/nowhere")) / place).is_dir():
        pytest.skip(f"HARNESS_DATA names no folder with {place}")
    dataset = data.load(name, split)
    assert dataset.shape == shape
    assert len(dataset) == (count if name == "cifar10-jpeg" else count * len(dataset.classes))
    assert len(set(dataset.labels.bincount().tolist())) == 1
    assert len(set(dataset.first(200).labels.tolist())) > min(8, len(dataset.classes) // 2)
