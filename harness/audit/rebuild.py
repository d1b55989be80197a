"""Compute a record again from the stored batches and the model's answers, with its own way of counting.

Nothing of the judge's summary is used. What the record's own outcomes tell is counted from them (they are
compared with the model's answers elsewhere, with the rounding of another machine allowed for); all else comes
from the stored images, the evidence beside them, the dataset and the plugins' classes. The rules of the flags
are shared, since they are what a flag is; what they look at is rebuilt here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.audit.rescore import Predictions, leaving
from harness.audit.stored import END, StoredImages
from harness.cells import plugins
from harness.evaluation.plans import Plan
from harness.results import flags
from harness.results.records import Accuracy, Record, TracePoint, pack, unpack
from harness.types import Batch, Dataset


def rebuild(
    record: Record,
    current: Plan,
    test: Dataset,
    batch: Batch,
    stored: StoredImages,
    predicted: Predictions,
    *,
    looks: Mapping[str, int],
    randomised: bool,
    slack: int = 0,
) -> Record:
    """Return the record as it must be. Only what was asked and who made it is taken over.

    Args:
        batch: all images of `test`.
        predicted: under the record's own draws.
        looks: what came of asking the defense again.
        randomised: whether two looks at one image by the target may differ.
        slack: how many outcomes another machine may have rounded differently. What the record states
            within it, or within the rounding of a sum of squares, stands.
    """
    attack, count = current.attack, record.count
    clean, robust = _rows(record.clean_outcomes, count), _rows(record.robust_outcomes, count)
    wrong = (predicted.returned != batch.labels).any(dim=0).numpy()
    fooled = (stored.first_fooled >= 0).numpy()
    steps = getattr(attack, "steps", 0)
    expected = Record(
        key=record.key,
        cell=record.cell,
        resolved=record.resolved,
        made=record.made,
        looks=looks,
        notes=_notes(record, current),
        classes=len(test.classes),
        count=len(test),
        ids=hashlib.sha256(batch.ids.numpy().tobytes()).hexdigest()[:16],
        clean=_accuracy(clean, _bits(record.clean_votes, count)),
        robust=_accuracy(robust, _bits(record.robust_votes, count)),
        returned=_near(
            record.returned,
            _accuracy(
                (predicted.returned == batch.labels).numpy(),
                votes(predicted.returned, batch.labels),
            ),
            slack,
        ),
        clean_outcomes=tuple(map(pack, clean.tolist())),
        robust_outcomes=tuple(map(pack, robust.tolist())),
        clean_votes=_near_votes(record.clean_votes, votes(predicted.clean, batch.labels), slack),
        robust_votes=_near_votes(record.robust_votes, votes(predicted.robust, batch.labels), slack),
        access=attack.access,
        adaptive=attack.adaptive,
        bounded=attack.bounded,
        transferred=attack.source is not None,
        randomised=randomised,
        images=hashlib.sha256(stored.images.numpy().tobytes()).hexdigest(),
        fooled_on_the_way=_share(fooled),
        fooled_outcomes=pack(fooled.tolist()),
        fooled_once_a_step=_share((stored.fooled_looks > 0).numpy()),
        trace=_trace(stored.trace, steps),
        distances={
            name: stated
            if (stated := record.distances.get(name)) is not None and _between(stated, *bounds)
            else bounds[1]
            for name, bounds in _distances(stored.images, batch.images, wrong, slack).items()
        },
        passes={
            "forwards": _mean(stored.forwards),
            "backwards": _mean(stored.backwards),
            "dead_gradients": int(stored.dead_gradients.sum())
            / max(1, int(stored.backwards.sum())),
            "dead_pixels": int(stored.dead_pixels.sum()) / max(1, int(stored.probed_pixels.sum())),
        },
        invalid=_invalid(stored.images, batch, record, attack.bounded),
    )
    changed, process = (
        _changed(record.flags.get(flag, ""), parts)
        for flag, parts in (("model-changed", stored.changed), ("process-changed", stored.process))
    )
    raised = flags.flags(expected, model_changed=changed, process_changed=process)
    return dataclasses.replace(expected, flags=raised)


def _changed(stated: str, parts: Sequence[str]) -> str:
    """Return what a guest changed, as the record must say it: all that the batches name.

    What changed while the record was scored is noted nowhere else, so more than that stands.
    """
    words = stated.partition(": ")[2]
    return words if all(part in words for part in parts) else ", ".join(parts)


def _notes(record: Record, current: Plan) -> tuple[str, ...]:
    """Return what the record must say of draws that were asked for and not made."""
    asked = record.cell.draws
    defense = plugins.defense(record.cell.target.defense)
    if asked == 1 or current.resolved.draws == asked or not defense.randomised:
        return ()
    return (f"one scoring draw in place of {asked}: all looks at an image are alike",)


def votes(predicted: Tensor, labels: Tensor) -> Any:
    """Return (N,) bool: the label is predicted in more of the (K, N) draws than any other class."""
    found = []
    for column, label in zip(predicted.T.numpy(), labels.tolist(), strict=True):
        counts = np.bincount(column, minlength=label + 1)
        own = counts[label]
        counts[label] = -1
        found.append(bool(own > counts.max(initial=0)))
    return np.array(found, dtype=bool)


def _rows(packed: tuple[str, ...], count: int) -> Any:
    """Return (K, N) bool outcomes."""
    return np.array([unpack(row, count) for row in packed], dtype=bool).reshape(len(packed), count)


def _bits(packed: str, count: int) -> Any:
    return np.array(unpack(packed, count), dtype=bool)


def _accuracy(right: Any, voted: Any) -> Accuracy:
    """Count (K, N) outcomes and (N,) votes."""
    return Accuracy(
        one_draw=_share(right[0]),
        mean=_share(right),
        vote=_share(voted),
        all_draws=_share(right.all(axis=0)),
        count=right.shape[1],
    )


def _share(right: Any) -> float:
    return int(np.count_nonzero(right)) / max(1, int(right.size))


def _mean(counted: Tensor) -> float:
    return int(counted.sum()) / max(1, len(counted))


def _between(stated: float, low: float, _: float, high: float) -> bool:
    """Say whether a value lies between two, with the rounding of a sum of squares in float32."""
    return low <= stated <= high or any(
        math.isclose(stated, each, rel_tol=1e-5) for each in (low, high)
    )


def _near(stated: Accuracy, rebuilt: Accuracy, slack: int) -> Accuracy:
    """Return what is stated where so many other outcomes explain the difference, else the rebuilt."""
    names = ("one_draw", "mean", "vote", "all_draws")
    away = max(abs(getattr(stated, name) - getattr(rebuilt, name)) for name in names)
    close = stated.count == rebuilt.count and away * rebuilt.count <= slack
    return stated if close and slack else rebuilt


def _near_votes(stated: str, rebuilt: Any, slack: int) -> str:
    """Return the packed votes that are stated where so many other votes explain the difference."""
    own = _bits(stated, len(rebuilt))
    return pack((own if int((own != rebuilt).sum()) <= slack else rebuilt).tolist())


def _trace(trace: dict[int, Tensor], last_step: int) -> tuple[TracePoint, ...]:
    """Return the accuracy by step, and how many images the end left right in fewer or more draws."""
    steps = sorted(step for step in trace if step > 0)
    if not steps or END not in trace:
        return ()
    end = trace[END].sum(dim=0)
    points = []
    for step in (*steps, END):
        right = trace[step].sum(dim=0)
        points.append(
            TracePoint(
                step=last_step if step == END else step,
                accuracy=_share(trace[step].numpy()),
                fell=int((end < right).sum()),
                rose=int((end > right).sum()),
            )
        )
    return tuple(points)


def _distances(
    attacked: Tensor, clean: Tensor, wrong: Any, slack: int
) -> dict[str, tuple[float, float, float]]:
    """Return (lowest, found, highest) of the median distances of the images that are wrong, and the largest.

    What is not finite is left out, as JSON knows neither NaN nor infinity.

    Args:
        wrong: (N,) bool, as returned and in any draw.
        slack: how many of these another machine may count otherwise, which moves a median in their order.
    """
    change = np.nan_to_num((attacked - clean).flatten(1).numpy(), nan=np.inf)
    linf = np.abs(change).max(axis=1, initial=0.0).astype(np.float64)
    with np.errstate(over="ignore"):
        l2 = np.sqrt((change.astype(np.float64) ** 2).sum(axis=1))
    l2 = np.where(l2 > np.finfo(np.float32).max, np.inf, l2)
    found = {}
    for name, sizes in (("median_linf", linf), ("median_l2", l2)):
        some = np.sort(sizes[wrong & np.isfinite(sizes)])
        if len(some):
            middle, last = (len(some) - 1) // 2, len(some) - 1
            places = (max(0, middle - slack), middle, min(last, middle + slack))
            low, median, high = (float(some[place]) for place in places)
            found[name] = (low, median, high)
    largest = float(linf.max(initial=0.0))
    if np.isfinite(largest):
        found["largest_linf"] = (largest, largest, largest)
    return found


def _invalid(attacked: Tensor, batch: Batch, record: Record, bounded: bool) -> tuple[int, ...]:
    """Return the ids of images that break the threat model; an unbounded attack may leave the ball."""
    far, wild = leaving(attacked.numpy(), batch.images.numpy(), record.cell.threat)
    return tuple(batch.ids[torch.from_numpy(far | wild if bounded else wild)].tolist())
