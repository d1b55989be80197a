"""From predictions to a record."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from harness import audit, provenance
from harness.generation import Shard
from harness.records import Accuracy, Cell, Record, TracePoint, pack
from harness.types import Attack, Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """The judge's findings for all images of a cell: `Judgement`'s fields, joined."""

    ids: Tensor
    labels: Tensor
    clean: Tensor
    adversarial: Tensor
    returned: Tensor
    linf: Tensor
    l2: Tensor
    invalid: Tensor
    seconds: float


def accuracy(predicted: Tensor, labels: Tensor, classes: int) -> Accuracy:
    """The four ways to count (K, N) predictions."""
    count = len(labels)
    if count == 0:
        return Accuracy(one_draw=0.0, mean=0.0, vote=0.0, all_draws=0.0, count=0)
    right = predicted == labels
    votes = nn.functional.one_hot(predicted, classes).sum(dim=0)
    own = votes.gather(1, labels[:, None])[:, 0]
    others = votes.scatter(1, labels[:, None], -1).amax(dim=1)
    return Accuracy(
        one_draw=_share(right[0]),
        mean=_share(right),
        vote=_share(own > others),
        all_draws=_share(right.all(dim=0)),
        count=count,
    )


def _share(right: Tensor) -> float:
    return int(right.sum()) / right.numel()


def record(
    *,
    key: str,
    cell: Cell,
    attack: Attack,
    resolved: dict[str, Any],
    test: Dataset,
    shards: list[Shard],
    scored: Scored,
    device: torch.device,
) -> Record:
    """All that a cell's table, audit and report will ask for."""
    labels, classes = scored.labels, len(test.classes)
    forwards = _join(shards, "forwards").double()
    backwards = _join(shards, "backwards").double()
    dead = _join(shards, "dead_gradients").double()
    fooled = _join(shards, "first_fooled") >= 0
    steps = sorted({step for shard in shards for step in shard.trace if step > 0})
    attack_steps = getattr(attack, "steps", 0)
    trace = tuple(
        TracePoint(
            step=step if step > 0 else attack_steps,
            accuracy=_share(torch.cat([shard.trace[step] for shard in shards], dim=1)),
        )
        for step in [*steps, *([-1] if steps else [])]
    )
    wrong = (scored.adversarial != labels).any(dim=0)
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
        fooled_on_the_way=_share(fooled) if len(fooled) else 0.0,
        fooled_outcomes=pack(fooled.tolist()),
        trace=trace,
        distances={
            "median_linf": float(linf.median()) if len(linf) else float("nan"),
            "median_l2": float(l2.median()) if len(l2) else float("nan"),
            "largest_linf": float(scored.linf.max()) if len(labels) else float("nan"),
        },
        passes={
            "forwards": float(forwards.mean()) if len(labels) else 0.0,
            "backwards": float(backwards.mean()) if len(labels) else 0.0,
            "dead_gradients": float(dead.sum() / backwards.sum().clamp_min(1)),
        },
        invalid=tuple(scored.ids[scored.invalid != 0].tolist()),
        made=provenance.made(str(device), torch.get_num_threads()),
    )
    changed = any(shard.changed for shard in shards)
    return dataclasses.replace(found, flags=audit.flags(found, model_changed=changed))


def _join(shards: list[Shard], name: str) -> Tensor:
    parts = [getattr(shard.evidence, name) for shard in shards]
    return torch.cat(parts) if parts else torch.zeros(0)
