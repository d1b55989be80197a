"""Summarise predictions in a record."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import torch
from torch import Tensor, nn

from harness.cells import guard
from harness.cells.cells import Cell
from harness.evaluation.generation import Shard
from harness.evaluation.judge import LOOKS, Judgement
from harness.registry import defenses
from harness.results import flags, provenance
from harness.results.records import Accuracy, Record, TracePoint, pack
from harness.results.resolved import Resolved
from harness.spec import build
from harness.types import Attack, Dataset, Defense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(Judgement):
    """The judge's results for all images of a cell."""

    seconds: float
    changed: str = ""
    """The changes to the model while it was judged; empty where there are none."""
    process: str = ""


def accuracy(predicted: Tensor, labels: Tensor, classes: int) -> Accuracy:
    """Return the accuracy of (K, N) predictions, counted in four ways, for labels (N,)."""
    count = len(labels)
    if count == 0:
        return Accuracy(one_draw=0.0, mean=0.0, vote=0.0, all_draws=0.0, count=0)
    right = predicted == labels
    return Accuracy(
        one_draw=_share(right[0]),
        mean=_share(right),
        vote=_share(votes(predicted, labels, classes)),
        all_draws=_share(right.all(dim=0)),
        count=count,
    )


def votes(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return (N,) bool: whether the true label is the single most frequent of the (K, N) predictions."""
    counts = nn.functional.one_hot(predicted, classes).sum(dim=0)
    own = counts.gather(1, labels[:, None])[:, 0]
    others = counts.scatter(1, labels[:, None], -1).amax(dim=1)
    return own > others


def images_digest(shards: list[Shard]) -> str:
    """Return the SHA-256 of the stored attacked images, in the dataset's order, however they were batched."""
    if not shards:
        return hashlib.sha256().hexdigest()
    order = torch.cat([shard.positions for shard in shards]).argsort()
    images = torch.cat([shard.images for shard in shards])[order]
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def _trace(shards: list[Shard], last_step: int) -> tuple[TracePoint, ...]:
    """Return the accuracy by step, and the comparison of each step with the end, image by image."""
    steps = sorted({step for shard in shards for step in shard.trace if step > 0})
    if not steps:
        return ()
    joined = {
        step: torch.cat([shard.trace[step] for shard in shards], dim=1) for step in [*steps, -1]
    }
    end = joined[-1].sum(dim=0)
    return tuple(
        TracePoint(
            step=step if step > 0 else last_step,
            accuracy=_share(right),
            fell=int((right.sum(dim=0) > end).sum()),
            rose=int((right.sum(dim=0) < end).sum()),
        )
        for step, right in joined.items()
    )


def _share(right: Tensor) -> float:
    return int(right.sum()) / right.numel()


def record(
    *,
    key: str,
    cell: Cell,
    attack: Attack,
    resolved: Resolved,
    test: Dataset,
    shards: list[Shard],
    scored: Scored,
    device: torch.device,
) -> Record:
    """Return the record of a cell, with everything that tables, audits and reports need."""
    labels, classes = scored.labels, len(test.classes)
    defense: Defense = build(cell.target.defense, defenses)
    forwards = _join(shards, "forwards").double()
    backwards = _join(shards, "backwards").double()
    dead = _join(shards, "dead_gradients").double()
    fooled = _join(shards, "first_fooled") >= 0
    looked = _join(shards, "fooled_looks") > 0
    # In the ball or not: how far a minimum-norm attack had to go is what it finds.
    wrong = (scored.returned != labels).any(dim=0)
    l2 = scored.l2[wrong & torch.isfinite(scored.l2)]
    linf = scored.linf[wrong & torch.isfinite(scored.linf)]
    found = Record(
        key=key,
        cell=cell,
        resolved=resolved,
        classes=classes,
        count=len(labels),
        ids=hashlib.sha256(scored.ids.numpy().tobytes()).hexdigest()[:16],
        clean=accuracy(scored.clean, labels, classes),
        robust=accuracy(scored.adversarial, labels, classes),
        returned=accuracy(scored.returned, labels, classes),
        clean_outcomes=tuple(pack((row == labels).tolist()) for row in scored.clean),
        robust_outcomes=tuple(pack((row == labels).tolist()) for row in scored.adversarial),
        clean_votes=_packed_votes(scored.clean, labels, classes),
        robust_votes=_packed_votes(scored.adversarial, labels, classes),
        access=attack.access,
        adaptive=attack.adaptive,
        bounded=attack.bounded,
        transferred=attack.source is not None,
        randomised=defense.is_random,
        images=images_digest(shards),
        fooled_on_the_way=_share(fooled) if len(fooled) else 0.0,
        fooled_outcomes=pack(fooled.tolist()),
        fooled_once_a_step=_share(looked) if len(looked) else 0.0,
        trace=_trace(shards, getattr(attack, "steps", 0)),
        distances={
            name: value  # JSON knows neither NaN nor infinity: what is not known is left out
            for name, value in (
                ("median_linf", float(linf.median()) if len(linf) else math.nan),
                ("median_l2", float(l2.median()) if len(l2) else math.nan),
                ("largest_linf", float(scored.linf.max()) if len(labels) else math.nan),
            )
            if math.isfinite(value)
        },
        passes={
            "forwards": float(forwards.mean()) if len(labels) else 0.0,
            "backwards": float(backwards.mean()) if len(labels) else 0.0,
            "dead_gradients": float(dead.sum() / backwards.sum().clamp_min(1)),
            "dead_pixels": float(
                _join(shards, "dead_pixels").sum()
                / _join(shards, "probed_pixels").sum().clamp_min(1)
            ),
        },
        notes=_notes(cell, defense),
        looks={name: int(((scored.looks & bit) != 0).sum()) for name, bit in LOOKS.items()},
        invalid=tuple(scored.ids[scored.invalid != 0].tolist()),
        made={
            **provenance.made(str(device), torch.get_num_threads()),
            **defense.computed_by(str(device)),
        },
    )
    changed, process = (
        guard.named([part for part in (*parts, last) if part])
        for parts, last in (
            ([shard.changed for shard in shards], scored.changed),
            ([shard.process for shard in shards], scored.process),
        )
    )
    raised = flags.flags(found, model_changed=changed, process_changed=process)
    return dataclasses.replace(found, flags=raised)


def _notes(cell: Cell, defense: Defense) -> tuple[str, ...]:
    if cell.draws == 1 or not defense.randomised or defense.is_random:
        return ()
    return (f"one scoring draw in place of {cell.draws}: all looks at an image are alike",)


def _packed_votes(predicted: Tensor, labels: Tensor, classes: int) -> str:
    return pack(votes(predicted, labels, classes).tolist()) if len(labels) else ""


def _join(shards: list[Shard], name: str) -> Tensor:
    parts = [getattr(shard.evidence, name) for shard in shards]
    return torch.cat(parts) if parts else torch.zeros(0)
