"""Several processes on one store give the same bytes as one process, even if some are killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.executors import local
from harness.executors.worker import Job, encode
from harness.results.records import Record
from harness.storage import store
from harness.storage.leases import Leases
from harness.storage.store import Store
from harness.types import HarnessError

Ask = Callable[..., dict[str, Any]]


def contents(folder: Path) -> dict[str, bytes]:
    """The records' bytes, but for the commit: somebody may commit while the tests run."""
    stored = Store(folder)
    found = {}
    for name in stored.names("records"):
        record = stored.read_json("records", name, Record)
        assert record is not None
        made = {key: value for key, value in record.made.items() if key != "commit"}
        found[name] = store.render_json(dataclasses.replace(record, made=made))
    return found


PATIENCE = 120.0
"""Seconds after which a process that should have ended, or begun, is a failure."""


def patience() -> Iterator[None]:
    """Yield every hundredth of a second; fail where nobody leaves the loop."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(0.01)
    pytest.fail(f"nothing happened within {PATIENCE:g} seconds")


@contextlib.contextmanager
def ended(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill what is left of some processes at the end, however the test goes."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start_worker(folder: Path, reference: Path, index: int = 1) -> subprocess.Popen[bytes]:
    """A worker on the cells of the reference, in batches of its size."""
    stored = Store(reference)
    records = [stored.read_json("records", name, Record) for name in stored.names("records")]
    job = Job(
        cells=tuple(record.cell for record in records if record is not None),
        results=str(folder),
        cache=str(folder),
        data_dir=None,
        device="cpu",
        threads=1,
        batch_size=4,
        memory=None,
        index=index,
        workers=2,
    )
    folder.mkdir(exist_ok=True)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.executors.worker"],
        stdin=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(encode(job))
    return process


def test_two_processes_share_a_matrix_and_a_killed_one_is_replaced(
    ask: Ask, matrix: list[str], reference: Path, tmp_path: Path
) -> None:
    """Two workers; the first to hold a lease is killed, and the run takes over."""
    folder = tmp_path / "store"
    workers = [start_worker(folder, reference, index) for index in (0, 1)]
    ids = {worker.pid: worker for worker in workers}
    with ended(*workers):
        victim = None
        for _ in patience():
            holders = [each.owner.process for each in Leases(folder / "leases").holdings()]
            victim = next((ids.pop(process) for process in holders if process in ids), None)
            if victim is not None:
                break
            assert any(worker.poll() is None for worker in workers), "both ended without a lease"
        assert victim is not None
        victim.send_signal(signal.SIGKILL)
        assert victim.wait(PATIENCE) == -signal.SIGKILL
        (other,) = ids.values()
        done = ask(arguments=[*matrix, "--results", str(folder)], log=tmp_path / "log")
        assert done["status"] == 0, (tmp_path / "log").read_text()
        assert other.wait(PATIENCE) == 0
    assert contents(folder) == contents(reference)
    assert not list(folder.glob("leases/*"))


def test_a_run_with_two_workers_gives_the_bytes_of_one(
    matrix: list[str], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = [*matrix, "--workers", "2", "--quiet", "--results", str(tmp_path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert contents(tmp_path) == contents(reference)


def test_a_worker_stops_when_it_is_told_to(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    worker = start_worker(folder, reference)
    with ended(worker):
        for _ in patience():
            if (folder / "leases").exists():
                break
            assert worker.poll() is None, "it ended before it was told to"
        worker.terminate()
        assert worker.wait(PATIENCE) == 130
    assert not list(folder.glob("leases/*"))


@pytest.mark.parametrize(
    ("text", "names"),
    [("0,1", ["cuda:0", "cuda:1"]), ("cuda:3", ["cuda:3"]), (" cpu ", ["cpu"])],
)
def test_names_of_devices(text: str, names: list[str]) -> None:
    assert local.devices(text) == names


@pytest.mark.parametrize("text", ["", ",", "0,0", "cuda:1,1"])
def test_devices_that_are_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="--devices"):
        local.devices(text)
