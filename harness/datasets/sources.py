"""Helpers of the dataset modules: find or download files, derive ids from names, make a fixed split."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import tempfile
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.datasets.checks import some
from harness.datasets.data import cache
from harness.random import Role, permutation
from harness.types import HarnessError

_TIMEOUT = 30.0


def name_ids(names: Sequence[str]) -> Tensor:
    """Return (N,) int64 in [0, 2**53): an id for each relative file name, by SHA-256.

    An id does not change when other files come or go. Sorted by id, files are in an order that is fixed,
    mixes the classes, and does not depend on the file system. 53 bits are exact as a number in JSON.
    """
    values = [
        int.from_bytes(
            hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()[:8], "big"
        )
        for name in names
    ]
    return torch.tensor([value >> 11 for value in values], dtype=torch.int64)


def stratified(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the positions (train, test) of a fixed split, each in ascending order.

    `round(share * n)` samples of every class, at least one, go to the test split, chosen by a
    pseudo-random permutation that depends on the class and its size alone.
    """
    test = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        order = permutation(0, len(members), role=Role.SHUFFLE, step=label)
        test.append(members[order[: max(1, round(share * len(members)))]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(test)] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def obtain(
    name: str,
    where: Path,
    files: Sequence[str],
    fetch: Callable[[Path], object] | None = None,
) -> None:
    """Make sure that `files` (relative paths) are in `where`, downloading those that are missing.

    `fetch(root)` downloads into an empty folder; only then are complete files moved into place, so
    that an interrupted download leaves nothing half-written. Without `fetch` there is no download.

    Raises:
        HarnessError: they are missing and cannot be downloaded; it names the ways to get them.
    """
    missing = [file for file in files if not (where / file).exists()]
    if not missing:
        return
    put = (
        "put the files there, or name the folder that has them "
        "(--data-dir FOLDER or HARNESS_DATA=FOLDER)"
    )
    lacks = f"{name}: {where} lacks {some(missing)}"
    if fetch is None:
        raise HarnessError(
            f"{lacks}; there is no download for it.\nUnpack it and {put}", page="datasets"
        )
    try:
        if not where.is_dir() and where != cache():
            raise FileNotFoundError("there is no such folder")
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=where) as temporary, _patience():
            fetch(Path(temporary))
            for file in missing:
                (where / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(temporary) / file, where / file)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = str(error).strip() or type(error).__name__
        raise HarnessError(
            f"{lacks}, and nothing was downloaded ({textwrap.shorten(reason, 160)}).\n"
            f"Either {put}; or run again with a network, and torchvision downloads them",
            page="datasets",
        ) from error


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """End a download from a silent server after 30 seconds instead of never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
