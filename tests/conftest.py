"""One thread a test; images that many tests share; a process that runs, kills and disturbs `harness` runs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.datasets.data import load
from harness.types import Batch, Dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_test() -> Dataset:
    return load("digits", "test")


@pytest.fixture(scope="session")
def digits_batch(digits_test: Dataset) -> Batch:
    """24 real digits, 28 x 28."""
    return digits_test.batch(slice(0, 24))


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder that HARNESS_DATA names, where it holds MNIST."""
    folder = Path(os.environ.get("HARNESS_DATA", ""))
    if not (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").is_file():
        pytest.skip("HARNESS_DATA names no folder with MNIST/raw/*-ubyte")
    return folder


Ask = Callable[..., dict[str, Any]]

MATRIX = shlex.split(
    "run --dataset digits --defense menet-usvt --defense vanilla --attack bpda "
    "--attack transfer(pgd) --steps 3 --limit 16 --draws 2 --batch-size 4 --epochs 2 "
    "-T limit=120 -D menet-usvt.masks=2 -D menet-usvt.estimates=2"
)
"""Two defenses by two attacks: estimates, four trainings, batches of four images."""


@pytest.fixture(scope="session")
def matrix() -> list[str]:
    return list(MATRIX)


@pytest.fixture(scope="session")
def ask() -> Iterator[Ask]:
    """Sends a request to `killer.py` and returns its answer."""
    script = Path(__file__).parent / "helpers" / "killer.py"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, **threads, "PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def send(**request: Any) -> dict[str, Any]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request, default=str) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        yield send
        process.stdin.close()


@pytest.fixture(scope="session")
def reference(ask: Ask, matrix: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    arguments = [*matrix, "--results", str(folder / "store")]
    assert ask(arguments=arguments, log=folder / "log")["status"] == 0, (folder / "log").read_text()
    return folder / "store"
