"""A plugin of one's own: written by `harness new`, and from a package with entry points."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import main

ROOT = Path(__file__).parent.parent.parent


def harness(*words: str) -> str:
    done = CliRunner().invoke(main, [*words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("kind", "name"), [("attack", "my-attack"), ("defense", "my-defense")])
def test_what_is_written_works_and_passes_its_own_test(
    kind: str, name: str, tmp_path: Path
) -> None:
    harness("new", kind, name, "--folder", str(tmp_path))
    stem = name.replace("-", "_")
    plugin, test = tmp_path / f"{stem}.py", tmp_path / f"test_{stem}.py"
    word = f"{plugin}:{name.title().replace('-', '')}"
    words = ["--attack", word] if kind == "attack" else ["--defense", word, "--attack", "fgsm"]
    quick = ["--epochs", "2", "-T", "limit=150", "--limit", "20", "--quiet", "--draws", "2"]
    assert word in harness("run", *words, *quick, "--results", str(tmp_path / "r"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=environment(ROOT)
    )
    assert done.returncode == 0, done.stdout
    ruff = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*ruff, str(plugin), str(test)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def environment(*paths: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}


def test_nothing_is_overwritten_and_names_are_names(tmp_path: Path) -> None:
    harness("new", "attack", "mine", "--folder", str(tmp_path))
    for name in ("mine", "3x", "a b", "class", "../x"):
        done = CliRunner().invoke(main, ["new", "attack", name, "--folder", str(tmp_path)])
        assert done.exit_code == 2 and "error:" in done.output


def test_the_sample_package_is_installed_and_used(tmp_path: Path) -> None:
    source = tmp_path / "source"  # pip builds inside of the folder
    shutil.copytree(ROOT / "examples" / "sample_package", source)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(site), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def command_line(*words: str) -> str:
        code = "import sys; from harness.cli.main import main; main(sys.argv[1:])"
        run = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment(ROOT, site),
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    assert "random-signs" in command_line("list", "attacks")
    assert "all kept" in command_line("check", "flip")
    words = "run --dataset stripes --model linear --defense flip --attack random-signs --attack pgd"
    table = command_line(*words.split(), "--epochs", "3", "--steps", "5", "--quiet")
    assert "random-signs" in table and "stripes, linear" in table
