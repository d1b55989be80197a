"""Names and reasons that contain markup are shown literally in tables."""

from __future__ import annotations

import dataclasses
import html
import re

import pytest
from markdown_it import MarkdownIt

from harness.cells.cells import Cell
from harness.paper import expansion, protocol
from harness.results import tables
from harness.results.records import Failure
from harness.results.tables import escape_markdown
from harness.types import Spec
from tests.helpers.fabricated import COUNT, record

HOSTILE = (
    *("a|b", "a\\|b", "`code`", "<script>alert(1)</script>", "<img src=x onerror=y>", "**bold**"),
    *("*soft* and *hard*", "_soft_", "__bold__", "~~gone~~", "[link](http://x)", "![img](x.png)"),
    *("[a][b]", "# heading", "> quote", "- item", "&lt;b&gt;", "&#60;b>", "a\\", "\\", "||", "`|`"),
    *("<http://x>", "[x]: http://y", "*†"),
)


@pytest.fixture
def cell() -> Cell:
    first = expansion.expand(protocol.load("table3"), protocol.profile("smoke"))[0].cells[0]
    return dataclasses.replace(first, limit=COUNT)


def shown(text: str) -> str:
    """What a reader sees of Markdown; markup in it is an error."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    plain = re.sub(r"</?(p|table|thead|tbody|tr|th|td)( style=\"[^\"]*\")?>", "", page)
    assert "<" not in plain, page
    return html.unescape(plain)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_shown_as_it_stands(text: str) -> None:
    assert shown(escape_markdown(text)).strip() == text


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\tb", "a\x00b", "a\u2028b", "a\ud800b"])
def test_escaped_text_is_one_printable_line(text: str) -> None:
    escaped = escape_markdown(text)
    assert escaped.isprintable() and escaped.split() == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["41.2 [38.2, 44.3]*†", "pgd(steps=40,step_size=0.01) at linf 0.3"]
)
def test_what_is_no_markup_is_left_alone(text: str) -> None:
    assert escape_markdown(text) == text


@pytest.mark.parametrize("text", [each for each in HOSTILE if "\\" not in each] + ["a\n\n# b"])
def test_headings_and_reasons_break_no_table(text: str, cell: Cell) -> None:
    attack = dataclasses.replace(cell, attack=Spec(text))
    failure = Failure(key="0" * 20, cell=attack, reason=text, kind="failed")
    loaded = tables.Loaded([record(cell), record(attack)], [failure], {})
    written = tables.markdown(loaded)
    rows = [line for line in written.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}
    assert len(rows) == 3 and len(widths) == 1, written
    assert " ".join(text.split()) in " ".join(shown(written).split())
