"""The journey in docs/architecture.md is the one that a run takes."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import FrameType

from click.testing import CliRunner

from harness.cli.main import main

ROOT = Path(__file__).parent.parent
MOST = 14


def stops() -> list[str]:
    """Return the files that the page numbers, in order."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    journey = page.partition("## One batch's journey")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", journey, re.MULTILINE)


def test_a_run_enters_the_files_of_the_page_in_their_order(tmp_path: Path) -> None:
    listed = stops()
    assert 10 <= len(listed) <= MOST and len(set(listed)) == len(listed)
    for name in listed:  # so that nothing below is entered by being imported
        importlib.import_module("harness." + name.removesuffix(".py").replace("/", "."))
    engine = str(ROOT / "harness") + "/"
    entered: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "__post_init__":  # of an options object
            name = frame.f_code.co_filename
            if name.startswith(engine):
                entered.setdefault(name.removeprefix(engine))

    words = "--defense menet-usvt --attack fgsm --limit 4 --draws 1 --epochs 1 -T limit=10 --quiet"
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        done = CliRunner().invoke(main, ["run", *words.split(), "--results", str(tmp_path)])
    finally:
        sys.setprofile(before)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "records").iterdir())
    *way, last = listed
    assert [name for name in entered if name in way] == way
    assert last == "storage/store.py" and last in entered
