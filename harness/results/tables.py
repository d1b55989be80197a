"""Write records as Markdown and CSV tables. Needs no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from harness.results import flags, summaries
from harness.results.audits import Audit
from harness.results.records import Accuracy, Failure, Record, Timing
from harness.results.statistics import in_percent
from harness.storage.progress import duration
from harness.storage.store import Store

UNKNOWN = "–"
MARKS = "*†‡§¶‖#^~"
_WORST = "worst case"
_COLUMNS = 6
"""The most attacks that become columns; with more, a table has a line for each."""


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def counted(record: Record) -> Accuracy:
    """Return the attack's result: accuracy in the ball, or as returned where most images left the ball."""
    return record.returned if flags.OUTSIDE in record.flags else record.robust


def with_interval(record: Record) -> str:
    """Return the attack's result in percent with its interval, as `41.2 [38.2, 44.3]`."""
    found = counted(record)
    return in_percent(found.mean, found.interval)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The content of a results folder."""

    records: list[Record]
    failures: list[Failure]
    timings: Mapping[str, Timing]
    damage: tuple[str, ...] = ()
    """A line for each file that was left out because it is damaged, or is no file of the store."""


def load(store: Store) -> Loaded:
    """Return every record, failure and timing, in the order of their keys.

    Files that are damaged, or are none of the store's, are named in `damage` and left out.

    Raises:
        StoreError: a folder cannot be read.
    """
    records, damage = store.read_all("records", Record)
    audits, more = store.read_all("audits", Audit)
    failures, of_failures = store.read_all("failures", Failure)
    timings, of_timings = store.read_all("timings", Timing)
    doubted = summaries.flagged(list(records.values()), audits.values())
    return Loaded(
        [record for record in doubted if isinstance(record, Record)],
        list(failures.values()),
        timings,
        (*damage, *more, *of_failures, *of_timings),
    )


@dataclasses.dataclass(frozen=True)
class Grid:
    """Robust accuracies: a row for each trained defense, a column for each attack."""

    rows: Mapping[tuple[str, ...], Mapping[str, str]]
    """The entries of each row by column; a row is named by `_row`."""
    clean: Mapping[tuple[str, ...], str]
    notes: Sequence[str]
    """Explanations of marks and failures."""


def grid(loaded: Loaded) -> Grid:
    """Return the grid with every record and failure in its place."""
    marks: dict[str, str] = {}
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    clean: dict[tuple[str, ...], str] = {}
    worst = summaries.worst_cases(loaded.records)
    for record in sorted(loaded.records, key=_order):
        row = _row(record)
        for flag in record.flags:
            marks.setdefault(flag, MARKS[len(marks) % len(MARKS)])
        mark = "".join(marks[flag] for flag in record.flags)
        rows.setdefault(row, {})[_column(record)] = with_interval(record) + mark
        clean[row] = percent(record.clean.mean)
    reasons: dict[str, list[str]] = {}
    for failure in loaded.failures:
        row, column = _row(failure), _column(failure)
        if rows.setdefault(row, {}).setdefault(column, failure.kind) == failure.kind:
            reasons.setdefault(f"{failure.kind}: {failure.reason}", []).append(
                f"{failure.cell.attack} on {failure.cell.target.label}, {row[0]}"
            )
    # The worst case comes last, behind the attacks. Models of one description that different versions of
    # the code trained share a row and have a worst case each: the row shows the lowest.
    attacked = [record for record in loaded.records if record.key in worst]
    for record in sorted(attacked, key=lambda each: -worst[each.key].mean):
        threat, case = record.cell.threat, worst[record.key]
        column = f"{_WORST} at {threat.norm} {threat.epsilon:.4g}"
        rows[_row(record)][column] = in_percent(case.mean, case.interval)
    notes = [f"{mark} {flag}: {flags.EXPLANATIONS[flag]}" for flag, mark in marks.items()]
    for reason, cells in reasons.items():
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        notes.append(f"{reason} ({cells[0]}{more})")
    return Grid(rows, clean, notes)


def _order(record: Record) -> tuple[str, ...]:
    cell = record.cell
    return (cell.target.dataset, cell.target.label, str(cell.attack), record.key)


def _row(item: Record | Failure) -> tuple[str, ...]:
    cell = item.cell
    count = str(item.count) if isinstance(item, Record) else str(cell.limit or UNKNOWN)
    target = cell.target
    return (
        target.dataset,
        target.label,
        str(target.model) + ("" if target.precision == "auto" else f", {target.precision}"),
        UNKNOWN if target.training.kind == "given" else str(target.training.epochs),
        str(target.seed),
        count,
    )


def _column(item: Record | Failure) -> str:
    return f"{item.cell.attack} at {item.cell.threat.norm} {item.cell.threat.epsilon:.4g}"


def markdown(loaded: Loaded) -> str:
    """Return a table for each dataset, with flags and failures explained below it.

    It has a column for each attack, or a line for each attack where they are many.
    """
    found = grid(loaded)
    if not found.rows:
        return "" if loaded.damage else "No records here yet.\n"
    blocks = []
    for dataset in dict.fromkeys(row[0] for row in found.rows):
        rows = {row: cells for row, cells in found.rows.items() if row[0] == dataset}
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        columns.sort(key=lambda column: column.startswith(_WORST))
        header = ["dataset", "defense", "model", "epochs", "seed", "n", "clean"]
        body = []
        if sum(not column.startswith(_WORST) for column in columns) <= _COLUMNS:
            header += columns
            for row, cells in rows.items():
                values = (cells.get(column, UNKNOWN) for column in columns)
                body.append([*row, found.clean.get(row, UNKNOWN), *values])
        else:
            header += ["attack", "robust"]
            for row, cells in rows.items():
                start = [*row, found.clean.get(row, UNKNOWN)]
                for column in columns:
                    if column in cells:
                        body.append([*start, column, cells[column]])
        blocks += [markdown_table(header, body), ""]
    caption = "Robust accuracy in percent, mean over the scoring draws [95 % Wilson interval]."
    if any(column.startswith(_WORST) for cells in found.rows.values() for column in cells):
        caption += " Worst case: each image under the worst of its row's attacks."
    return (
        "\n".join([*blocks, caption, *(f"  {escape_markdown(note)}" for note in found.notes)])
        + "\n"
    )


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a GitHub table, aligned to be readable as plain text; no content of a cell can break it."""
    from tabulate import tabulate

    heading, *cells = [[escape_markdown(cell) for cell in row] for row in (header, *body)]
    return tabulate(cells, headers=heading, tablefmt="github", disable_numparse=True)


def csv(loaded: Loaded) -> str:
    """Return the records as CSV: one line for each record, every number in full."""
    import pandas

    rows = [flat(record, loaded.timings.get(record.key)) for record in loaded.records]
    frame = pandas.DataFrame(rows)
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def flat(record: Record, timing: Timing | None) -> dict[str, object]:
    """Return a record as one row of plain values."""
    cell, target = record.cell, record.cell.target
    low, high = record.robust.interval
    return {
        "dataset": target.dataset,
        "defense": guarded(target.label),
        "training": target.training.kind,
        "model": guarded(str(target.model)),
        "attack": guarded(str(cell.attack)),
        "norm": cell.threat.norm,
        "epsilon": cell.threat.epsilon,
        "seed": target.seed,
        "epochs": target.training.epochs,
        "count": record.count,
        "draws": record.resolved.draws,
        "clean": record.clean.mean,
        "clean_vote": record.clean.vote,
        "robust": record.robust.mean,
        "robust_low": low,
        "robust_high": high,
        "robust_one_draw": record.robust.one_draw,
        "robust_vote": record.robust.vote,
        "robust_all_draws": record.robust.all_draws,
        "as_returned": record.returned.mean,
        "fooled_on_the_way": record.fooled_on_the_way,
        "median_l2": record.distances.get("median_l2"),
        "forwards": record.passes.get("forwards"),
        "backwards": record.passes.get("backwards"),
        "flags": " ".join(record.flags),
        "seconds": timing.seconds if timing else None,
        "images_per_second": timing.images_per_second if timing else None,
        "commit": record.made.get("commit"),
        "key": record.key,
    }


def guarded(text: str) -> str:
    """Return a CSV cell that no spreadsheet reads as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


_MARKUP = re.compile(
    r"[\\|`]|(?<=\])(?=[(\[:])|(?<=!)(?=\[)|(?<![^\W_])_|_(?![^\W_])|~(?=~)|^(?=[#>+-] )"
)
"""The places that need an escape because Markdown would read markup there. Underscores inside a word and
brackets alone are no markup, so that intervals and names of parameters stay readable."""


def escape_markdown(text: str) -> str:
    """Return text escaped so that Markdown shows it literally: no markup, no HTML, no new line or column."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    plain = _MARKUP.sub(lambda found: f"\\{found[0]}", plain)
    if plain.count("*") > 1:  # a single one marks a flag
        plain = plain.replace("*", "\\*")
    plain = re.sub(r"&(?=#?\w+;)", "&amp;", plain)
    return plain.replace("<", "&lt;")


def summary(results: Sequence[Record | Failure], timings: Mapping[str, Timing | None]) -> str:
    """Return the table that `harness run` ends with: one line for each cell."""
    header = ["defense", "attack", "n", "clean (ε = 0)", "robust", "95 % interval", "one draw"]
    header += ["vote", "seconds", "images/s", "flags"]
    seeds = {result.cell.target.seed for result in results}
    body = []
    for result in results:
        cell = result.cell
        name = cell.target.label + (f", seed {cell.target.seed}" if len(seeds) > 1 else "")
        if isinstance(result, Failure):
            body.append([name, str(cell.attack), *[UNKNOWN] * 8, result.kind])
            continue
        accuracy = counted(result)
        low, high = accuracy.interval
        timing = timings.get(result.key)
        body.append(
            [
                name,
                str(cell.attack),
                str(result.count),
                percent(result.clean.mean),
                percent(accuracy.mean),
                f"{percent(low)} – {percent(high)}",
                percent(accuracy.one_draw),
                percent(accuracy.vote),
                duration(timing.seconds) if timing else UNKNOWN,
                _rate(timing.images_per_second) if timing else UNKNOWN,
                " ".join(result.flags) or "none",
            ]
        )
    return markdown_table(header, body)


def _rate(value: float) -> str:
    """Return a number as three digits, without powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
