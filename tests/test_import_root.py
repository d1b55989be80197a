"""The harness works in a folder that has packages called `models`, `attacks`, ... of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = shlex.split(
    "run --dataset digits --defense vanilla --attack fgsm --limit 4 --epochs 1 -T limit=64"
)
SCRIPT = """
import harness, models.own
images, labels = harness.load_images("digits", count=4)
model = harness.load_defended("vanilla", epochs=1, limit=64, quiet=True, results="store")
found = harness.evaluate(model, images, labels, attack="fgsm", epsilon=0.1, quiet=True)
print("attacked", found.records[0].count, models.own.NAME)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A research repository whose packages bear the names of ours; all but `models` fail on import."""
    for name in ("models", "attacks", "defenses", "results", "tests"):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text("" if name == "models" else "raise RuntimeError")
    (tmp_path / "models" / "own.py").write_text("NAME = 'theirs'\n")
    (tmp_path / "models" / "lenet.py").write_text("raise RuntimeError\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def output(command: list[str], folder: Path, path: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_script_beside_packages_of_its_own(repository: Path) -> None:
    assert "attacked 4 theirs" in output([sys.executable, "script.py"], repository, str(ROOT))


def test_the_module_beside_packages_of_its_own(repository: Path) -> None:
    words = [sys.executable, "-m", "harness", *WORDS, "--results", "store"]
    assert "vanilla" in output(words, repository, str(ROOT))


def test_the_command_beside_packages_of_its_own(repository: Path) -> None:
    command = Path(sys.executable).with_name("harness")
    assert command.exists(), "the tests run in an environment that the harness is installed in"
    assert "vanilla" in output([str(command), *WORDS, "--results", "store"], repository)
