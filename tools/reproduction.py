"""Compare a results folder with each claim: the part of docs/reproduction.md between its two marks.

    python tools/reproduction.py results/laptop --profile laptop

Every number is that of a record in the folder, and links to it. `agrees` and `differs` stand only where no
setting is another than the claim's; else the settings are named, and how the interval lies to the claim.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from harness.paper import protocol
from harness.paper.claims import refutations
from harness.paper.measured import Number, Results, percent, verdict
from harness.paper.tables import claimed, shown
from harness.storage.store import Store

PAGE = Path(__file__).parent.parent / "docs" / "reproduction.md"
BEGIN, END = "<!-- claims: made by tools/reproduction.py -->", "<!-- end of claims -->"
HEAD = ["where", "claimed", "measured here", "worst case", "scale here", "against the claim"]
SIDES = {"below": "below it", "within": "around it", "above": "above it"}


def scale(number: Number) -> str:
    """Return `200 images, 8 epochs`."""
    if not number.records:
        return "–"
    record = number.records[0]
    return f"{record.count} images, {record.cell.target.training.epochs} epochs"


def row(number: Number, labels: list[str], column: str, results: Path) -> list[str]:
    """Return the cells of one claim's line."""
    measured = "–"
    if number.measured is not None:
        link = f"../{results.as_posix()}/records/{number.records[0].key}.json"
        measured = f"[{shown(number)}]({link})"
    after = percent(number.after.share) if number.after else "–"
    return [
        f"{' / '.join(labels)}: {column}",
        claimed(number),
        measured,
        after,
        scale(number),
        against(number),
    ]


def against(number: Number) -> str:
    """Return what the measurement says about the claim, and who refuted it."""
    claim, judged, compared = number.place.claim, verdict(number), number.compared
    assert claim is not None and judged is not None
    if claim.value is None:
        said = "the claimed number is not known"
    elif compared is None:
        said = "not measured" + (f": {number.reason}" if number.reason else "")
    elif compared.differences:
        said = f"{compared.state}, {SIDES[compared.side]}: {'; '.join(compared.differences)}"
    else:
        said = compared.state
    refuted = [f"{other.value:g}, {other.source} ({other.attack})" for other in refutations(claim)]
    return "; ".join([said, *(f"refuted: {each}" for each in refuted)])


def text(results: Path, profile_name: str) -> str:
    """Return the page's part: a table for each protocol that claims something."""
    profile, found = protocol.profile(profile_name), Results(Store(results))
    lines = []
    for name in protocol.names():
        table = protocol.load(name)
        numbers = [each for each in found.numbers(table, profile) if each.place.claim is not None]
        if not numbers or table.kind == "images":
            continue
        lines += [f"### {table.title}", "", f"{table.caption}.", ""]
        lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        for number in numbers:
            place = number.place
            cells = row(
                number, table.rows[place.row].labels, table.columns[place.column].title, results
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--profile", default="laptop")
    options = parser.parse_args()
    page = PAGE.read_text("utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    made = f"{BEGIN}\n{text(options.results, options.profile)}{END}"
    PAGE.write_text(between.sub(lambda _: made, page), "utf-8")


if __name__ == "__main__":
    main()
