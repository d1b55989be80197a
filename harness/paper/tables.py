"""Write a paper's table beside its measurement: claimed | measured | after the adaptive suite | flags.

Markdown, CSV and LaTeX are made from the records alone, byte for byte the same each time. Needs no torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from harness.cells import defaults
from harness.paper import claims, comparison, protocol, sheets
from harness.paper.claims import Claim
from harness.paper.measured import After, Number, Results, Share, percent, symbols, verdict
from harness.paper.protocol import Profile, Protocol
from harness.paper.sheets import Sheet
from harness.results import flags as audit
from harness.results.records import Record
from harness.results.tables import UNKNOWN, guarded
from harness.storage import store

FOLDER = "tables"
ABOUT_CLAIMS = ("claim:", "beside:", "refuted:", "other settings:")
"""The words with which notes about claims begin."""
AFTER = "after the adaptive suite"


def write(table: Protocol, profile: Profile, results: Results) -> list[Path]:
    """Write the three files of a table under `tables/` of the results folder, and return their paths."""
    numbers = results.numbers(table, profile)
    page = sheet(table, profile, numbers)
    folder = results.store.results / FOLDER
    written = []
    for suffix, text in (
        ("md", sheets.markdown(page)),
        ("csv", csv_text(table, numbers)),
        ("tex", sheets.latex(page)),
    ):
        path = folder / f"{table.name}.{suffix}"
        store.write_atomic(path, text.encode())
        written.append(path)
    return written


def sheet(table: Protocol, profile: Profile, numbers: Sequence[Number]) -> Sheet:
    """Return the table in the paper's own order of rows and columns.

    The worst case belongs to a defended model, not to a column, so each row has it once.
    """
    marks = _marks(numbers)
    single = len(table.columns) == 1
    heads = protocol.headings(table)
    header = list(heads)
    for column in table.columns:
        title = "" if single else f"{column.title}: "
        header += [f"{title}claimed"] if claims_anything(numbers) else []
        header += [f"{title}measured"]
    header += [AFTER] if table.suite else []
    header += ["flags"]
    body = []
    for i, row in enumerate(table.rows):
        mine = [number for number in numbers if number.place.row == i]
        line = list(row.labels)
        for number in mine:
            line += [claimed(number)] if claims_anything(numbers) else []
            line.append(measured(number, marks))
        if table.suite:
            line.append(_after(mine))
        flags = sorted({flag for number in mine for flag in number.flags})
        line.append(", ".join(flags) or ("none" if _any(mine) else UNKNOWN))
        body.append(line)
    notes = [f"{mark}: {flag} – {audit.EXPLANATIONS[flag]}" for flag, mark in marks.items()]
    notes += _claim_notes(table, numbers)
    return Sheet(
        title=f"{table.title}. {table.caption}",
        caption=caption(table, profile, numbers),
        header=header,
        body=body,
        notes=notes,
        lead=len(heads),
    )


def _marks(numbers: Sequence[Number]) -> dict[str, str]:
    """Return a letter for each flag of the table, in order of appearance."""
    flags = list(dict.fromkeys(flag for number in numbers for flag in number.flags))
    return dict(zip(flags, symbols(len(flags)), strict=True))


def _any(numbers: Sequence[Number]) -> bool:
    return any(number.records for number in numbers)


def claims_anything(numbers: Sequence[Number]) -> bool:
    """Return whether the table has any claims; one that goes beyond the paper has none."""
    return any(number.place.claim is not None for number in numbers)


def claimed(number: Number) -> str:
    """Return the claimed value, followed by other published values for the same cell."""
    claim = number.place.claim
    if claim is None:
        return UNKNOWN
    return "; ".join([UNKNOWN if claim.value is None else _value(claim), *_beside(number)])


def _beside(number: Number) -> list[str]:
    """Return other published values for the same cell: `87.85 rerun, menet-usvt`."""
    claim = number.place.claim
    others = claims.beside(claim) if claim is not None else []
    return [f"{_value(other)} {other.id}, {other.defense}" for other in others]


def _value(claim: Claim) -> str:
    """Return a claimed value as it was published, with at least one decimal."""
    return f"{claim.value:.1f}" if claim.value == round(claim.value or 0, 1) else f"{claim.value:g}"


def measured(number: Number, marks: dict[str, str]) -> str:
    """Return the text of a number: `41.2 [38.2, 44.3] (a, b): agrees`, `refused: ...`, or a dash.

    Where most images left the ball, the accuracy as returned is shown, since in the ball they count as not
    attacked.
    """
    if number.measured is None:
        return number.reason or UNKNOWN
    flags = ", ".join(marks[flag] for flag in number.flags)
    text = shown(number) + (f" ({flags})" if flags else "")
    return text if number.compared is None else f"{text}: {number.compared.state}"


def shown(number: Number) -> str:
    """Return the accuracy as `41.2 [38.2, 44.3]`, as returned where most images left the ball."""
    assert number.measured is not None
    if not number.outside:
        return percent(number.measured)
    return f"{percent(number.measured)} as returned, outside the ball"


def worst(numbers: Sequence[Number]) -> After | None:
    """Return the worst case of a row; where its cells were scored on different images, the lowest."""
    found = [number.after for number in numbers if number.after is not None]
    return min(found, key=lambda after: (after.share.mean, after.keys)) if found else None


def _after(numbers: Sequence[Number]) -> str:
    lowest = worst(numbers)
    return f"{percent(lowest.share)}, {len(lowest.attacks)} attacks" if lowest else UNKNOWN


def _claim_notes(table: Protocol, numbers: Sequence[Number]) -> list[str]:
    """Return notes on the claims, each once: other settings, remarks, and the numbers of others."""
    places: dict[str, list[str]] = {}
    for number in numbers:
        claim = number.place.claim
        if claim is None:
            continue
        row = " / ".join(table.rows[number.place.row].labels)
        column = table.columns[number.place.column].title
        where = row if len(table.columns) == 1 else f"{row}, {column}"
        compared = number.compared
        if compared is not None and compared.differences:
            places.setdefault(str(compared), []).append(where)
        if claim.note:
            places.setdefault(f"claim: {claim.note}", []).append(where)
        for other in claims.beside(claim):
            says = f"beside: {_value(other)} in {other.source} ({other.defense})"
            places.setdefault(says, []).append(where)
        for other in claims.refutations(claim):
            steps = f", {other.steps} steps" if other.steps else ""
            says = f"refuted: {other.value:g} in {other.source} ({other.attack}{steps}"
            places.setdefault(f"{says}; {other.note})", []).append(where)
    return [
        f"{note} – {'; '.join(found) if len(found) < 4 else f'{len(found)} numbers'}"
        for note, found in places.items()
    ]


# --- the caption ------------------------------------------------------------------------------------


def caption(table: Protocol, profile: Profile, numbers: Sequence[Number]) -> list[str]:
    """Return the lines that a reader needs to judge the numbers: profile, scale, seeds, commit."""
    lines = []
    if table.source:
        lines.append(f"Claimed: {table.source}.")
    records = [record for number in numbers for record in number.records]
    lines.append(f"Profile {profile.name}: {profile.summary}.")
    if not records:
        return [*lines, "Nothing is measured yet."]
    smaller = scaled_down(numbers)
    if smaller:
        lines.append("Scaled down: " + "; ".join(smaller) + ".")
    facts = [
        f"{_range([record.count for record in records])} test images",
        f"{_range([_epochs(record) for record in records])} epochs",
        f"{_range([record.resolved.draws for record in records])} scoring draws",
        f"seeds {_list(record.cell.target.seed for record in records)}",
        f"commit {_list(record.made.get('commit', 'unknown') for record in records)}",
        f"device {_list(record.made.get('device', 'unknown') for record in records)}",
    ]
    steps = [comparison.steps_of(record.cell.attack) for record in records]
    if any(steps):
        facts.insert(1, f"{_range([step for step in steps if step])} attack steps")
    lines.append("; ".join(facts) + ".")
    seeds = " and the seeds" if any(len(number.records) > 1 for number in numbers) else ""
    lines.append(
        f"Accuracy in percent, mean over the scoring draws{seeds} [95 % Wilson interval, images as units]."
    )
    if table.suite:
        lines.append(
            "After the adaptive suite: each image under its worst attack of all that were run on this "
            "model in this ball (chosen by one half of the draws, scored by the other); a dash where "
            "only one was."
        )
    if profile.name == "smoke":
        lines.append("No number here tests a claim of the paper: it shows that the parts work.")
    return lines


def scaled_down(numbers: Sequence[Number]) -> list[str]:
    """Return the differences of the cells from the paper's, in words."""
    stand_ins: dict[str, None] = {}
    updates: set[tuple[int, int]] = set()
    steps: set[tuple[int, int]] = set()
    training: set[int] = set()
    tests: set[int] = set()
    for number in numbers:
        settings, published = number.place.settings, number.place.published
        if published is None:
            continue
        for record in number.records:
            cell, plan = record.cell, record.cell.target.training
            if cell.target.dataset != settings.dataset:
                stand_ins[f"{cell.target.dataset} in place of {settings.dataset}"] = None
            if cell.target.model != published.target.model:
                stand_ins[f"{cell.target.model} in place of {settings.model}"] = None
            done = defaults.updates(cell.target.dataset, plan)
            full = defaults.updates(published.target.dataset, published.target.training)
            if done and full and done != full:
                updates.add((done, full))
            here, there = comparison.steps_of(cell.attack), comparison.steps_of(published.attack)
            if here and there and here != there:
                steps.add((here, there))
            if plan.limit is not None and plan.limit != published.target.training.limit:
                training.add(plan.limit)
            if cell.limit is not None and cell.limit != published.limit:
                tests.add(record.count)
    said = list(stand_ins)
    for pairs, what in ((updates, "updates"), (steps, "attack steps")):
        if pairs:
            here_, there_ = zip(*sorted(pairs), strict=True)
            said.append(f"{_range(here_)} of {_range(there_)} {what}")
    if training:
        said.append(f"{_range(sorted(training))} training images")
    if tests:
        said.append(f"the first {_range(sorted(tests))} test images")
    return said


def _epochs(record: Record) -> int:
    return record.cell.target.training.epochs


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _list(values: object) -> str:
    return ", ".join(sorted({str(value) for value in values}))  # type: ignore[attr-defined]


# --- the numbers in full ---------------------------------------------------------------------------


def csv_text(table: Protocol, numbers: Sequence[Number]) -> str:
    """Return the table as CSV: one line for each number, everything in full."""
    heads = protocol.headings(table)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = [
        "column",
        "claimed",
        "claim_source",
        "claim_note",
        "beside",
        "measured",
        "low",
        "high",
    ]
    fields += ["in_ball", "as_returned", "compared", "other_settings"]
    fields += ["images", "draws", "one_draw", "vote", "after", "after_low", "after_high"]
    fields += ["after_attacks", "flags", "verdict", "verdict_says", "dataset", "model", "defense"]
    fields += ["training", "attack", "epsilon", "epochs", "seeds", "reason", "keys"]
    writer.writerow([guarded(name) for name in [*heads, *fields]])
    for number in numbers:
        row = table.rows[number.place.row]
        values = [*row.labels, *_fields(table, number)]
        writer.writerow([guarded(str(value)) for value in values])
    return file.getvalue()


def _fields(table: Protocol, number: Number) -> list[object]:
    claim, records, judged = number.place.claim, number.records, verdict(number)
    first, compared = records[0] if records else None, number.compared
    cell = first.cell if first else (number.place.cells[0] if number.place.cells else None)
    return [
        table.columns[number.place.column].title,
        "" if claim is None or claim.value is None else claim.value,
        claim.source if claim else "",
        claim.note if claim else "",
        "; ".join(_beside(number)),
        *_share(number.measured),
        first.robust.mean if first else "",
        first.returned.mean if first else "",
        compared.state if compared else "",
        "; ".join(compared.differences) if compared else "",
        first.count if first else "",
        first.resolved.draws if first else "",
        first.robust.one_draw if first else "",
        first.robust.vote if first else "",
        *_share(number.after.share if number.after else None),
        " ".join(number.after.attacks) if number.after else "",
        " ".join(number.flags),
        judged.state if judged else "",
        judged.says if judged else "",
        cell.target.dataset if cell else number.place.settings.dataset,
        cell.target.model if cell else number.place.settings.model,
        cell.target.label if cell else number.place.settings.defense,
        cell.target.training.kind if cell else number.place.settings.training or "",
        cell.attack if cell else number.place.settings.attack,
        cell.threat.epsilon if cell else "",
        cell.target.training.epochs if cell else "",
        " ".join(str(each.target.seed) for each in number.place.cells),
        number.reason,
        " ".join(record.key for record in records),
    ]


def _share(share: Share | None) -> list[object]:
    return ["", "", ""] if share is None else [share.mean, *share.interval]
