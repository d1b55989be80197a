"""Tiny-ImageNet (Stanford CS231n 2015) in its official layout, whole or some of its classes."""

from __future__ import annotations

from pathlib import Path

from harness.datasets.data import Samples, Split
from harness.datasets.pictures import Files, decode, listing
from harness.datasets.sources import obtain
from harness.registry import datasets
from harness.storage.progress import Reporter
from harness.types import DamageError, HarnessError

_PLACE = "tiny-imagenet-200"
_CLASSES = 200


@datasets.register("tiny-imagenet")
def tiny_imagenet(split: Split, folder: Path, *, reporter: Reporter) -> Samples:
    """Load Tiny-ImageNet: 64 x 64 photographs of 200 classes, 500 each; `val` is the test split.

    It reads `tiny-imagenet-200/` with `wnids.txt`, `train/<wnid>/images/` and `val/` as unpacked;
    labels are positions in `wnids.txt`. With fewer classes, the note says how many there are. The
    official test images have no labels and are not read. The order is a fixed mixture of the
    classes; the id is a hash of the file's name in the official layout.
    """
    root = folder / _PLACE
    obtain(
        "tiny-imagenet",
        folder,
        [f"{_PLACE}/wnids.txt", f"{_PLACE}/train", f"{_PLACE}/val/val_annotations.txt"],
    )
    wnids = _lines(root / "wnids.txt")
    files = Files.of(root, _train(root, wnids) if split == "train" else _validation(root, wnids))
    return Samples(
        images=decode(files, channels=3, reporter=reporter),
        labels=files.labels,
        classes=_words(root, wnids),
        ids=files.ids,
        note="" if len(wnids) == _CLASSES else f"{len(wnids)} classes of {_CLASSES}",
    )


def _train(root: Path, wnids: list[str]) -> list[tuple[str, int]]:
    return [
        (f"train/{wnid}/images/{name}", label)
        for label, wnid in enumerate(wnids)
        for name in listing(root / "train" / wnid / "images")
    ]


def _validation(root: Path, wnids: list[str]) -> list[tuple[str, int]]:
    """Read val_annotations.txt: file, wnid and a bounding box in each line, separated by tabs."""
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = root / "val" / "val_annotations.txt"
    labelled = []
    for number, line in enumerate(_lines(annotations), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise DamageError(
                f"{annotations}, line {number}: {wnid or line!r} is no class of wnids.txt: "
                "unpack the archive again"
            )
        labelled.append((f"val/images/{name}", labels[wnid]))
    there = set(listing(root / "val" / "images"))
    absent = [name for name, _ in labelled if name.rpartition("/")[2] not in there]
    if absent:
        raise DamageError(
            f"{root} lacks {len(absent)} files that val_annotations.txt names ({absent[0]}): "
            "unpack the archive again"
        )
    return labelled


def _words(root: Path, wnids: list[str]) -> list[str]:
    """Return each class's first word where all are known and differ, else the WordNet ids."""
    if not (root / "words.txt").is_file():
        return wnids
    table = dict(line.partition("\t")[::2] for line in _lines(root / "words.txt"))
    words = [table.get(wnid, wnid).partition(",")[0] for wnid in wnids]
    return words if len(set(words)) == len(words) else wnids


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path} cannot be read ({error})") from error
    return [line.strip() for line in lines if line.strip()]
