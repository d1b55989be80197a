"""Errors send their reader to a page that is there."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import main
from harness.types import DamageError, HarnessError, Page

DOCS = Path(__file__).parents[2] / "docs"


def test_every_page_exists() -> None:
    pages = typing.get_args(Page)
    assert pages
    for page in pages:
        assert (DOCS / f"{page}.md").is_file(), page


def test_a_page_is_the_end_of_the_message() -> None:
    assert str(HarnessError("no", page="plugins")) == "no (see docs/plugins.md)"
    assert str(HarnessError("no")) == "no"
    assert str(DamageError("torn", page="scaling")).endswith("(see docs/scaling.md)")


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (["run", "--attack", "pdg"], "plugins"),
        (["run", "--attack", "nofile.py:Attack"], "plugins"),
        (["run", "--attack", "my_attack.py"], "plugins"),
        (["run", "--attack", "pgd", "-A", "stepz=3"], "attacks"),
        (["run", "--attack", "fgsm", "-D", "maskz=3", "--defense", "menet-nuc"], "defenses"),
        (["run", "--attack", "pgd", "--dataset", "mnits"], "datasets"),
        (["run", "--attack", "adaptive", "--budget-scale", "2"], "flags"),
        (["run", "--attack", "pgd", "--normalisation", "half"], "quickstart"),
        (["audit", "--defense", "vanilla", "--budget", "soon"], "flags"),
        (["reproduce", "tabel4"], "protocols"),
        (["reproduce", "table4", "--profile", "labtop"], "protocols"),
        (["new", "attack", "1"], "plugins"),
        (["check", "nothing"], "plugins"),
    ],
)
def test_the_page_that_helps(tmp_path: Path, words: list[str], page: str) -> None:
    results = [] if words[0] in ("new", "check") else ["--results", str(tmp_path)]
    done = CliRunner().invoke(main, [*words, *results])
    assert done.exit_code == 2, done.output
    assert f"(see docs/{page}.md)" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("attribute", "said"), [("bild", "did you mean build"), ("Nothing", "none of that name")]
)
def test_functions_of_a_file_are_offered_too(tmp_path: Path, attribute: str, said: str) -> None:
    from harness.registry import models

    file = tmp_path / "my.py"
    file.write_text("from pathlib import Path\ndef build():\n    return None\n")
    with pytest.raises(HarnessError, match=said):
        models.get(f"{file}:{attribute}")


def test_a_model_that_cannot_be_made_says_how_it_would_be(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text("from torch import nn\ndef build():\n    return nn.Flatten()\n")
    words = ["run", "--attack", "fgsm", "--model", f"{file}:build", "--quiet", "--limit", "2"]
    done = CliRunner().invoke(main, [*words, "--results", str(tmp_path / "r")])
    assert done.exit_code == 2 and "--weights FILE" in done.output, done.output
