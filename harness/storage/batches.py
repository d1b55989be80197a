"""Read attacked images as they are stored: one reader, and one rule for batches that overlap.

Runs with other batch sizes leave batches that share images. An image counts once: in the order of their
names, a batch that holds an image which an earlier one holds is passed over whole.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.storage import store
from harness.storage.store import DamagedFile

if TYPE_CHECKING:
    from torch import Tensor

Content = tuple[Path, "dict[str, Tensor]", dict[str, str]]
"""A batch: its file, its tensors (`positions` (M,) int64, `images` (M, C, H, W), ...) and its metadata."""


def batches(
    folder: Path,
    done: Tensor,
    mend: Callable[[DamagedFile], object],
    known: Container[str] = (),
) -> Iterator[Content]:
    """Yield the batches of a folder whose images are none of those that are done.

    Args:
        folder: named by the key of the images, which every file in it states.
        done: (N,) bool, by position in the dataset. The caller marks the positions of each batch it takes.
        mend: called with the error for each file that is damaged or holds no images of this folder.
        known: the names of files that were read before.

    Raises:
        StoreError: the folder or a file cannot be read.
    """
    for path in store.files(folder, ".safetensors"):
        if path.name in known:
            continue
        try:
            tensors, metadata = store.read_tensors(path)
            _check(path, tensors, metadata, len(done))
        except FileNotFoundError:  # set aside by another run
            continue
        except DamagedFile as error:
            mend(error)
            continue
        if not bool(done[tensors["positions"]].any()):
            yield path, tensors, metadata


def images(
    folder: Path, count: int, mend: Callable[[DamagedFile], object] = lambda error: None
) -> dict[int, Tensor]:
    """Return the attacked images (C, H, W) of a folder by position among `count`; none where there are none.

    Raises:
        StoreError: the folder or a file cannot be read.
    """
    import torch

    done = torch.zeros(count, dtype=torch.bool)
    found: dict[int, Tensor] = {}
    for _, tensors, _ in batches(folder, done, mend):
        done[tensors["positions"]] = True
        found |= dict(zip(tensors["positions"].tolist(), tensors["images"], strict=True))
    return found


def _check(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], count: int) -> None:
    """Check that a file holds attacked images of its folder, each of one of `count` positions.

    Raises:
        DamagedFile: it does not.
    """
    import torch

    problem = ""
    positions, attacked = tensors.get("positions"), tensors.get("images")
    if metadata.get("generation") != path.parent.name:
        problem = "it is a batch of another attack"
    elif positions is None or attacked is None:
        problem = "it holds no attacked images"
    elif positions.dtype != torch.int64 or positions.ndim != 1 or not len(positions):
        problem = "its positions are no list of integers"
    elif int(positions.min()) < 0 or int(positions.max()) >= count:
        problem = "its positions are not those of the test images"
    elif len(set(positions.tolist())) < len(positions):
        problem = "its positions occur more than once"
    elif attacked.dtype != torch.float32 or attacked.ndim != 4 or len(attacked) != len(positions):
        problem = f"its images are {attacked.dtype}, {tuple(attacked.shape)}"
    if problem:
        raise store.damaged(path, problem)
