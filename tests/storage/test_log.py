"""`--log`: what a run did, line by line; nothing where it was not asked for."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli.main import main
from harness.storage import log
from harness.storage.leases import Leases

SMALL = shlex.split(
    "run --quiet --dataset digits --limit 6 --batch-size 4 --draws 2 --epochs 1 --steps 2 -T limit=60"
)


def command(results: Path, log: Path) -> list[str]:
    return [*SMALL, "--attack", "pgd", "--results", str(results), "--log", str(log)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_notes_training_batches_and_cell(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    arguments = command(tmp_path / "store", path)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    found = lines(path)
    assert [(line["event"], line.get("batch")) for line in found] == [
        ("cell started", None),
        ("training started", None),
        ("training done", None),
        ("batch started", "0"),
        ("batch done", "0"),
        ("batch started", "4"),
        ("batch done", "4"),
        ("cell done", None),
    ]
    (record,) = (tmp_path / "store" / "records").iterdir()
    assert {line["cell"] for line in found} == {record.stem}
    assert all(line["seconds"] >= 0 for line in found if line["event"].endswith("done"))
    assert sorted(line["time"] for line in found) == [line["time"] for line in found]
    CliRunner().invoke(main, arguments)  # all is there: nothing happens
    assert lines(path) == found


def test_a_failure_is_noted_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    arguments = command(tmp_path / "store", path)
    arguments += ["-T", "learning_rate=1e30", "-T", "batch_size=20"]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    (failure,) = [line for line in lines(path) if line["event"] == "failure"]
    assert "the loss is" in failure["message"]
    (kept,) = (tmp_path / "store" / "failures").iterdir()
    assert failure["cell"] == kept.stem


def test_a_dead_owners_lease_is_noted_when_it_is_taken_over(tmp_path: Path) -> None:
    held = (
        "import sys, time\nfrom pathlib import Path\nfrom harness.storage.leases import Leases\n"
        "lease = Leases(Path(sys.argv[1])).take('work')\nprint(flush=True)\ntime.sleep(600)"
    )
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    noted: list[str] = []
    with log.to(noted):
        lease = Leases(tmp_path).take("work", "attacking")
        other = Leases(tmp_path).take("more", "attacking")
    assert lease is not None and other is not None
    (line,) = [json.loads(line) for line in noted]
    assert (line["event"], line["message"]) == ("lease taken over", "attacking")


def test_nothing_is_noted_outside_of_the_block() -> None:
    noted: list[str] = []
    with log.to(noted):
        log.event("one")
    log.event("two")
    assert [json.loads(line)["event"] for line in noted] == ["one"]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    arguments = [*SMALL, "--attack", "pgd", "--results", str(tmp_path), "--log", str(tmp_path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert f"cannot write {tmp_path}" in done.output


@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_both_commands_have_the_option(command: str) -> None:
    assert "--log" in CliRunner().invoke(main, [command, "--help"]).output
