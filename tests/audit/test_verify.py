"""Verification finds every kind of tampering, and confirms what is honest."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load

from harness.audit import compare, looks, rebuild, rescore, stored, verify
from harness.cli.main import main
from harness.registry import load_file
from harness.results.records import Record, pack, unpack
from harness.storage import keys, store
from harness.storage.store import Store
from harness.types import ThreatModel

zoo = load_file(Path(__file__).parents[1] / "helpers" / "zoo.py")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a deterministic and a randomised record, and their weights."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("honest") / "runs"
    zoo.measured(folder, "vanilla", ["pgd(steps=5)"], epsilon=0.1, limit=40)
    zoo.measured(folder, zoo.named("Noisy"), ["pgd(steps=5)"], epsilon=0.1, limit=40, draws=6)
    model_store = _model_store(folder)
    for name in model_store.store.names("records"):
        found = model_store.store.read_json("records", name, Record)
        assert found is not None
        path = model_store.store.checkpoint_path(model_store.key(found.cell.target))
        store.write_tensors(path, zoo.weights(), {"key": "there"})
    return folder


def _model_store(folder: Path):
    return zoo.Ready(
        store=Store(folder),
        device=torch.device("cpu"),
        reporter=zoo.Silent(),
        stop=zoo.training.Stop(),
    )


def records(folder: Path) -> dict[str, Record]:
    opened = Store(folder)
    found = {name: opened.read_json("records", name, Record) for name in opened.names("records")}
    return {name: record for name, record in found.items() if record is not None}


def findings(folder: Path, draws: int = 6) -> dict[str, verify.Finding]:
    model_store = _model_store(folder)
    return {f.key: f for f in verify.verify(model_store, [], model_store.reporter, draws=draws)}


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "runs"))


def the(folder: Path, *, randomised: bool) -> Record:
    return next(r for r in records(folder).values() if r.randomised is randomised)


def reseal(folder: Path, record: Record) -> None:
    """Store a record with a right checksum, as somebody who knows the format would."""
    Store(folder).write_json("records", record.key, record)


def shard(folder: Path, record: Record) -> Path:
    (path,) = (folder / "progress" / stored.generation_key(record)).glob("*.safetensors")
    return path


def repaint(path: Path, change: Callable[[torch.Tensor], None]) -> None:
    """Change stored images and put the checksum right."""
    tensors, metadata = store.read_tensors(path)
    change(tensors["images"])
    store.write_tensors(path, tensors, metadata)


def test_honest_records_are_verified(honest: Path) -> None:
    found = findings(honest)
    assert len(found) == 2
    assert all(f.status == "verified" and not f.reasons for f in found.values()), found


@pytest.mark.parametrize("randomised", [False, True])
def test_an_edited_number_is_found(copy: Path, randomised: bool) -> None:
    record = the(copy, randomised=randomised)
    robust = dataclasses.replace(record.robust, mean=record.robust.mean + 0.05)
    reseal(copy, dataclasses.replace(record, robust=robust))
    finding = findings(copy)[record.key]
    assert finding.status == "contradicted"
    assert any("robust.mean" in reason for reason in finding.reasons)


@pytest.mark.parametrize("randomised", [False, True])
def test_edited_outcomes_with_numbers_to_match_are_found(copy: Path, randomised: bool) -> None:
    """One image is declared standing in every draw, and all that follows is put right."""
    record = the(copy, randomised=randomised)
    rows = [unpack(row, record.count) for row in record.robust_outcomes]
    image = next(i for i in range(record.count) if not any(row[i] for row in rows))
    for row in rows:
        row[image] = True
    votes = unpack(record.robust_votes, record.count)
    votes[image] = True
    n, k = record.count, len(rows)
    robust = dataclasses.replace(
        record.robust,
        one_draw=sum(rows[0]) / n,
        mean=sum(map(sum, rows)) / (n * k),
        vote=sum(votes) / n,
        all_draws=sum(map(all, zip(*rows, strict=True))) / n,
    )
    forged = dataclasses.replace(
        record, robust=robust, robust_outcomes=tuple(map(pack, rows)), robust_votes=pack(votes)
    )
    from harness.results import flags

    forged = dataclasses.replace(forged, flags=flags.flags(forged))
    reseal(copy, forged)
    finding = findings(copy)[record.key]
    assert finding.status == "contradicted"
    assert any("robust outcomes are others" in reason for reason in finding.reasons)


def test_an_image_that_leaves_the_ball_is_found(copy: Path) -> None:
    record = the(copy, randomised=False)

    def push(images: torch.Tensor) -> None:
        images[3, 0, 14, 14] = (images[3, 0, 14, 14] + 0.5) % 1.0

    repaint(shard(copy, record), push)
    finding = findings(copy)[record.key]
    assert finding.status == "contradicted"
    assert any("leaves the box or the ball" in reason for reason in finding.reasons)


@pytest.mark.parametrize("randomised", [False, True])
def test_an_exchanged_image_inside_the_ball_is_found(copy: Path, randomised: bool) -> None:
    """Also where the digest in the record is forged: the outcomes tell."""
    record = the(copy, randomised=randomised)
    model_store = _model_store(copy)
    clean = model_store.dataset("digits", "test").first(40).batch(slice(0, None)).images

    def swap(images: torch.Tensor) -> None:
        images[:20] = clean[:20]

    path = shard(copy, record)
    repaint(path, swap)
    finding = findings(copy)[record.key]
    assert any("not those that were judged" in reason for reason in finding.reasons)
    import hashlib

    digest = hashlib.sha256(load(path.read_bytes())["images"].numpy().tobytes()).hexdigest()
    reseal(copy, dataclasses.replace(record, images=digest))
    finding = findings(copy)[record.key]
    assert finding.status == "contradicted"
    assert any("outcomes are others" in reason for reason in finding.reasons)


def test_a_changed_label_is_found(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.datasets import data

    true = data.load

    def relabelled(name: str, split: str, **options: object):
        dataset = true(name, split, **options)
        labels = dataset.labels.clone()
        labels[0] = (labels[0] + 1) % 10
        samples = data.Samples(
            images=dataset.images, labels=labels, classes=dataset.classes, ids=dataset.ids
        )
        return data.assemble(name, split, samples) if split == "test" else dataset

    monkeypatch.setattr(data, "load", relabelled)
    for finding in findings(copy).values():
        assert finding.status == "contradicted"
        assert "images or labels" in finding.reasons[0]


def test_damage_is_found(copy: Path) -> None:
    record = the(copy, randomised=False)
    path = shard(copy, record)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert findings(copy)[record.key].status == "contradicted"
    stored = copy / "records" / f"{record.key}.json"
    stored.write_text(stored.read_text().replace('"one_draw"', '"one_drew"', 1))
    assert "damaged" in findings(copy)[record.key].reasons[0]


def test_another_ball_than_was_run_is_found(copy: Path) -> None:
    record = the(copy, randomised=False)
    cell = dataclasses.replace(record.cell, threat=ThreatModel(epsilon=0.05))
    reseal(copy, dataclasses.replace(record, cell=cell))
    reasons = findings(copy)[record.key].reasons
    assert any("threat" in reason for reason in reasons)


def test_a_flag_taken_off_is_found(copy: Path) -> None:
    record = the(copy, randomised=True)
    assert record.flags
    reseal(copy, dataclasses.replace(record, flags={}))
    assert any("flags" in reason for reason in findings(copy)[record.key].reasons)


def test_missing_evidence_is_not_called_verified(copy: Path) -> None:
    record = the(copy, randomised=True)
    shard(copy, record).unlink()
    finding = findings(copy)[record.key]
    assert finding.status == "unverifiable"
    assert "40 of 40" in finding.reasons[0]


def test_a_wrong_key_is_found(copy: Path) -> None:
    record = the(copy, randomised=False)
    problems = verify.identity(record, keys.key("another"))
    assert any("stored as" in problem for problem in problems)


def test_new_draws_agree_when_honest_and_tell_when_not() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(200, generator=generator)
    alarms = 0
    for _ in range(200):
        then = torch.bernoulli(rates.expand(10, -1), generator=generator).sum(dim=0).long()
        now = torch.bernoulli(rates.expand(10, -1), generator=generator).sum(dim=0).long()
        alarms += bool(rescore.disagreement(then, 10, now, 10))
    assert alarms <= 2
    then = torch.bernoulli(rates.expand(10, -1), generator=generator).sum(dim=0).long()
    now = torch.bernoulli((0.8 * rates).expand(10, -1), generator=generator).sum(dim=0).long()
    assert "means differ" in rescore.disagreement(then, 10, now, 10)
    same = torch.randint(0, 21, (200,), generator=generator)
    then, now = same.clone(), same.clone()
    then[7], now[7] = 0, 20
    assert "image number 7" in rescore.disagreement(then, 20, now, 20)


def test_images_are_stored_so_that_they_cannot_leave_the_ball(honest: Path) -> None:
    model_store = _model_store(honest)
    clean = model_store.dataset("digits", "test").first(40).batch(slice(0, None)).images
    for record in records(honest).values():
        tensors, _ = store.read_tensors(shard(honest, record))
        outside, wild = rescore.leaving(
            tensors["images"].numpy(), clean.numpy(), record.cell.threat
        )
        assert not outside.any() and not wild.any()


def test_command_line_says_it_and_exits_with_it(tmp_path: Path) -> None:
    words = "run --dataset digits --defense vanilla --attack pgd --steps 3 --limit 20 --quiet"
    words += f" --epochs 1 -T limit=200 --results {tmp_path}"
    assert CliRunner().invoke(main, words.split()).exit_code == 0
    result = CliRunner().invoke(main, ["verify", str(tmp_path), "--quiet"])
    assert result.exit_code == 0, result.output
    assert "1 verified, 0 contradicted, 0 unverifiable" in result.output
    (record,) = records(tmp_path).values()
    robust = dataclasses.replace(record.robust, mean=0.99)
    reseal(tmp_path, dataclasses.replace(record, robust=robust))
    result = CliRunner().invoke(main, ["verify", str(tmp_path), record.key, "--quiet"])
    assert result.exit_code == 1
    assert "contradicted" in result.output


def test_a_record_that_is_not_there_contradicts_nothing(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    words = ["verify", str(tmp_path), "nothing", "--quiet", "--device", "cpu"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and "unverifiable nothing" in done.output, done.output
    assert "there is no record nothing" in done.output and "0 contradicted" in done.output


def test_nothing_of_the_judge_is_used() -> None:
    """A mistake of the judge would be made twice."""
    import ast

    judging = {"judge", "summary", "scoring", "generation"}
    for module in (verify, looks, rescore, stored, rebuild, compare):
        for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.rpartition(".")[2] not in judging, (module, node.module)
                assert not judging & {alias.name for alias in node.names}, (module, node.module)
