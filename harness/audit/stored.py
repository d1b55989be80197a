"""Read the attacked batches of a record from disk, independently of the code that wrote them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from harness.random import Draws, Role
from harness.results.records import Record
from harness.storage import store
from harness.storage.store import Store
from harness.targets.views import LOOKS
from harness.types import Dataset

_COUNTS = (
    "forwards",
    "backwards",
    "dead_gradients",
    "dead_pixels",
    "probed_pixels",
    "fooled_looks",
    "first_fooled",
)
_QUESTION = ("ids", "images", "logits")
END = -1
"""The step under which a batch stores the trace of the images that the attack returned."""


class MissingEvidence(Exception):
    """Raised where the evidence does not exist, which says nothing against the record."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One of the attack's last questions, and what it was answered."""

    images: Tensor
    """(n, C, H, W), n at most `LOOKS`."""
    draws: Draws
    logits: Tensor
    """(n, classes)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredImages:
    """All attacked images of a record, in the dataset's order, with the evidence of their making."""

    images: Tensor
    """(N, C, H, W) float32."""
    batches: tuple[Tensor, ...]
    """The int64 positions of each batch. Scores are repeated in the same batches."""
    forwards: Tensor
    backwards: Tensor
    dead_gradients: Tensor
    dead_pixels: Tensor
    probed_pixels: Tensor
    fooled_looks: Tensor
    first_fooled: Tensor
    """(N,) int64 each; `first_fooled` is -1 where no query was fooled."""
    trace: dict[int, Tensor]
    """For each step, (draws, N) bool; `END` is the step of the returned images."""
    changed: tuple[str, ...]
    """The changes to the victim that the batches name."""
    process: tuple[str, ...]
    """The changes of the process that the batches name."""
    asked: tuple[Asked, ...] = ()
    """The attack's last questions about the first batch."""


def generation_key(record: Record) -> str:
    """Return the key of a record's attacked images, from the run that it states."""
    return record.resolved.generation_key


def read(opened: Store, key: str, test: Dataset) -> StoredImages:
    """Read all attacked images under a generation key.

    Raises:
        MissingEvidence: some are not there.
        DamagedFile: a file is damaged, or holds no batch of these images.
    """
    count = len(test)
    images = torch.zeros(count, *test.shape)
    counts = {name: torch.zeros(count, dtype=torch.int64) for name in _COUNTS}
    done = torch.zeros(count, dtype=torch.bool)
    batches: list[Tensor] = []
    traces: list[dict[int, Tensor]] = []
    changed: list[str] = []
    process: list[str] = []
    asked: tuple[Asked, ...] = ()
    for path in store.files(opened.progress_folder(key), ".safetensors"):
        tensors, metadata = store.read_tensors(path)
        _check(path, tensors, metadata, test)
        positions = tensors["positions"]
        if bool(done[positions].any()):
            continue  # of a run with another batch size
        done[positions] = True
        images[positions] = tensors["images"]
        for name in _COUNTS:
            counts[name][positions] = tensors[f"evidence.{name}"].to(torch.int64)
        batches.append(positions)
        traces.append(_trace(tensors))
        changed += filter(None, [metadata["changed"]])
        process += filter(None, [metadata["process"]])
        asked += _asked(tensors, metadata["asked"])
    if not bool(done.all()):
        raise MissingEvidence(f"{int((~done).sum())} of {count} attacked images are not there")
    return StoredImages(
        images=images,
        batches=tuple(batches),
        trace=_joined(traces, batches, count),
        changed=tuple(changed),
        process=tuple(process),
        asked=asked,
        **counts,
    )


def impossible(found: StoredImages, access: str) -> list[str]:
    """Return the counts that no view can have made, which show that the evidence was edited."""
    problems = []
    if bool((found.dead_gradients > found.backwards).any()):
        problems.append("the stored batches count more dead gradients than gradients")
    if bool((found.first_fooled > found.forwards).any() or (found.first_fooled < -1).any()):
        problems.append("the stored batches were fooled at a query that was never made")
    if bool((found.dead_pixels > found.probed_pixels).any()):
        problems.append("the stored batches count more dead pixels than probed ones")
    if bool((found.fooled_looks > found.forwards).any()):
        problems.append("the stored batches count more looks that fooled than looks")
    if any(bool((getattr(found, name) < 0).any()) for name in _COUNTS if name != "first_fooled"):
        problems.append("the stored batches hold negative counts")
    first = next((each for each in found.batches if int(each[0]) == 0), None)
    if first is not None and bool((found.forwards[first] > 0).any()) != bool(found.asked):
        problems.append(
            "the stored batches count queries and hold no question, or the other way round"
        )
    if access != "gradients" and bool((found.backwards > 0).any()):
        problems.append(f"the stored batches count gradients under access to {access}")
    return problems


def _check(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], test: Dataset) -> None:
    """Raise DamagedFile where a file is no batch of attacked images of this dataset."""
    wanted = {"positions", "images", *(f"evidence.{name}" for name in _COUNTS)}
    if missing := sorted(wanted - tensors.keys()):
        raise store.damaged(path, f"it lacks {', '.join(missing)}")
    if metadata.get("generation") != path.parent.name:
        raise store.damaged(path, "it is a batch of another attack")
    if not {"asked", "changed", "process"} <= metadata.keys():
        raise store.damaged(
            path, "it does not say what was asked, or whether victim and process were changed"
        )
    positions = tensors["positions"]
    count = len(positions)
    if positions.dtype != torch.int64 or positions.ndim != 1 or not count:
        raise store.damaged(path, "its positions are no list of integers")
    inside = int(positions.min()) >= 0 and int(positions.max()) < len(test)
    if not inside or len(set(positions.tolist())) != count:
        raise store.damaged(path, "its positions are not those of the test images")
    images = tensors["images"]
    if images.dtype != torch.float32 or tuple(images.shape) != (count, *test.shape):
        raise store.damaged(path, f"its images are {images.dtype}, {tuple(images.shape)}")
    if any(tensors[f"evidence.{name}"].shape != (count,) for name in _COUNTS):
        raise store.damaged(path, "its evidence does not fit its images")
    try:
        rows = _trace(tensors).values()
        _check_asked(tensors, metadata["asked"], test)
    except ValueError as error:
        raise store.damaged(path, error) from error
    if any(row.ndim != 2 or row.shape[1] != count for row in rows):
        raise store.damaged(path, "its trace does not fit its images")


def _trace(tensors: dict[str, Tensor]) -> dict[int, Tensor]:
    found = {}
    for name, value in tensors.items():
        if name.startswith("trace."):
            found[int(name.removeprefix("trace."))] = value.bool()
    return found


def _asked(tensors: dict[str, Tensor], places: str) -> tuple[Asked, ...]:
    """Return the attack's last questions: `places` holds the seed, step and draw of each."""
    found = []
    for number, place in enumerate(places.split()):
        seed, step, draw = map(int, place.split(","))
        ids, images, logits = (tensors[f"asked.{number}.{name}"] for name in _QUESTION)
        found.append(Asked(images, Draws(seed, ids, Role.ATTACK, step=step, draw=draw), logits))
    return tuple(found)


def _check_asked(tensors: dict[str, Tensor], places: str, test: Dataset) -> None:
    """Raise ValueError where the questions of a batch are none that a view has kept."""
    count = len(places.split())
    names = {f"asked.{number}.{name}" for number in range(count) for name in _QUESTION}
    positions = tensors["positions"]
    if {name for name in tensors if name.startswith("asked")} != names or count > 2:
        raise ValueError("its questions are not those that it names")
    if count and int(positions[0]) != 0:
        raise ValueError("it holds questions, which the first batch alone does")
    known = set(test.batch(positions).ids.tolist())
    for each in _asked(tensors, places):
        ids, images, logits = each.draws.ids, each.images, each.logits
        if ids.dtype != torch.int64 or ids.ndim != 1 or len(ids) > LOOKS or not len(ids):
            raise ValueError("the ids of its questions are no short list of integers")
        if not set(ids.tolist()) <= known:
            raise ValueError("its questions are of other images")
        if not images.is_floating_point() or images.shape != (len(ids), *test.shape):
            raise ValueError("the images of its questions do not fit the test images")
        if not logits.is_floating_point() or logits.shape != (len(ids), len(test.classes)):
            raise ValueError("the answers to its questions are no logits of these classes")


def _joined(
    traces: list[dict[int, Tensor]], batches: list[Tensor], count: int
) -> dict[int, Tensor]:
    """Join the traces of all batches; steps that not every batch has are no trace of the cell."""
    steps = set.intersection(*(set(each) for each in traces)) if traces else set()
    joined = {}
    for step in sorted(steps):
        row = torch.zeros(len(traces[0][step]), count, dtype=torch.bool)
        for each, positions in zip(traces, batches, strict=True):
            row[:, positions] = each[step]
        joined[step] = row
    return joined
