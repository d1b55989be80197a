"""Every command and every Python block of the documentation runs, in a quick form.

A comment right above a block says how: `<!-- quick: MORE WORDS -->` adds words to its `harness run`,
`<!-- not run: WHY -->` leaves it out. Commands other than those in `RUN` are parsed, not run: their own tests
run them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
RUN = {"run", "table", "list", "data", "new", "check"}
QUICK = "--epochs 1 -T limit=120 --limit 6 --steps 2 --draws 2 --quiet --device cpu"
DOWNLOADS = {"mnist", "cifar10", "cifar10-jpeg", "svhn", "tiny-imagenet"}
HEAVY = {"tvm", "pixeldefend", "menet-nuc", "menet-softimpute", "menet", "adaptive"}
"""Parsed where they stand in a block without a quick form: their own tests run them."""
FENCE = re.compile(
    r"(?:<!--\s*(quick|not run):?\s*(.*?)\s*-->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Block:
    page: str
    line: int
    mark: str
    words: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The `harness` commands, one list of words each, without the word `harness`."""
        found = []
        joined = self.text.replace("\\\n", " ")
        for line in joined.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["harness"]:
                    found.append(words[1:])
        return found


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in FENCE.finditer(text):
            mark, words, language, body = match.groups()
            line = text[: match.start(3)].count("\n") + 1
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, mark or "", words or "", language, body))
    return found


ALL = blocks()
COMMANDS = [block for block in ALL if block.language in ("", "bash", "sh") and block.commands]
PYTHON = [block for block in ALL if block.language == "python"]


def parsed(words: list[str]) -> None:
    """Raises click.UsageError where the command line does not know a word."""
    context = main.make_context("harness", list(words))
    command: click.Command = main
    rest = [*context.protected_args, *context.args] if hasattr(context, "protected_args") else []
    rest = rest or list(words)
    while isinstance(command, click.Group) and rest:
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        if not isinstance(command, click.Group):
            context = command.make_context(name, rest, parent=context)


def quick(words: list[str], extra: str) -> list[str]:
    """A command line that does the same on a few digits."""
    short = []
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--data-dir":
            position += 2
            continue
        short.append("digits" if word in DOWNLOADS else word)
        position += 1
    if words[0] == "run":
        short += shlex.split(QUICK) + shlex.split(extra)
    return short


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in block.commands:
        parsed(words)
        if block.mark == "not run" or words[0] not in RUN:
            assert block.words or block.mark != "not run", "say why it is not run"
            continue
        if block.mark != "quick" and HEAVY & set(re.split(r"[\s(=,]", " ".join(words))):
            continue
        if words[0] == "run":
            for path in {part.partition(":")[0] for part in words if ".py:" in part}:
                prepare(Path(path))
        if words[0] == "table":
            done = CliRunner().invoke(main, ["table"])
            assert done.exit_code in (0, 2), done.output  # 2: no records yet, on this page
            continue
        done = CliRunner().invoke(main, quick(words, block.words))
        assert done.exit_code == 0, f"harness {shlex.join(words)}\n{done.output}"


def prepare(path: Path) -> None:
    """The file that an earlier block of the page has written."""
    kind = "attack" if "attack" in path.stem else "defense"
    if not path.exists():
        assert CliRunner().invoke(main, ["new", kind, path.stem]).exit_code == 0


def test_the_table_of_the_protocols_page_and_its_errors(tmp_path: Path) -> None:
    page = [block for block in ALL if block.page == "docs/protocols.md"]
    table, profile = (block.text for block in page if block.language == "toml")
    (tmp_path / "my.toml").write_text(profile)
    place = tmp_path / "my-table.toml"
    (errors,) = (block.text for block in page if block.text.startswith("error: "))
    line_23, row = errors.splitlines()
    words = ["reproduce", str(place), "--profile", f"{tmp_path}/my.toml:mine", "--dry-run"]
    for right, wrong, said in (("defense =", "defence =", line_23), ("p_low=0.4", "plow=0.4", row)):
        place.write_text(table.replace(right, wrong, 1))
        done = CliRunner().invoke(main, [*words, "--results", str(tmp_path / "results")])
        assert done.exit_code == 2
        assert done.stderr.strip().replace(f"{tmp_path}/", "") == said


@pytest.mark.parametrize("block", PYTHON, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block.text, str(block), "exec")
    if block.mark == "not run":
        assert block.words, "say why it is not run"
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "runs" / "records").mkdir(parents=True)
    exec(code, {"__name__": "documentation"})


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_of_defenses_is_up_to_date() -> None:
    tool = ROOT / "tools" / "document_defenses.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, "run python tools/document_defenses.py"


def test_the_picture_of_the_rooms_is_up_to_date() -> None:
    tool = ROOT / "tools" / "architecture.py"
    done = subprocess.run([sys.executable, str(tool), "--check"])
    assert done.returncode == 0, "run python tools/architecture.py"


def test_every_command_has_an_example_in_its_help() -> None:
    for name, command in main.commands.items():
        subcommands = command.commands if isinstance(command, click.Group) else {name: command}
        for sub in subcommands.values():
            assert "harness " in (sub.help or ""), f"harness {name} --help shows no example"


def test_the_example_of_an_own_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "own_model.py"), run_name="__main__")
    assert "robust accuracy" in capsys.readouterr().out and (tmp_path / "own.csv").exists()
    words = ["--model", f"{ROOT}/examples/own_model.py:build", "--normalisation", "mnist"]
    words += ["--weights", str(tmp_path / "own.safetensors"), "--attack", "fgsm", "--limit", "20"]
    done_too = CliRunner().invoke(main, ["run", *words, "--quiet", "--results", str(tmp_path)])
    assert done_too.exit_code == 0, done_too.output
