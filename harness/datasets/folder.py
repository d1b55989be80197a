"""A user's own images: `folder:PATH`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.datasets.data import Samples, Split
from harness.datasets.pictures import by_class, decode, is_grey, listing
from harness.registry import datasets
from harness.storage.progress import Reporter
from harness.types import HarnessError


@datasets.bridge("folder")
def folder(path: str) -> Callable[..., Samples]:
    """Load images from a folder per class: `PATH/train/<class>/*` and `PATH/test/<class>/*`."""

    def load(split: Split, folder: Path, *, reporter: Reporter) -> Samples:
        root = Path(path).expanduser()
        for name in ("train", "test"):
            if not (root / name).is_dir():
                raise HarnessError(
                    f"folder:{path}: there is no folder {root / name}. The layout is "
                    "train/<class>/<image> and test/<class>/<image>"
                )
        classes = listing(root / "train")
        unknown = sorted(set(listing(root / "test")) ^ set(classes))
        if unknown:
            raise HarnessError(
                f"folder:{path}: {unknown[0]} is not in both train and test: "
                "both need one folder for each class, of the same names"
            )
        training = by_class(root, "train", classes)
        grey = all(is_grey(root / name) for name in training.names)
        files = training if split == "train" else by_class(root, "test", classes)
        return Samples(
            images=decode(files, channels=1 if grey else 3, reporter=reporter),
            labels=files.labels,
            classes=classes,
            ids=files.ids,
        )

    return load
