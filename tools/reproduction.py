"""Claim by claim, what a results folder has to say: the part of docs/reproduction.md between its two marks.

    python tools/reproduction.py results/laptop --profile laptop

Every number is that of a record in the folder, and links to it. Numbers at a smaller scale than the paper's
decide nothing.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from harness.paper import protocol
from harness.paper.measured import Number, Results, percent, verdict
from harness.storage.store import Store

PAGE = Path(__file__).parent.parent / "docs" / "reproduction.md"
BEGIN, END = "<!-- claims: made by tools/reproduction.py -->", "<!-- end of claims -->"
HEAD = ["where", "claimed", "measured here", "worst case", "scale here", "state"]


def scale(number: Number) -> str:
    """`200 images, 8 epochs`"""
    if not number.records:
        return "–"
    record = number.records[0]
    return f"{record.count} images, {record.cell.target.training.epochs} epochs"


def row(number: Number, labels: list[str], column: str, results: Path) -> list[str]:
    claim, found = number.place.claim, verdict(number)
    assert claim is not None and found is not None
    measured = "–"
    if number.measured is not None:
        link = f"../{results.as_posix()}/records/{number.records[0].key}.json"
        measured = f"[{percent(number.measured)}]({link})"
    after = percent(number.after.share) if number.after else "–"
    reason = "" if claim.value is None or number.measured else f": {found.says}"
    return [
        f"{' / '.join(labels)}: {column}",
        "–" if claim.value is None else f"{claim.value:g}",
        measured,
        after,
        scale(number),
        f"fell: {found.says.split(';')[0]}" if found.state == "fell" else found.state + reason,
    ]


def text(results: Path, profile_name: str) -> str:
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
