"""Verify records independently: each is rebuilt from the stored files, and compared field by field.

The stored attacked images are read back, checked and scored anew; the whole record is computed from them and
from the evidence beside them, without the judge's code. What cannot be rebuilt is named in the finding.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from harness.audit import compare
from harness.audit.looks import looks, settled
from harness.audit.rebuild import rebuild
from harness.audit.rescore import Rescoring, leaving
from harness.audit.stored import MissingEvidence, generation_key, impossible, read
from harness.evaluation.plans import Plan, plan
from harness.random import Role
from harness.results.records import Record, unpack
from harness.storage import keys
from harness.storage.progress import Reporter
from harness.storage.store import DamagedFile, StoreError, read_bytes
from harness.targets.defended import Defended
from harness.targets.source import TargetSource
from harness.targets.training import Interrupted
from harness.types import Dataset, HarnessError

_MOST = 12
"""The most reasons that one finding shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of verifying one record."""

    key: str
    title: str
    status: Literal["verified", "contradicted", "unverifiable"]
    reasons: tuple[str, ...] = ()
    summary: str = ""
    trusted: tuple[str, ...] = ()
    """The fields taken on trust, because nothing on disk can contradict them, each as `field: reason`."""


class _Contradicted(Exception):
    """Raised with reasons that leave nothing to rebuild."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(*reasons)
        self.reasons = reasons


def verify(
    model_store: TargetSource, names: Sequence[str], reporter: Reporter, *, draws: int = 10
) -> list[Finding]:
    """Return a finding for each record named, or for all.

    Args:
        draws: the number of new draws on which each randomised defense is scored.

    Raises:
        Interrupted: a signal came.
    """
    wanted = names or model_store.store.names("records")
    findings = []
    with reporter.task("verifying", len(wanted)) as task:
        for name in wanted:
            findings.append(_one(model_store, name, draws))
            task.advance(1)
            model_store.stop.check()
    return findings


def _one(model_store: TargetSource, name: str, draws: int) -> Finding:
    title = ""
    status: Literal["verified", "contradicted", "unverifiable"] = "contradicted"
    try:
        record = model_store.store.read_json("records", name, Record)
        if record is None:
            raise MissingEvidence(f"there is no record {name} in {model_store.store.results}")
        title = f"{record.cell.attack} on {record.cell.target.label}"
        problems, summary, trusted = _checked(model_store, record, name, draws)
    except Interrupted:
        raise
    except _Contradicted as error:
        return Finding(key=name, title=title, status=status, reasons=error.reasons)
    except (MissingEvidence, StoreError) as error:
        status = "unverifiable"
        return Finding(key=name, title=title, status=status, reasons=(str(error),))
    except HarnessError as error:
        return Finding(key=name, title=title, status=status, reasons=(str(error),))
    except Exception as error:  # a guest's failure says nothing against the record
        status = "unverifiable"
        reason = f"it cannot be scored: {type(error).__name__}: {error}".split("\n")[0]
        return Finding(key=name, title=title, status=status, reasons=(reason,))
    if not problems:
        status = "verified"
    elif len(problems) > _MOST:
        problems = [*problems[:_MOST], f"... and {len(problems) - _MOST} more"]
    return Finding(
        key=name,
        title=title,
        status=status,
        reasons=tuple(problems),
        summary=summary,
        trusted=trusted,
    )


def _checked(
    model_store: TargetSource, record: Record, name: str, draws: int
) -> tuple[list[str], str, tuple[str, ...]]:
    """Check a record from end to end; return (problems, summary of new draws, fields taken on trust)."""
    if problems := identity(record, name):
        raise _Contradicted(*problems)
    current = _planned(record, model_store)
    target, test = _model(current, model_store)
    batch = test.batch(slice(0, None))
    if problems := shape(record, len(test), _facts(current.resolved)["draws"]):
        raise _Contradicted(*problems)
    stored = read(model_store.store, generation_key(record), test)
    source = _source(current, model_store, target)
    again = Rescoring(
        target=target,
        source=source,
        source_seed=current.source.seed,
        stored=stored,
        batch=batch,
        record=record,
        device=model_store.device,
    )
    replay = current.source == current.cell.target
    # Twice, as one that counts its calls may answer alike the first time.
    taken = [looks(again, replay=replay)]
    predicted = again.predict(Role.SCORE, len(record.robust_outcomes))
    taken.append(looks(again, replay=replay))
    slack = again.allowed(predicted.robust.numel())
    expected = rebuild(
        record,
        current,
        test,
        batch,
        stored,
        predicted,
        looks=settled(record.looks, taken, slack=slack),
        randomised=target.randomised,
        slack=slack,
    )
    same_code = current.key == record.key
    if not same_code:  # today's class may declare otherwise
        own = ("access", "adaptive", "bounded", "transferred")
        expected = dataclasses.replace(expected, **{each: getattr(record, each) for each in own})
    problems = []
    if expected.images != record.images:
        problems.append("the attacked images on disk are not those that were judged")
    problems += _threat(record, stored.images, batch.images, batch.ids, expected.bounded)
    problems += impossible(stored, record.access)
    problems += again.replay(predicted) + again.replay_trace()
    problems += compare.differences(_as_stored(model_store, record), compare.plain(expected))
    found, summary = again.again(draws)
    problems += found
    if not same_code:
        summary += "; the attack's code has changed since"
    limit = record.cell.limit
    everything = len(model_store.dataset(record.cell.target.dataset, "test"))
    trusted = compare.on_trust(
        record,
        randomised=target.randomised,
        whole=limit is None or limit > everything,
        same_code=same_code,
        source=source is not None,
        same_looks=record.looks in taken,
    )
    return problems, summary, trusted


# --- the record by itself -------------------------------------------------------------------------


def identity(record: Record, name: str) -> list[str]:
    """Return the contradictions between a record's name, its key, its cell and the run that it states."""
    problems = []
    if record.key != name:
        problems.append(f"it is stored as {name} and says that it is {record.key}")
    if keys.key(record.resolved) != record.key:
        problems.append("its key is not that of what it says was run")
    for kind in ("model", "defense"):  # what is built from them passes such a word over
        if getattr(record.cell.target, kind).inner is not None:
            problems.append(f"its cell names a {kind} that wraps another: none does")
    facts = _facts(record.resolved)
    for field in ("threat", "max_queries"):
        if field not in facts or keys.key(getattr(record.cell, field)) != keys.key(facts[field]):
            problems.append(f"its cell and what it says was run differ in {field}")
    return problems


def shape(record: Record, images: int, draws: int) -> list[str]:
    """Return the outcomes that are not of this number of images and draws, so that nothing can be counted."""
    problems = []
    if record.count != images:
        problems.append(f"count is {record.count}: its cell asks for {images} images")
        return problems
    for word in ("clean", "robust"):
        rows = getattr(record, f"{word}_outcomes")
        if len(rows) != draws:
            problems.append(f"{word}_outcomes are of {len(rows)} draws: {draws} were scored")
        for packed in (*rows, getattr(record, f"{word}_votes")):
            try:
                unpack(packed, images)
            except ValueError as error:
                problems.append(f"{word} outcomes or votes cannot be read: {error}")
    return problems


def _as_stored(model_store: TargetSource, record: Record) -> Any:
    """Return the record's file as it lies there, with entries that no record has."""
    path = model_store.store.json_path("records", record.key)
    return json.loads(read_bytes(path))["value"]


# --- the basis of the record ----------------------------------------------------------------------


def _facts(resolved: Any) -> dict[str, Any]:
    """Return the run that a record states, as plain data."""
    facts: dict[str, Any] = msgspec.to_builtins(resolved)
    return facts


def _planned(record: Record, model_store: TargetSource) -> Plan:
    """Return the plan of the record's cell today.

    Raises:
        MissingEvidence: the code or the data has changed since.
        HarnessError: the dataset is not the same, or the cell asks for something else.
    """
    current = plan(record.cell, model_store)
    then, now = _facts(record.resolved), _facts(current.resolved)
    if then["test"] != now["test"]:
        raise HarnessError(
            "the test images or labels are not those of the record: "
            f"digest {str(now['test'])[:12]}, then {str(then['test'])[:12]}"
        )
    # What the cell asks for comes first: that other code would serve it now excuses no other question.
    asked, ran = _without_code(now), _without_code(then)
    if keys.key(asked) != keys.key(ran):
        where = _difference(ran, asked)
        if where.endswith(("engine", "dataset.digest")):
            raise MissingEvidence(_unmade(record, where))
        raise HarnessError(f"its cell does not ask for what it says was run: {where} differs")
    if keys.key(then["target"]) != keys.key(now["target"]):
        where = _difference(then["target"], now["target"])
        raise MissingEvidence(_unmade(record, where))
    return current


def _unmade(record: Record, where: str) -> str:
    commit = record.made.get("commit", "unknown")
    return (
        f"the defended model cannot be made again: {where} changed since commit {commit}, "
        "which made it"
    )


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


def _model(current: Plan, model_store: TargetSource) -> tuple[Defended, Dataset]:
    target = current.cell.target
    if not model_store.is_trained(target):
        raise MissingEvidence("the trained weights are not there")
    test = model_store.dataset(target.dataset, "test").first(current.cell.limit)
    try:
        return model_store.obtain(target), test
    except DamagedFile as error:
        raise MissingEvidence(f"the trained weights cannot be read: {error}") from error


def _source(current: Plan, model_store: TargetSource, target: Defended) -> Defended | None:
    """Return the model on which the images were made; None where its weights do not exist."""
    if current.source == current.cell.target:
        return target
    if not model_store.is_trained(current.source):
        return None
    try:
        return model_store.obtain(current.source)
    except DamagedFile:
        return None


def _threat(record: Record, attacked: Any, clean: Any, ids: Any, bounded: bool) -> list[str]:
    """Return the images that break the threat model though the record does not say so, and the reverse."""
    far, wild = leaving(attacked.numpy(), clean.numpy(), record.cell.threat)
    broken = set(ids.numpy()[far | wild if bounded else wild].tolist())
    named = set(record.invalid)
    problems = [f"image {number} leaves the box or the ball" for number in sorted(broken - named)]
    problems += [f"image {number} is valid and named invalid" for number in sorted(named - broken)]
    return problems[:6]
