"""On the command line: the run goes on, names the cell, and ends with a status that is not 0."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import main

from .conftest import FILE

RUN = shlex.split(
    "run --dataset digits --limit 12 --draws 1 --epochs 1 -T limit=64 --quiet --attack clean"
)


def test_an_exit_is_one_cells_failure_and_status_2(tmp_path: Path) -> None:
    hostile = f"{FILE}:Hostile(error=SystemExit(0))"
    words = ["--attack", hostile.replace("SystemExit(0)", "GeneratorExit")]
    done = CliRunner().invoke(main, [*RUN, *words, "--results", str(tmp_path)])
    assert done.exit_code == 2, done.output
    assert "failed: " in done.output and "GeneratorExit: it tried to end the run" in done.output
    assert len(list((tmp_path / "records").iterdir())) == 1
    assert len(list((tmp_path / "failures").iterdir())) == 1


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "raise KeyError('x')", "1 / 0"])
def test_a_file_that_does_not_load_is_refused(tmp_path: Path, code: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    done = CliRunner().invoke(main, [*RUN, "--attack", f"{path}:A", "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert "does not load" in done.output


def test_what_a_file_sets_while_it_loads_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import os, torch\n"
        "from harness.attacks.pgd import PGD as A\n"
        "torch.set_default_dtype(torch.float64); torch.manual_seed(3); os.environ['MINE'] = '1'\n"
        "torch.Tensor.argmax = None\n"
    )
    done = CliRunner().invoke(main, [*RUN, "--attack", f"{path}:A", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "process-changed" not in done.output and "MINE" not in os.environ


def test_an_isolated_cell_that_hangs_is_given_up(tmp_path: Path) -> None:
    words = ["--attack", f"{FILE}:Hostile(kind=hang)", "--isolate", "--cell-limit", "8"]
    done = CliRunner().invoke(main, [*RUN, *words, "--results", str(tmp_path)])
    assert done.exit_code == 2, done.output
    assert "its process ended with signal 9" in done.output


@pytest.mark.parametrize(("kind", "end"), [("os._exit", "exit status 0"), ("killed", "signal 9")])
def test_an_audit_that_a_plugin_ends_says_so(tmp_path: Path, kind: str, end: str) -> None:
    words = shlex.split("audit --budget 60s --limit 12 --epochs 1 -T limit=64 --quiet")
    words += ["--defense", f"{FILE}:Ends", "-D", f"kind={kind}", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"the audit was ended from within, with {end}" in done.stderr
    assert "stands" not in done.stdout


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for words in (["--isolate", "--workers", "2"], ["--cell-limit", "9"]):
        done = CliRunner().invoke(main, [*RUN, *words, "--results", str(tmp_path)])
        assert done.exit_code == 2 and "isolate" in done.output
