"""Runs on Ray give the bytes of a local run, even if workers are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.main import main
from harness.executors.ray import parts
from harness.storage.leases import Holding, Leases

Ask = Callable[..., dict[str, Any]]
SMALL = ["run", "--dataset", "digits", "--attack", "pgd", "--quiet"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `harness` with two Ray workers on this machine; their output lies in `output`."""
    pytest.importorskip("ray", reason="pip install -e '.[ray]'")
    root = str(Path(__file__).parents[2])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
        "TMPDIR": str(scratch),
        "RAY_TMPDIR": "/tmp",  # the paths of its sockets may not be long
    }
    environment.pop("RAY_ADDRESS", None)
    started = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "harness", *arguments, "--executor", "ray", "--workers", "2"]
        with open(tmp_path / "output", "ab") as output:
            process = subprocess.Popen(
                words, env=environment, cwd=tmp_path, stdout=output, stderr=output
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def records(folder: Path) -> dict[str, Any]:
    """But for the commit: somebody may commit while the tests run."""
    found = {}
    for path in folder.glob("records/*.json"):
        found[path.name] = json.loads(path.read_bytes())["value"]
        found[path.name]["made"].pop("commit")
    return found


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stopped_in_a_batch(folder: Path, process: subprocess.Popen[bytes]) -> Holding:
    """The lease on a batch, of a worker that stands still since it has it."""

    def held() -> list[Holding]:
        found = Leases(folder / "leases").holdings() if (folder / "leases").is_dir() else []
        return [each for each in found if each.name.startswith("attack-") and each.owner.process]

    while process.poll() is None:
        for each in held():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.owner.process, signal.SIGSTOP)
                time.sleep(0.05)
                if each.name in {now.name for now in held()}:
                    return each
                os.kill(each.owner.process, signal.SIGCONT)
        time.sleep(0.001)
    raise AssertionError("the run ended before a worker held a batch")


def test_a_worker_killed_in_a_batch_is_replaced_and_the_records_are_the_same(
    matrix: list[str],
    reference: Path,
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    folder, log = tmp_path / "store", tmp_path / "log.jsonl"
    process = start(*matrix, "--results", str(folder), "--log", str(log))
    victim = stopped_in_a_batch(folder, process)
    os.kill(victim.owner.process, signal.SIGKILL)
    assert process.wait() == 0, (tmp_path / "output").read_text()
    assert records(folder) == records(reference)
    assert "lease taken over" in {event["event"] for event in events(log)}
    assert not list(folder.glob("leases/*")) and not list(folder.glob(".*"))


def test_workers_with_scratch_folders_meet_in_the_store_and_a_failure_is_one_cells(
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "import dataclasses\nfrom harness.types import Attack, Perturbed\n\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Broken(Attack):\n"
        "    def perturb(self, victim, batch, threat, draws):\n"
        "        raise ValueError('out of luck')\n"
    )
    words = [*SMALL, "--epochs", "1", "-T", "limit=60", "--limit", "12", "--batch-size", "4"]
    words += ["--steps", "2", "--attack", "broken.py:Broken"]
    url = (tmp_path / "there").as_uri()
    ray = start(*words, "--results", "ray", "--store", url)
    assert ray.wait() == 2
    assert "failed: broken.py:Broken" in (tmp_path / "output").read_text()
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, [*words, "--results", "local"]).exit_code == 2
    assert records(tmp_path / "ray") == records(tmp_path / "local")
    assert len(records(tmp_path / "ray")) == 1
    names = [sorted((tmp_path / name / "failures").glob("*")) for name in ("ray", "local")]
    assert [path.read_bytes() for path in names[0]] == [path.read_bytes() for path in names[1]]
    assert len(names[0]) == 1
    assert not list((tmp_path / "ray" / "checkpoints").glob("*"))  # the scratch folders have them
    assert list((tmp_path / "scratch").glob("harness-*/checkpoints/*.safetensors"))


@given(images=st.integers(1, 300), batch_size=st.integers(1, 64), most=st.integers(1, 20))
def test_parts_are_whole_batches_each_once(images: int, batch_size: int, most: int) -> None:
    found = parts(images, batch_size, most)
    assert len(found) == min(most, -(-images // batch_size))
    starts = [start for first, end in found for start in range(first, end, batch_size)]
    assert starts == list(range(0, images, batch_size))
    sizes = [(end - first) // batch_size for first, end in found]
    assert max(sizes) - min(sizes) <= 1


def test_without_ray_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(main, [*SMALL, "--executor", "ray", "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert "pip install -e '.[ray]'" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "--address needs --executor ray"),
        (["--gpus-per-cell", "1/4"], "--gpus-per-cell needs --executor ray"),
        (["--executor", "ray", "--devices", "0,1"], "with Ray say --gpus-per-cell"),
        (["--executor", "slurm"], "'slurm' is not one of 'local', 'ray'"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, words: list[str], said: str) -> None:
    done = CliRunner().invoke(main, [*SMALL, *words, "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert said in done.output
