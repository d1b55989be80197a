"""Write a table of text as Markdown and LaTeX. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.results.tables import escape_markdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as text, which all formats print."""

    title: str
    caption: list[str]
    header: list[str]
    body: list[list[str]]
    notes: list[str]
    lead: int
    """The number of columns that are labels."""


def markdown(page: Sheet) -> str:
    """Return a GitHub table with its caption above and its notes below."""
    lines = [f"**{escape_markdown(page.title)}**", ""]
    lines += [escape_markdown(" ".join(page.caption)), ""]
    lines.append(_line(page.header))
    lines.append(_line(["---"] * len(page.header)))
    lines += [_line(row) for row in page.body]
    if page.notes:
        lines += ["", *(f"- {escape_markdown(note)}" for note in page.notes)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "ε": r"$\varepsilon$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))


def latex(page: Sheet) -> str:
    """Return a booktabs table."""
    columns = "l" * page.lead + "r" * (len(page.header) - page.lead - 1) + "l"
    rows = [" & ".join(map(escape_latex, row)) + r" \\" for row in [page.header, *page.body]]
    # LaTeX would read a [ or * at the start of a row as an argument of \\ or \toprule.
    rows = ["{}" + row if row.startswith(("[", "*")) else row for row in rows]
    notes = [r"\par " + escape_latex(note) for note in page.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\caption{" + escape_latex(" ".join([page.title + ".", *page.caption])) + "}",
            r"\begin{tabular}{" + columns + "}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )
