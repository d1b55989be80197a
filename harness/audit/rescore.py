"""Score stored attacked images on the defended model again: under the record's draws, and under new ones.

The judge's check of the threat model and its scoring loop are not used: a mistake there would be made twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.audit.stored import END, StoredImages
from harness.random import Draws, Role
from harness.results import provenance
from harness.results.records import Record, unpack
from harness.targets.defended import Defended
from harness.types import Batch, ThreatModel

ROUNDING = 2.0**-20
"""The excess over the ball, in pixel values, that float32 explains."""
LUCK = 1e-4
"""The chance of an alarm where nothing is wrong, for each comparison of new draws with the record's."""
ELSEWHERE = 0.002
"""The share of replayed outcomes that another machine or library may round differently."""


def leaving(attacked: Any, clean: Any, threat: ThreatModel) -> tuple[Any, Any]:
    """Return ((N,) bool outside the ball, (N,) bool not finite or outside the box), in float64."""
    flat = attacked.astype(np.float64).reshape(len(attacked), -1)
    origin = clean.astype(np.float64).reshape(len(clean), -1)
    with np.errstate(invalid="ignore"):
        wild = ~np.isfinite(flat).all(axis=1) | (flat < 0).any(axis=1) | (flat > 1).any(axis=1)
        change = flat - origin
        if threat.norm == "linf":
            size = np.abs(change).max(axis=1, initial=0.0)
        else:
            size = np.sqrt((change**2).sum(axis=1))
    return ~(size <= threat.epsilon + ROUNDING), wild


@dataclasses.dataclass(frozen=True)
class Predictions:
    """(K, N) int64 predicted classes under the same K draws."""

    clean: Tensor
    robust: Tensor
    """On the attacked images; on the original where one leaves ball or box."""
    returned: Tensor
    """On the attacked images, however far away; on the original where one is not finite or leaves the box."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescoring:
    """The stored images of a record, and the defended model on which they are scored again."""

    target: Defended
    source: Defended | None
    """The model on which the images were made; None where its weights do not exist."""
    source_seed: int
    stored: StoredImages
    batch: Batch
    """The original images, all in one."""
    record: Record
    device: torch.device

    @functools.cached_property
    def leaving(self) -> tuple[Tensor, Tensor]:
        """(N,) bool each: outside the ball; not finite or outside the box."""
        far, wild = leaving(
            self.stored.images.numpy(), self.batch.images.numpy(), self.record.cell.threat
        )
        return torch.from_numpy(far), torch.from_numpy(wild)

    @functools.cached_property
    def shown(self) -> Tensor:
        """(N, C, H, W) what is scored: the attacked images, the original where one cannot be shown."""
        _, wild = self.leaving
        return torch.where(wild[:, None, None, None], self.batch.images, self.stored.images)

    def predict(self, role: Role, draws: int) -> Predictions:
        """Look at the original and the attacked images again under `draws` draws of a role."""
        far, wild = self.leaving
        seed = self.record.cell.target.seed
        clean = self._looks(self.target, self.batch.images, seed, role, draws)
        returned = self._looks(self.target, self.shown, seed, role, draws)
        return Predictions(clean, torch.where(far | wild, clean, returned), returned)

    def _looks(self, model: Defended, images: Tensor, seed: int, role: Role, draws: int) -> Tensor:
        """Return (K, N) predicted classes, computed in the batches in which the images were made."""
        found = torch.zeros(draws, len(images), dtype=torch.int64)
        for positions in self.stored.batches:
            part = images[positions].to(self.device)
            ids = self.batch.ids[positions].to(self.device)
            for draw in range(draws):
                with torch.no_grad():
                    logits = model.logits(part, Draws(seed, ids, role, draw=draw))
                found[draw, positions] = logits.argmax(dim=1).cpu()
        return found

    def allowed(self, outcomes: int) -> int:
        """Return the number of `outcomes` that may differ: none on the machine that made the record."""
        made = provenance.made(str(self.device), torch.get_num_threads())
        machine = ("device", "threads", "torch", "python")
        if all(self.record.made.get(name) == made[name] for name in machine):
            return 0
        return math.ceil(ELSEWHERE * outcomes)

    def replay(self, predicted: Predictions) -> list[str]:
        """Return the problems found by repeating the record's own draws, image by image."""
        record = self.record
        problems = []
        for word, now, packed in (
            ("clean", predicted.clean, record.clean_outcomes),
            ("robust", predicted.robust, record.robust_outcomes),
        ):
            then = torch.tensor([unpack(row, record.count) for row in packed])
            differs = (now == self.batch.labels) != then
            if problem := self._named(f"{word} outcomes", "the record's own", differs):
                problems.append(problem)
        return problems

    def replay_trace(self) -> list[str]:
        """Compare the stored end of the trace with its own draws repeated, on the model of the images.

        The steps before it cannot be repeated: their images are not stored.
        """
        then = self.stored.trace.get(END)
        if then is None or self.source is None or not bool(self.stored.images.isfinite().all()):
            return []
        now = self._looks(self.source, self.stored.images, self.source_seed, Role.TRACE, len(then))
        problem = self._named(
            "outcomes at the end of the trace",
            "the trace's own",
            (now == self.batch.labels) != then,
        )
        return [problem] if problem else []

    def _named(self, outcomes: str, whose: str, differs: Tensor) -> str:
        """Return which images differ; empty where no more differ than rounding explains."""
        count = int(differs.sum())
        if count <= self.allowed(differs.numel()):
            return ""
        images = self.batch.ids[differs.any(dim=0)].tolist()
        named = ", ".join(map(str, images[:5])) + (", ..." if len(images) > 5 else "")
        return (
            f"{count} of {differs.numel()} {outcomes} are others when {whose} draws are repeated: "
            f"images {named}"
        )

    def again(self, draws: int) -> tuple[list[str], str]:
        """Score on new draws, which must agree within sampling error; return (problems, summary)."""
        record, labels = self.record, self.batch.labels
        draws = draws if self.target.randomised else 1
        predicted = self.predict(Role.VERIFY, draws)
        problems = []
        for word, now, packed in (
            ("clean", predicted.clean == labels, record.clean_outcomes),
            ("robust", predicted.robust == labels, record.robust_outcomes),
        ):
            then = torch.tensor([unpack(row, record.count) for row in packed]).sum(dim=0)
            problem = disagreement(then, len(packed), now.sum(dim=0), draws)
            if problem and self.target.randomised:
                problems.append(f"{word}: {problem}")
        new = float((predicted.robust == labels).float().mean()) if record.count else 0.0
        kind = f"{draws} new draws" if self.target.randomised else "no randomness"
        return problems, f"robust {record.robust.mean:.1%} in the record, {new:.1%} now ({kind})"


def disagreement(then: Tensor, then_draws: int, now: Tensor, now_draws: int) -> str:
    """Return why two (N,) counts of right draws of the same images cannot both be luck; empty if they can.

    Given the images, only the draws are random: under one rate for each image the difference of the two
    means is about normal. Each image is looked at by Fisher's exact test too, so that a single image that
    was exchanged is found among many.
    """
    if not len(then):
        return ""
    rate = (then + now).double() / (then_draws + now_draws)
    # A rate that looks like 0 or 1 may be a little off it.
    variance = (rate * (1 - rate)).clamp_min(0.0) * (1 / then_draws + 1 / now_draws)
    difference = float((then.double() / then_draws - now.double() / now_draws).mean())
    error = math.sqrt(float(variance.sum())) / len(then)
    if abs(difference) > 3.9 * error + 1e-12:  # LUCK, two-sided
        return f"the means differ by {difference:+.2%}, {_times(difference, error)}"
    for image in range(len(then)):
        chance = _fisher(int(then[image]), then_draws, int(now[image]), now_draws)
        if chance < LUCK / len(then):
            return (
                f"image number {image} was right in {int(then[image])} of {then_draws} draws, "
                f"and is in {int(now[image])} of {now_draws}"
            )
    return ""


def _times(difference: float, error: float) -> str:
    return f"{abs(difference) / error:.1f} standard errors" if error else "without any noise"


@functools.cache
def _fisher(first: int, first_draws: int, second: int, second_draws: int) -> float:
    """Return the two-sided p-value of Fisher's exact test on two shares of right draws."""
    from scipy.stats import fisher_exact

    counts = [[first, first_draws - first], [second, second_draws - second]]
    return float(fisher_exact(counts).pvalue)
