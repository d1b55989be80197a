"""Damaged and foreign results folders: whole records are shown, foreign files are left alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.cli.main import main
from harness.paper import protocol
from harness.paper.measured import cell_name
from harness.results import clean, tables
from harness.results.clean import KINDS, is_results_folder
from harness.results.records import Record
from harness.storage.store import MARKER, Store
from tests.helpers.fabricated import fill, gallery


def harness(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder with the records of a table."""
    place = tmp_path / "store"
    found = fill(place, [protocol.load("table3")], protocol.profile("smoke"))
    gallery(place, found)
    return place


@pytest.fixture
def finished(reference: Path, tmp_path: Path) -> Path:
    """A copy of a finished matrix of four cells."""
    return Path(shutil.copytree(reference, tmp_path / "finished"))


# --- one bad file hides no other ------------------------------------------------------------------

BAD = {
    "empty": b"",
    "cut short": b'{"sha256":"00","value":{"key"',
    "of another program": b'{"a": 1}',
    "no text": bytes(range(256)),
    "a list": b"[1, 2]",
    "deep": b"[" * 20000,
    "of a wrong checksum": b'{"sha256":"00","value":{}}',
    "of wrong fields": None,
}


def spoil(path: Path, how: str) -> None:
    content = BAD[how]
    if content is None:
        Store(path.parents[1]).write_json(path.parent.name, path.stem, {"key": path.stem, "x": 1})
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("how", BAD)
def test_table_and_report_name_a_bad_record_and_show_the_rest(how: str, folder: Path) -> None:
    names = Store(folder).names("records")
    path = folder / "records" / f"{names[0]}.json"
    spoil(path, how)
    loaded = tables.load(Store(folder))
    assert len(loaded.records) == len(names) - 1
    (line,) = loaded.damage
    assert str(path) in line and "damaged" in line
    shown = harness("table", "--results", folder)
    assert shown.exit_code == 1 and str(path) in shown.stderr and "bpda" in shown.stdout
    done = harness("report", "--results", folder)
    assert done.exit_code == 0, done.output
    assert str(path) in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "place", ["timings", "failures", "audits", "cells", "protocols", "figure-data"]
)
@pytest.mark.parametrize("how", ["empty", "of wrong fields"])
def test_the_report_names_a_bad_file_of_any_folder(place: str, how: str, folder: Path) -> None:
    name = "gallery" if place == "figure-data" else "0" * 20
    if place == "cells":
        name = cell_name(tables.load(Store(folder)).records[0].cell)
    (folder / place).mkdir(exist_ok=True)
    path = folder / place / f"{name}.json"
    spoil(path, how)
    done = harness("report", "--results", folder)
    assert done.exit_code == 0, done.output
    assert str(path) in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", ["notes for me", "a" * 250, "ü"])
def test_a_foreign_file_among_the_records_is_named(name: str, folder: Path) -> None:
    before = len(tables.load(Store(folder)).records)
    (folder / "records" / f"{name}.json").write_text("{}")
    loaded = tables.load(Store(folder))
    assert len(loaded.records) == before and len(loaded.damage) == 1
    assert name in loaded.damage[0]


def test_a_folder_in_place_of_a_record_is_named(folder: Path) -> None:
    (folder / "records" / "0.json").mkdir()
    (line,) = tables.load(Store(folder)).damage
    assert "0.json" in line


def test_a_record_under_another_name_is_named_and_not_counted_twice(folder: Path) -> None:
    before = tables.load(Store(folder)).records
    path = folder / "records" / f"{before[0].key}.json"
    shutil.copy(path, path.with_name("copy.json"))
    loaded = tables.load(Store(folder))
    assert loaded.records == before and "copy.json" in loaded.damage[0]


@pytest.mark.parametrize("how", BAD)
def test_status_names_a_bad_plan_and_shows_the_rest(how: str, finished: Path) -> None:
    path = finished / "matrices" / "other.json"
    spoil(path, how)
    done = harness("status", "--results", finished)
    assert done.exit_code == 0, done.output
    assert str(path) in done.output and "4 done" in done.output


@pytest.mark.parametrize("place", ["timings", "failures"])
def test_status_names_a_bad_timing_or_failure(place: str, finished: Path) -> None:
    stored = Store(finished)
    key = stored.names("records")[0]
    if place == "failures":
        (finished / "records" / f"{key}.json").unlink()
    (finished / place).mkdir(exist_ok=True)
    (finished / place / f"{key}.json").write_bytes(b"{")
    done = harness("status", "--results", finished)
    assert done.exit_code == 0 and f"{place}/{key}.json is damaged" in done.output
    assert "3 done" in done.output


# --- `harness clean` ------------------------------------------------------------------------------

EVERY = [word for kind in KINDS for word in ("--what", kind.name)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_kind_goes_and_the_records_stay(finished: Path) -> None:
    before = content(finished)
    done = harness("clean", "--results", finished, *EVERY, "--yes")
    assert done.exit_code == 0, done.output
    left = {name.split("/")[0] for name in content(finished)}
    assert left == {"records", "timings", "matrices", MARKER}
    assert {"progress", "checkpoints", "estimates"} <= {name.split("/")[0] for name in before}


@pytest.mark.parametrize(
    "name",
    [
        "photo.damaged-holiday.jpg",
        "thesis.damaged-123456.tex",
        ".notes.tmp",
        ".probe.txt",
        "progress/mine/data.safetensors",
        "progress/0123456789abcdef0123/mine.safetensors",
        "scores/0123456789abcdef0123/mine.safetensors",
        "checkpoints/bert.safetensors",
        "checkpoints/model.state",
        "checkpoints/bert.training.json",
        "estimates/house.bytes",
        "estimates/house.partial",
        "estimates/0123456789abcdef0123.bytes",
        "failures/mine.json",
        "failures/0123456789abcdef0123.json",
        "thesis/x.json.damaged-123456",
        "thesis/progress/0123456789abcdef0123/00000000-4.safetensors",
    ],
)
def test_what_the_store_did_not_write_stays(name: str, finished: Path) -> None:
    path = finished / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"sha256": "0", "value": {}}')
    os.utime(path, (0, 0))
    assert harness("clean", "--results", finished, *EVERY, "--yes").exit_code == 0
    assert path.exists()


@pytest.mark.parametrize(
    "name", ["progress", "checkpoints", "estimates", "scores", "failures", "records"]
)
def test_a_folder_that_is_a_link_is_not_followed(name: str, finished: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (finished / name).mkdir(exist_ok=True)
    (finished / name).rename(elsewhere)
    (elsewhere / "x.json.damaged-123456").touch()
    (finished / name).symlink_to(elsewhere)
    before = content(elsewhere)
    assert harness("clean", "--results", finished, *EVERY, "--yes").exit_code == 0
    assert content(elsewhere) == before


def test_a_file_or_folder_within_that_is_a_link_is_not_followed(
    finished: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(finished / "progress", elsewhere)
    (finished / "progress").mkdir()
    for place in elsewhere.iterdir():
        (finished / "progress" / place.name).symlink_to(place)
    weights = next((finished / "checkpoints").glob("*.safetensors"))
    outside = tmp_path / weights.name
    shutil.move(weights, outside)
    weights.symlink_to(outside)
    before = content(elsewhere)
    assert harness("clean", "--results", finished, *EVERY, "--yes").exit_code == 0
    assert content(elsewhere) == before and outside.exists() and weights.is_symlink()


@pytest.mark.parametrize("form", ["empty", "a project", "a copied name", "a linked mark"])
def test_a_folder_that_the_harness_did_not_make_is_refused(form: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "records").mkdir(parents=True)
    (place / "x.json.damaged-123456").touch()
    if form == "a project":
        (place / "records" / f"{'0' * 20}.json").write_text('{"key": "mine"}')
        (place / "checkpoints").mkdir()
        (place / "checkpoints" / f"{'0' * 20}.safetensors").write_bytes(b"weights")
    if form == "a copied name":
        (place / MARKER).mkdir()
    if form == "a linked mark":
        (tmp_path / "mark").touch()
        (place / MARKER).symlink_to(tmp_path / "mark")
    before = content(place)
    done = harness("clean", "--results", place, *EVERY, "--yes")
    assert done.exit_code == 2 and "is no results folder" in done.output
    assert content(place) == before


def test_a_cache_that_the_harness_did_not_make_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    done = harness("clean", "--results", finished, "--cache", tmp_path / "cache", "--yes")
    assert done.exit_code == 2 and str(tmp_path / "cache") in done.output


def test_an_old_folder_without_the_mark_is_known_by_its_records(finished: Path) -> None:
    (finished / MARKER).unlink()
    assert is_results_folder(finished)
    for path in (finished / "records").iterdir():
        path.write_text("{")
    assert is_results_folder(finished), "by its weights"
    shutil.rmtree(finished / "checkpoints")
    assert not is_results_folder(finished)


def test_every_folder_of_a_run_is_known(finished: Path) -> None:
    assert {each.name for each in finished.iterdir() if each.is_dir()} <= set(clean._WRITTEN)


def test_a_stored_record_is_what_was_written(folder: Path) -> None:
    found, damage = Store(folder).read_all("records", Record)
    assert not damage and all(
        json.loads((folder / "records" / f"{k}.json").read_text()) for k in found
    )
