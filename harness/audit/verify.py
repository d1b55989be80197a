"""Independent verification: stored attacked images, read back, checked, scored anew, compared.

Neither the judge's check of the threat model nor its scoring loop is used here: a mistake there would be
made twice. What is shared is the reading of files and the defended model itself.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from harness.evaluation.runner import Plan, plan
from harness.random import Draws, Role
from harness.results import flags, provenance
from harness.results.paired import right_counts
from harness.results.records import Accuracy, Record, unpack
from harness.results.worst_case import vote_outcomes
from harness.storage import keys, store
from harness.storage.progress import Reporter
from harness.targets.defended import Defended
from harness.targets.source import TargetSource
from harness.types import Dataset, HarnessError, ThreatModel

ROUNDING = 1e-6
"""Excess over the ball, in pixel values, that float32 explains."""
LUCK = 1e-4
"""The chance of an alarm where nothing is wrong, for each comparison of new draws with the record's."""
ELSEWHERE = 0.002
"""Share of replayed outcomes that another machine or library may round differently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one record."""

    key: str
    title: str
    status: Literal["verified", "contradicted", "unverifiable"]
    reasons: tuple[str, ...] = ()
    summary: str = ""


class _Unverifiable(Exception):
    """The evidence is not there; nothing is said against the record."""


def verify(
    workshop: TargetSource, names: Sequence[str], reporter: Reporter, *, draws: int = 10
) -> list[Finding]:
    """A finding for each record named, or for all."""
    wanted = names or workshop.store.names("records")
    findings = []
    with reporter.task("verifying", len(wanted)) as task:
        for name in wanted:
            findings.append(_one(workshop, name, draws))
            task.advance(1)
            workshop.stop.check()
    return findings


def _one(workshop: TargetSource, name: str, draws: int) -> Finding:
    title = ""
    try:
        record = workshop.store.read_json("records", name, Record)
        if record is None:
            raise _Unverifiable(f"there is no record {name} in {workshop.store.results}")
        title = f"{record.cell.attack} on {record.cell.target.label}"
        problems = consistency(record, name)
        current = _planned(record, workshop)
        target, test = _model(current, workshop)
        images, clean, labels, ids, batches = _images(record, workshop, test)
        problems += _threat(record, images, clean, ids)
        rescored = _Rescored(target, images, clean, labels, ids, batches, record, workshop.device)
        problems += rescored.replay()
        found, summary = rescored.again(draws)
        problems += found
        if current.key != record.key:
            summary += "; the attack's code has changed since"
    except _Unverifiable as reason:
        return Finding(key=name, title=title, status="unverifiable", reasons=(str(reason),))
    except HarnessError as error:
        return Finding(key=name, title=title, status="contradicted", reasons=(str(error),))
    status: Literal["verified", "contradicted"] = "contradicted" if problems else "verified"
    return Finding(key=name, title=title, status=status, reasons=tuple(problems), summary=summary)


# --- the record by itself -------------------------------------------------------------------------


def consistency(record: Record, name: str) -> list[str]:
    """Where a record contradicts itself: its key, its numbers against its outcomes, its flags."""
    problems = []
    if record.key != name:
        problems.append(f"it is stored as {name} and says that it is {record.key}")
    if keys.key(record.resolved) != record.key:
        problems.append("its key is not that of what it says was run")
    for field in ("threat", "max_queries"):
        asked, ran = getattr(record.cell, field), getattr(record.resolved, field)
        if keys.canonical(asked) != keys.canonical(ran):
            problems.append(f"its cell and what it says was run differ in {field}")
    for word, stated, outcomes, votes in (
        ("clean", record.clean, record.clean_outcomes, unpack(record.clean_votes, record.count)),
        ("robust", record.robust, record.robust_outcomes, vote_outcomes(record)),
    ):
        problems += [
            f"{word} {field} is {getattr(stated, field):.4f}, its outcomes say {value:.4f}"
            for field, value in _counted(outcomes, votes, record.count).items()
            if abs(getattr(stated, field) - value) > 1e-9
        ]
    fooled = sum(unpack(record.fooled_outcomes, record.count)) / max(1, record.count)
    if abs(record.fooled_on_the_way - fooled) > 1e-9:
        problems.append("the share of images fooled on the way is not that of its outcomes")
    own = {
        flag: reason
        for flag, reason in record.flags.items()
        if flag not in ("model-changed", "process-changed")
    }
    if flags.flags(record) != own:
        problems.append("its flags are not those that its numbers raise")
    return problems


def _counted(outcomes: tuple[str, ...], votes: list[bool], count: int) -> dict[str, float]:
    right = right_counts(outcomes, count)
    n, draws = max(1, count), len(outcomes)
    return {
        "one_draw": sum(unpack(outcomes[0], count)) / n,
        "mean": sum(right) / (n * draws),
        "vote": sum(votes) / n,
        "all_draws": sum(number == draws for number in right) / n,
    }


# --- what it rests on -----------------------------------------------------------------------------


def _planned(record: Record, workshop: TargetSource) -> Plan:
    """The plan of the record's cell today.

    Raises:
        _Unverifiable: the code or the data changed since. HarnessError: the dataset is not the same.
    """
    current = plan(record.cell, workshop)
    then, now = map(msgspec.to_builtins, (record.resolved, current.resolved))
    if then["test"] != now["test"]:
        raise HarnessError(
            "the test images or labels are not those of the record: "
            f"digest {str(now['test'])[:12]}, then {str(then['test'])[:12]}"
        )
    if keys.key(then["target"]) != keys.key(now["target"]):
        raise _Unverifiable(
            "the defended model cannot be made again: "
            f"{_difference(then['target'], now['target'])} changed since commit "
            f"{record.made.get('commit', 'unknown')}, which made it"
        )
    asked, ran = _without_code(now), _without_code(then)
    if keys.key(asked) != keys.key(ran):
        where = _difference(ran, asked)
        raise HarnessError(f"its cell does not ask for what it says was run: {where} differs")
    return current


def _without_code(facts: Any) -> Any:
    if not isinstance(facts, dict):
        return facts
    return {k: _without_code(v) for k, v in facts.items() if k not in ("code", "inner_code")}


def _difference(then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() | now.keys()):
            if keys.key(then.get(name)) != keys.key(now.get(name)):
                inner = _difference(then.get(name), now.get(name))
                return f"{name}.{inner}" if inner else name
    return ""


def _model(current: Plan, workshop: TargetSource) -> tuple[Defended, Dataset]:
    target = current.cell.target
    if not workshop.is_trained(target):
        raise _Unverifiable("the trained weights are not there")
    test = workshop.dataset(target.dataset, "test").first(current.cell.limit)
    return workshop.obtain(target), test


def generation_key(record: Record) -> str:
    """The key of a record's attacked images, from what it says was run."""
    return record.resolved.generation_key


def _images(
    record: Record, workshop: TargetSource, test: Dataset
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """(attacked (N, C, H, W), clean (N, C, H, W), labels (N,), ids (N,), positions of each batch)."""
    folder = workshop.store.progress_folder(generation_key(record))
    attacked = torch.zeros(len(test), *test.shape)
    done = torch.zeros(len(test), dtype=torch.bool)
    batches = []
    for path in sorted(folder.glob("[!.]*.safetensors")):
        tensors, _ = store.read_tensors(path)
        positions = tensors["positions"]
        if bool(done[positions].any()):
            continue  # of a run with another batch size
        attacked[positions] = tensors["images"]
        done[positions] = True
        batches.append(positions)
    if not bool(done.all()):
        missing = int((~done).sum())
        raise _Unverifiable(f"{missing} of {len(test)} attacked images are not there")
    batch = test.batch(slice(0, None))
    digest = hashlib.sha256(batch.ids.numpy().tobytes()).hexdigest()[:16]
    if digest != record.ids or len(test) != record.count:
        raise HarnessError("the record is of other images than its cell asks for")
    return attacked, batch.images, batch.labels, batch.ids, batches


def _threat(record: Record, attacked: Tensor, clean: Tensor, ids: Tensor) -> list[str]:
    """Box and ball in NumPy and float64, against the ids that the record names."""
    problems = []
    digest = hashlib.sha256(attacked.numpy().tobytes()).hexdigest()
    if record.images and digest != record.images:
        problems.append("the attacked images on disk are not those that were judged")
    outside, wild = leaving(attacked.numpy(), clean.numpy(), record.cell.threat)
    broken = (outside | wild) if record.bounded else wild
    named = set(record.invalid)
    for position in np.flatnonzero(broken):
        if int(ids[position]) not in named:
            problems.append(f"image {int(ids[position])} leaves the box or the ball")
    found = {int(ids[position]) for position in np.flatnonzero(broken)}
    problems += [f"image {number} is valid and named invalid" for number in sorted(named - found)]
    return problems[:6]


def leaving(attacked: Any, clean: Any, threat: ThreatModel) -> tuple[Any, Any]:
    """((N,) bool outside the ball, (N,) bool not finite or outside the box), in float64."""
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


# --- scoring --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rescored:
    """The record's images before the defended model again."""

    target: Defended
    attacked: Tensor
    clean: Tensor
    labels: Tensor
    ids: Tensor
    batches: list[Tensor]
    record: Record
    device: torch.device

    def _right(self, images: Tensor, role: Role, draws: int) -> Tensor:
        """(K, N) bool."""
        right = torch.zeros(draws, len(images), dtype=torch.bool)
        for positions in self.batches:
            part, ids = images[positions].to(self.device), self.ids[positions].to(self.device)
            for draw in range(draws):
                place = Draws(self.record.cell.target.seed, ids, role, draw=draw)
                with torch.no_grad():
                    found = self.target.logits(part, place).argmax(dim=1).cpu()
                right[draw, positions] = found == self.labels[positions]
        return right

    def _scored(self, role: Role, draws: int) -> tuple[Tensor, Tensor]:
        """((K, N) bool on the clean images, (K, N) bool on the attacked): what leaves its ball or box
        counts as not attacked."""
        threat = self.record.cell.threat
        outside, wild = leaving(self.attacked.numpy(), self.clean.numpy(), threat)
        unusable = torch.from_numpy(outside | wild)
        clean = self._right(self.clean, role, draws)
        usable = torch.where(unusable[:, None, None, None], self.clean, self.attacked)
        return clean, torch.where(unusable, clean, self._right(usable, role, draws))

    def replay(self) -> list[str]:
        """The record's own draws again: the same outcomes, image by image."""
        record = self.record
        draws = len(record.robust_outcomes)
        problems = []
        for word, now, packed in zip(
            ("clean", "robust"),
            self._scored(Role.SCORE, draws),
            (record.clean_outcomes, record.robust_outcomes),
            strict=True,
        ):
            then = torch.tensor([unpack(row, record.count) for row in packed])
            differs = now != then
            count = int(differs.sum())
            if count > self._allowed(differs.numel()):
                images = self.ids[differs.any(dim=0)].tolist()
                named = ", ".join(map(str, images[:5])) + (", ..." if len(images) > 5 else "")
                problems.append(
                    f"{count} of {differs.numel()} {word} outcomes are others when the record's own "
                    f"draws are repeated: images {named}"
                )
        return problems

    def _allowed(self, outcomes: int) -> int:
        """On the same machine and libraries not one outcome may differ."""
        made = provenance.made(str(self.device), torch.get_num_threads())
        machine = ("device", "threads", "torch", "python")
        if all(self.record.made.get(name) == made[name] for name in machine):
            return 0
        return math.ceil(ELSEWHERE * outcomes)

    def again(self, draws: int) -> tuple[list[str], str]:
        """New draws: the accuracies agree within sampling error. (problems, what was found)."""
        record = self.record
        draws = draws if self.target.randomised else 1
        clean, robust = self._scored(Role.VERIFY, draws)
        problems = []
        for word, now, packed in (
            ("clean", clean, record.clean_outcomes),
            ("robust", robust, record.robust_outcomes),
        ):
            then = torch.tensor(right_counts(packed, record.count))
            problem = disagreement(then, len(packed), now.sum(dim=0), draws)
            if problem and self.target.randomised:
                problems.append(f"{word}: {problem}")
        stated: Accuracy = record.robust
        new = float(robust.float().mean()) if record.count else 0.0
        kind = f"{draws} new draws" if self.target.randomised else "no randomness"
        return problems, f"robust {stated.mean:.1%} in the record, {new:.1%} now ({kind})"


def disagreement(then: Tensor, then_draws: int, now: Tensor, now_draws: int) -> str:
    """Why two (N,) counts of right draws of the same images cannot both be luck; empty if they can.

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
    """Two-sided p-value of Fisher's exact test on two shares of right draws."""
    from scipy.stats import fisher_exact

    counts = [[first, first_draws - first], [second, second_draws - second]]
    return float(fisher_exact(counts).pvalue)
