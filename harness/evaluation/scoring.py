"""Score a cell batch by batch; each batch's scores are kept until the record is written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.cells import guard
from harness.evaluation.generation import Shard
from harness.evaluation.judge import Judgement, judge
from harness.evaluation.summary import Scored
from harness.storage import store
from harness.storage.progress import Reporter
from harness.targets import memory, training
from harness.targets.defended import Defended
from harness.targets.integrity import ModelState
from harness.targets.views import FEWER_LOOKS, LOOKS, Question
from harness.types import Batch, Dataset, ThreatModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """The scoring of one cell's attacked batches."""

    title: str
    target: Defended
    test: Dataset
    threat: ThreatModel
    seed: int
    draws: int
    bounded: bool
    replay: bool
    """True where the attack queried this same model, so that its queries can be repeated."""
    device: torch.device
    folder: Path
    """The folder of the scores. Its name is the key of the cell."""
    reporter: Reporter
    stop: training.Stop
    mend: Callable[[store.DamagedFile], object]
    """Sets damaged scores aside; the batch is then scored again."""

    def score(self, shards: list[Shard]) -> Scored:
        """Return the scores of all images, in the order of the batches.

        Raises:
            Interrupted: a signal came; the scores of finished batches are kept.
            StoreError: scores cannot be read or written.
        """
        store.make_folder(self.folder)
        parts: list[Judgement] = []
        seconds = 0.0
        changed: list[str] = []
        process: list[str] = []
        model = ModelState(self.target)
        with self.reporter.task(f"scoring {self.title}", 2 * self.draws * len(self.test)) as task:
            for shard in shards:
                judged, spent, notes = self._one(shard, model)
                parts.append(judged)
                changed += filter(None, [notes["changed"]])
                process += filter(None, [notes["process"]])
                seconds += spent
                task.advance(2 * self.draws * len(judged))
                self.stop.check()
        return Scored(
            **_joined(parts),
            seconds=seconds,
            changed=guard.named(changed),
            process=guard.named(process),
        )

    def clear(self) -> None:
        """Delete the stored scores, once the record is written."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)

    def _one(self, shard: Shard, model: ModelState) -> tuple[Judgement, float, dict[str, str]]:
        path = self.folder / f"{int(shard.positions[0]):08d}-{len(shard.positions)}.safetensors"
        identity = {"cell": self.folder.name, "batch": _digest(shard)}
        try:
            return self._read(path, identity, len(shard.positions))
        except FileNotFoundError:
            pass
        except store.DamagedFile as error:
            self.mend(error)
        before = time.monotonic()
        batch = shard.batch(self.test, self.device)
        asked = shard.asked if self.replay else ()
        with guard.watched() as process:  # the defense and the model are guests, too
            try:
                judged = self._judge(
                    batch, shard.images, LOOKS if shard.first else FEWER_LOOKS, asked
                )
            finally:
                changed = model.restore()
        fresh = shard.batch(self.test, self.device)
        if not (torch.equal(batch.images, fresh.images) and torch.equal(batch.ids, fresh.ids)):
            process.append("the images that are judged")
        seconds = time.monotonic() - before
        notes = {"changed": guard.named(changed), "process": guard.named(process)}
        store.write_tensors(path, _fields(judged), {**identity, **notes, "seconds": seconds.hex()})
        return judged, seconds, notes

    def _read(
        self, path: Path, identity: dict[str, str], count: int
    ) -> tuple[Judgement, float, dict[str, str]]:
        tensors, metadata = store.read_tensors(path)
        try:
            if any(metadata.get(name) != value for name, value in identity.items()):
                raise ValueError("it holds the scores of another batch")
            judged = Judgement(**tensors)
            shapes = {name: value.shape for name, value in tensors.items()}
            if any(shape[-1:] != (count,) for shape in shapes.values()):
                raise ValueError(f"its shapes are {shapes}")
            notes = {name: metadata[name] for name in ("changed", "process")}
            return judged, float.fromhex(metadata["seconds"]), notes
        except (KeyError, TypeError, ValueError) as error:
            raise store.damaged(path, error) from error

    def _judge(
        self, batch: Batch, images: Tensor, again: int, replayed: Sequence[Question] = ()
    ) -> Judgement:
        """Return the judgement of a batch on the CPU; the batch is halved where memory runs out."""
        work = functools.partial(
            judge,
            self.target,
            batch,
            images.to(batch.images),
            self.threat,
            seed=self.seed,
            draws=self.draws,
            bounded=self.bounded,
            again=again,
            replayed=[_on(question, self.device) for question in replayed],
        )
        try:
            judged = guard.call(work, lambda error: memory.ran_out(error) or self.stop.meant(error))
        except (RuntimeError, MemoryError):
            if len(batch) == 1:
                raise
            memory.release()
        else:
            return Judgement(**{name: value.cpu() for name, value in _fields(judged).items()})
        half = len(batch) // 2
        first, second = slice(None, half), slice(half, None)
        parts = [
            self._judge(batch[first], images[first], again, replayed),
            self._judge(batch[second], images[second], 0),
        ]
        return Judgement(**_joined(parts))


def _on(question: Question, device: torch.device) -> Question:
    draws = dataclasses.replace(question.draws, ids=question.draws.ids.to(device))
    return Question(question.images.to(device), draws, question.logits.to(device))


def _fields(judged: Judgement) -> dict[str, Tensor]:
    return {field.name: getattr(judged, field.name) for field in dataclasses.fields(judged)}


def _joined(parts: list[Judgement]) -> dict[str, Tensor]:
    return {
        field.name: torch.cat([getattr(part, field.name) for part in parts], dim=-1)
        for field in dataclasses.fields(Judgement)
    }


def _digest(shard: Shard) -> str:
    digest = hashlib.sha256(shard.positions.numpy().tobytes())
    digest.update(shard.images.contiguous().numpy().tobytes())
    return digest.hexdigest()
