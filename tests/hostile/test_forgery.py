"""Every field of a record, changed one at a time with the checksum put right, is contradicted by `verify` or
named as taken on trust. The fields are those that `Record` has, so that a new one is tried too."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from harness.audit import verify
from harness.audit.stored import END, generation_key
from harness.registry import load_file
from harness.results import flags
from harness.results.records import Record
from harness.storage import store
from harness.storage.store import Store

zoo = load_file(Path(__file__).parents[1] / "helpers" / "zoo.py")

TRUSTED = {"made", "cell.target.training.paper_epochs", "cell.draws"}
"""All that `verify` may believe of these records; `cell.draws` of the deterministic one alone."""

KINDS = {
    "deterministic": ("vanilla", "pgd(steps=4)"),
    "randomised": (zoo.named("Noisy"), zoo.named("Creeps")),
    "outside": ("vanilla", zoo.named("Overreaches")),
}

Edit = tuple[str, Any]
"""A path and the whole record after the edit there."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One honest record, and the model_store that verifies it."""

    model_store: Any
    record: Record

    @property
    def path(self) -> Path:
        return self.model_store.store.json_path("records", self.record.key)

    def verdict(self) -> verify.Finding:
        model_store = self.model_store
        (finding,) = verify.verify(model_store, [self.record.key], model_store.reporter, draws=2)
        return finding

    def forged(self, value: Any) -> verify.Finding:
        """The finding on another content of the record's file, with a right checksum."""
        honest = self.path.read_bytes()
        try:
            store.write_atomic(self.path, store.render_json(value))
            return self.verdict()
        finally:
            self.path.write_bytes(honest)


@pytest.fixture(scope="module", params=KINDS)
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("forgery") / "runs"
    defense, attack = KINDS[request.param]
    zoo.measured(folder, defense, [attack], epsilon=0.1, limit=24, draws=3)
    model_store = zoo.Ready(
        store=Store(folder),
        device=torch.device("cpu"),
        reporter=zoo.Silent(),
        stop=zoo.training.Stop(),
    )
    (name,) = model_store.store.names("records")
    record = model_store.store.read_json("records", name, Record)
    assert record is not None
    path = model_store.store.checkpoint_path(model_store.key(record.cell.target))
    store.write_tensors(path, zoo.weights(), {"key": "there"})
    return Case(model_store, record)


def plain(record: Record) -> Any:
    return json.loads(msgspec.json.encode(record))


def edits(whole: Any, field: str) -> Iterator[Edit]:
    """Every edit below one field: each value another, each entry gone, one more entry in each place."""

    def inside(steps: tuple[Any, ...]) -> Iterator[Edit]:
        holder = functools.reduce(lambda value, step: value[step], steps[:-1], whole)
        value = holder[steps[-1]]
        for other in others(value):
            yield edited(steps, lambda holder, step, new=other: holder.__setitem__(step, new))
        yield edited(steps, lambda holder, step: holder.__delitem__(step))
        if isinstance(value, dict):
            yield edited((*steps, "forged"), lambda holder, step: holder.__setitem__(step, 1))
            for name in value:
                yield from inside((*steps, name))
        if isinstance(value, list):
            more = value[-1] if value else 7
            yield edited((*steps, len(value)), lambda holder, step: holder.append(more))
            for number in range(len(value)):
                yield from inside((*steps, number))

    def edited(steps: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Edit:
        forged = copy.deepcopy(whole)
        change(functools.reduce(lambda value, step: value[step], steps[:-1], forged), steps[-1])
        return ".".join(map(str, steps)), forged

    yield from inside((field,))


def others(value: Any) -> list[Any]:
    """Values of the same type, so that the file still reads as a record."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 0 if value else 2]
    if isinstance(value, float):
        return [value + 0.01, 0.0 if value else 0.5]
    if isinstance(value, str):
        turned = ("A" if value[:1] != "A" else "g") + value[1:]
        return [value + "x", turned, *([""] if value else []), "labels", "none", "float32"]
    return [1, "forged"] if value is None else [type(value)()] if value else []


def believed(path: str, finding: verify.Finding) -> bool:
    named = {line.split(":")[0] for line in finding.trusted}
    assert all(each.startswith("stored batches") or each in TRUSTED for each in named)
    return any(path == each or path.startswith(f"{each}.") for each in named)


def test_the_honest_record_is_verified(case: Case) -> None:
    finding = case.verdict()
    assert finding.status == "verified", finding.reasons
    named = {line.split(":")[0] for line in finding.trusted}
    assert {"made", "stored batches"} <= named
    assert ("cell.draws" in named) is not case.record.randomised


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(Record)])
def test_one_edit_is_contradicted_or_named(case: Case, field: str) -> None:
    whole = plain(case.record)
    tried = 0
    for path, forged in edits(whole, field):
        if forged == whole:
            continue
        tried += 1
        finding = case.forged(forged)
        held = finding.status == "contradicted" or believed(path, finding)
        assert held, (path, finding)
        if field in ("flags", "cell", "resolved"):
            continue
        try:  # flags that follow from the forged numbers do not help
            record = msgspec.convert(forged, Record)
            matching = plain(dataclasses.replace(record, flags=flags.flags(record)))["flags"]
        except (msgspec.ValidationError, ArithmeticError, LookupError, ValueError):
            continue
        if matching != whole["flags"]:
            finding = case.forged({**forged, "flags": matching})
            held = finding.status == "contradicted" or believed(path, finding)
            assert held, (path, "with flags to match", finding)
    assert tried


def test_a_field_that_no_record_has_is_contradicted(case: Case) -> None:
    finding = case.forged({**plain(case.record), "verified_by": "everybody"})
    assert any("verified_by" in reason for reason in finding.reasons), finding


# --- batches --------------------------------------------------------------------------------------


@pytest.fixture
def batch(case: Case) -> Iterator[Path]:
    """The file of the one attacked batch; it is put back afterwards."""
    folder = case.model_store.store.progress_folder(generation_key(case.record))
    (path,) = folder.glob("*.safetensors")
    honest = path.read_bytes()
    yield path
    path.write_bytes(honest)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    tensors, metadata = store.read_tensors(path)
    change(tensors, metadata)
    store.write_tensors(path, tensors, metadata)


@pytest.mark.parametrize("name", ["forwards", "backwards", "dead_gradients", "first_fooled"])
def test_edited_evidence_contradicts_the_record(case: Case, batch: Path, name: str) -> None:
    rewrite(batch, lambda tensors, _: tensors[f"evidence.{name}"].add_(2))
    finding = case.verdict()
    assert finding.status == "contradicted"
    assert any(word in str(finding.reasons) for word in ("passes", "fooled")), finding


def test_a_change_of_the_victim_cannot_be_taken_back_in_the_batch_alone(
    case: Case, batch: Path
) -> None:
    rewrite(batch, lambda _, metadata: metadata.update(changed="1"))
    assert any("model-changed" in reason for reason in case.verdict().reasons)


def test_impossible_evidence_is_seen_with_a_record_to_match(case: Case, batch: Path) -> None:
    def more(tensors: dict[str, Any], _: dict[str, str]) -> None:
        tensors["evidence.dead_gradients"] = tensors["evidence.backwards"] + 1

    rewrite(batch, more)
    assert any("more dead gradients" in reason for reason in case.verdict().reasons)


def test_the_end_of_the_trace_is_scored_again(case: Case, batch: Path) -> None:
    """Also where the record was changed with it."""
    if not case.record.trace:
        assert f"trace.{END}" not in store.read_tensors(batch)[0]
        return
    rewrite(batch, lambda tensors, _: tensors[f"trace.{END}"].logical_not_())
    assert any("end of the trace" in reason for reason in case.verdict().reasons)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors.pop("evidence.forwards"),
        lambda tensors, _: tensors.update(positions=tensors["positions"] + 1),
        lambda tensors, _: tensors.update(images=tensors["images"].double()),
        lambda tensors, _: tensors.update({"trace.soon": tensors["images"].clone()}),
        lambda tensors, _: tensors.update({"trace.1": tensors["positions"].clone()}),
        lambda _, metadata: metadata.update(generation="another"),
        lambda _, metadata: metadata.pop("changed"),
        lambda _, metadata: metadata.update(asked=""),
        lambda _, metadata: metadata.update(asked="0,0"),
        lambda tensors, _: tensors.pop("asked.0.logits"),
        lambda tensors, _: tensors["asked.0.ids"].add_(10**9),
    ],
)
def test_a_file_that_is_no_batch_is_contradicted(
    case: Case, batch: Path, change: Callable[..., None]
) -> None:
    rewrite(batch, change)
    finding = case.verdict()
    assert finding.status == "contradicted" and "is damaged" in finding.reasons[0], finding


def test_questions_cannot_be_taken_away(case: Case, batch: Path) -> None:
    def drop(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["asked"] = ""
        for name in [each for each in tensors if each.startswith("asked")]:
            del tensors[name]

    rewrite(batch, drop)
    assert any("hold no question" in reason for reason in case.verdict().reasons)


def test_other_answers_to_the_attack_contradict_the_looks(case: Case, batch: Path) -> None:
    rewrite(batch, lambda tensors, _: tensors["asked.0.logits"].neg_())
    assert any("looks.attack" in reason for reason in case.verdict().reasons)


def test_images_that_change_places_are_found(case: Case, batch: Path) -> None:
    rewrite(batch, lambda tensors, _: tensors.update(images=tensors["images"].flip(0)))
    finding = case.verdict()
    assert finding.status == "contradicted"
    assert any("not those that were judged" in reason for reason in finding.reasons)
