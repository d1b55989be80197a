"""`harness status` and `harness clean`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cells.matrix import Matrix
from harness.cli.main import main
from harness.results.records import Failure, Record
from harness.storage.leases import Leases
from harness.storage.store import Store


@pytest.fixture
def folder(reference: Path, tmp_path: Path) -> Path:
    """A copy of a finished matrix of four cells."""
    return Path(shutil.copytree(reference, tmp_path / "store"))


def harness(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def test_status_of_a_finished_stopped_and_running_matrix(folder: Path) -> None:
    first = harness("status", "--results", folder).splitlines()[0]
    assert "4 cells" in first and "4 done, 0 running, 0 failed, 0 left" in first
    stored = Store(folder)
    keys = stored.names("records")
    found = stored.read_json("records", keys[0], Record)
    assert found is not None
    for key in keys[:3]:
        (folder / "records" / f"{key}.json").unlink()
    failure = Failure(key=keys[0], cell=found.cell, reason="no such thing", kind="refused")
    stored.write_json("failures", keys[0], failure)
    lease = Leases(folder / "leases").take(f"cell-{keys[1]}", "scoring it")
    assert lease is not None
    told = harness("status", "--results", folder)
    assert "1 done, 1 running, 1 failed, 1 left; about" in told
    assert "refused: no such thing" in told
    assert f"scoring it: process {os.getpid()} on " in told
    assert "16 of 16 images" in told
    lease.release()
    told = harness("status", "--results", folder)
    assert "1 done, 0 running, 1 failed, 2 left" in told
    assert "nothing runs: the same command again goes on" in told


def test_an_older_run_takes_one_line_once_it_is_complete(folder: Path) -> None:
    stored = Store(folder)
    (name,) = stored.names("matrices")
    newer = stored.read_json("matrices", name, Matrix)
    assert newer is not None
    older = dataclasses.replace(newer, started="2001-01-01T00:00:00Z")
    stored.write_json("matrices", "older", older)
    told = harness("status", "--results", folder).splitlines()
    assert len(told) == 1 + 1 + len(newer.cells)
    assert "2001" in told[0] and "4 done" in told[0]
    (folder / "records" / f"{newer.cells[0].key}.json").unlink()
    assert len(harness("status", "--results", folder).splitlines()) == 2 * (1 + len(newer.cells))


def test_status_where_nothing_was_started(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["status", "--results", str(tmp_path)])
    assert done.exit_code == 2 and "no run was started" in done.output


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_clean_shows_and_with_yes_deletes_what_nobody_misses(folder: Path) -> None:
    before = files(folder)
    aside = folder / "records" / "x.json.damaged-123456"
    young, old = (folder / "records" / f".{name}.json.1.0123abcd.tmp" for name in "yz")
    for path in (aside, young, old):
        path.write_text("x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    told = harness("clean", "--results", folder)
    assert "would delete temporary: " in told and "would delete damaged: " in told
    assert "kept attacked: attacked images: 16 files" in told
    assert "to make again" in told and "nothing was deleted" in told
    assert aside.exists() and old.exists()
    told = harness("clean", "--results", folder, "--yes")
    assert "deleted damaged: damaged files that were set aside: 1 files" in told
    assert files(folder) == before | {str(young.relative_to(folder))}  # a run may still write it


def test_clean_deletes_what_is_named_and_it_is_made_again(
    folder: Path, matrix: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = harness("clean", "--results", folder, "--what", "attacked", "--what", "states", "--yes")
    assert "deleted attacked" in told
    assert not list(folder.glob("progress/*/*"))
    assert list(folder.glob("checkpoints/*.safetensors"))
    lease = Leases(folder / "leases").take("train-x", "training x")
    assert lease is not None
    arguments = ["clean", "--results", str(folder), "--what", "checkpoints", "--yes"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2 and "a run is under way" in done.output
    lease.release()
    done = CliRunner().invoke(main, ["clean", "--results", str(folder), "--what", "nonsense"])
    assert done.exit_code == 2 and "there are temporary" in done.output


def test_clean_follows_no_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.json.damaged-123456").write_text("x")
    (folder / "linked").symlink_to(outside)
    (folder / "progress" / "linked").symlink_to(outside)
    harness("clean", "--results", folder, "--yes")
    assert (outside / "x.json.damaged-123456").exists()
