"""Killed, stopped, damaged, re-ordered: the same command again gives the same record."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from harness.cli.main import main
from harness.random import Draws
from harness.results import tables
from harness.storage import store
from harness.storage.store import Store

KILLS = int(os.environ.get("HARNESS_KILLS", "50"))
"""The long version of the test: HARNESS_KILLS=500."""
Ask = Callable[..., dict[str, Any]]


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))
    }


def printed(folder: Path) -> list[str]:
    """Both tables; in the CSV without what is a duration."""
    loaded = tables.load(Store(folder))
    untimed = tables.Loaded(loaded.records, loaded.failures, {})
    return [tables.markdown(loaded), tables.csv(untimed)]


def assert_same(folder: Path, reference: Path) -> None:
    assert contents(folder, "records/*.json") == contents(reference, "records/*.json")
    assert contents(folder, "checkpoints/[!.]*.safetensors") == contents(
        reference, "checkpoints/[!.]*.safetensors"
    )
    assert contents(folder, "estimates/*.bytes") == contents(reference, "estimates/*.bytes")
    batches = contents(reference, "progress/*/[!.]*.safetensors")
    assert contents(folder, "progress/*/[!.]*.safetensors").keys() == batches.keys()
    for name in batches:  # they state seconds too
        found, _ = store.read_tensors(folder / name)
        wanted, _ = store.read_tensors(reference / name)
        assert all(torch.equal(found[part], wanted[part]) for part in wanted)
    assert printed(folder) == printed(reference)
    assert not list(folder.glob("**/*.damaged-*"))
    assert not list(folder.glob("leases/*"))


def test_killed_at_random_moments_the_tables_are_the_same(
    ask: Ask, matrix: list[str], reference: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    done = ask(arguments=matrix, kills=KILLS, seed=8, longest=0.5, folder=tmp_path, log=log)
    assert "error" not in done, (done, log.read_text()[-2000:])
    assert sum(done["kills"].values()) >= KILLS
    print(done["kills"])
    for folder in done["folders"]:
        assert_same(Path(folder), reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["training", "estimates", "attack", "scoring"])
def test_a_signal_stops_with_a_line_and_the_run_goes_on(
    ask: Ask, matrix: list[str], reference: Path, tmp_path: Path, number: int, phase: str
) -> None:
    arguments, log = [*matrix, "--results", str(tmp_path / "store")], tmp_path / "log"
    stopped = ask(arguments=arguments, log=log, when=phase, signal=number)
    assert stopped["status"] == 130
    said = [line for line in log.read_text().splitlines() if not line.startswith("wrote ")]
    assert said == [
        "stopping at the next safe point; once more stops at once",
        "stopped: what is done is kept; the same command again goes on",
    ]
    assert not list((tmp_path / "store").glob("**/.*.tmp"))
    assert ask(arguments=arguments, log=log)["status"] == 0
    assert_same(tmp_path / "store", reference)


def test_four_runs_at_once_do_each_thing_once(
    ask: Ask, matrix: list[str], reference: Path, tmp_path: Path
) -> None:
    whole = [*matrix, "--results", str(tmp_path / "store")]
    less = [word for word in whole if word not in ("--attack", "transfer(pgd)")]
    less[less.index("bpda")] = "--attack=bpda"
    log = tmp_path / "log"
    done = ask(together=[whole, whole, less, whole], log=log)
    assert done["statuses"] == [0, 0, 0, 0], log.read_text()
    assert_same(tmp_path / "store", reference)
    kept = ("records", "checkpoints")
    wrote = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("wrote ")]
    once = [path for path in wrote if path.endswith((".json", ".safetensors"))]
    once = [path for path in once if path.split("/")[0] in kept or "-" in path]
    assert len(once) == len(set(once))


@pytest.mark.parametrize("kind", ["records", "checkpoints", "progress", "estimates", "timings"])
def test_one_damaged_byte_is_named_set_aside_and_made_again(
    ask: Ask, matrix: list[str], reference: Path, tmp_path: Path, kind: str
) -> None:
    folder, log = tmp_path / "store", tmp_path / "log"
    arguments = [*matrix, "--results", str(folder)]
    assert ask(arguments=arguments, log=log)["status"] == 0
    patterns = {"progress": "progress/*/*", "estimates": "estimates/*.bytes"}
    path = sorted(folder.glob(patterns.get(kind, f"{kind}/*[!g].*s*")))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    if kind != "records":  # else nothing of it is read
        for record in folder.glob("records/*"):
            record.unlink()
    if kind == "estimates":
        for checkpoint in folder.glob("checkpoints/*"):
            checkpoint.unlink()
    log.unlink()
    status = ask(arguments=arguments, log=log)["status"]
    if kind == "timings":  # written anew before it is read
        assert status == 0
        return
    assert status == 1
    text = log.read_text()
    assert f"{path} is damaged: " in text
    assert "Traceback" not in text
    assert list(folder.glob(f"{kind}/**/*.damaged-*"))
    assert ask(arguments=arguments, log=log)["status"] == 0
    for aside in folder.glob("**/*.damaged-*"):
        aside.unlink()
    assert_same(folder, reference)


def noted_draws(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> dict[tuple[object, ...], bytes]:
    """Every word that any sample drew in a run, by its place."""
    noted: dict[tuple[object, ...], bytes] = {}
    original = Draws.bits

    def bits(self: Draws, count: int, *, lane: str = "") -> torch.Tensor:
        words = original(self, count, lane=lane)
        for sample, row in zip(self.ids.tolist(), words, strict=True):
            place = (self.seed, int(self.role), self.step, self.draw, lane, sample)
            value = row.numpy().tobytes()
            assert noted.setdefault(place, value)[: len(value)] == value[: len(noted[place])]
        return words

    with monkeypatch.context() as patch:
        patch.setattr(Draws, "bits", bits)
        done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return noted


def test_neither_the_order_of_cells_nor_the_batch_size_changes_a_draw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = shlex.split("run --quiet --dataset digits --limit 11 --draws 2 --epochs 1 --steps 2")
    start += shlex.split("-T limit=40 -D menet-usvt.masks=1 -D menet-usvt.estimates=1")
    one, other = ["--defense", "menet-usvt"], ["--defense", "vanilla"]
    first, second = ["--attack", "bpda"], ["--attack", "pgd(keep=last)"]

    def run(name: str, *words: str) -> dict[tuple[object, ...], bytes]:
        return noted_draws(monkeypatch, [*start, *words, "--results", str(tmp_path / name)])

    plain = run("plain", *one, *other, *first, *second, "--batch-size", "11")
    reversed_ = run("reversed", *other, *one, *second, *first, "--batch-size", "11")
    small = run("small", *one, *other, *first, *second, "--batch-size", "3")
    assert len(plain) > 500
    assert reversed_ == plain
    assert small == plain
