"""A disk that is full, a folder that vanishes: a clear line, exit status 2, and nothing half-written."""

from __future__ import annotations

import collections
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.results.records import Record
from harness.storage.store import Store, read_tensors

Ask = Callable[..., dict[str, Any]]
SMALL = shlex.split(
    "run --dataset digits --defense menet-usvt --attack bpda --steps 2 --limit 8 --draws 1 "
    "--batch-size 4 --epochs 1 -T limit=120 -D masks=2 -D estimates=2"
)


def assert_whole(folder: Path) -> None:
    """Everything in the folder can be read, or is a temporary file."""
    stored = Store(folder)
    for name in stored.names("records"):
        assert stored.read_json("records", name, Record) is not None
    for path in folder.glob("**/[!.]*.safetensors"):
        read_tensors(path)
    assert not list(folder.glob("**/*.damaged-*"))


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_an_error_at_every_file_operation_of_a_run(ask: Ask, tmp_path: Path, fault: str) -> None:
    folder, report, log = tmp_path / "store", tmp_path / "report", tmp_path / "log"
    plain = [*SMALL, "--results", str(tmp_path / "plain")]
    assert ask(arguments=plain, log=log)["status"] == 0
    arguments = [*SMALL, "--results", str(folder)]
    done = ask(arguments=arguments, fault=fault, folder=folder, report=report, log=log)
    assert done["status"] == 0, log.read_text()
    met = [json.loads(line) for line in report.read_text().splitlines()]
    seen = collections.Counter(each["operation"] for each in met)
    print(fault, len(met), dict(seen))
    assert len(met) > 80
    for operation in (
        "replace",
        "mkdir",
        "open",
        "open wb",
        "open rb",
        "write",
        "fsync",
        "unlink",
        "listdir",
    ):
        assert seen[operation], operation
    for each in met:
        lines = [line for line in each["said"].splitlines() if not line.startswith("wrote ")]
        assert "Traceback" not in each["said"], each
        if each["status"] in (
            0,
            77,
        ):  # nothing depended on it: a temporary file, a lease given back
            assert each["path"].startswith(("/leases", "/scores/")), each
            continue
        assert each["status"] == 2, each
        assert len(lines) <= 2 and lines[-1].startswith("error: cannot "), each
    assert_whole(folder)
    (name,) = Store(folder).names("records")
    found, wanted = (each / "records" / f"{name}.json" for each in (folder, tmp_path / "plain"))
    assert found.read_bytes() == wanted.read_bytes()


def test_a_results_folder_below_a_file(ask: Ask, matrix: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = tmp_path / "log"
    arguments = [*matrix, "--results", str(tmp_path / "file" / "store")]
    assert ask(arguments=arguments, log=log)["status"] == 2
    assert log.read_text().startswith(f"error: cannot write {tmp_path / 'file' / 'store'}: ")
    assert len(log.read_text().splitlines()) == 1


def test_a_folder_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    stored = Store(tmp_path / "store")
    stored.write_json("records", "a", {"x": 1})
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(Exception, match=r"cannot write .*No such file or directory"):
        stored.write_json("records", "a", {"x": 1})
    assert not (tmp_path / "store").exists()
