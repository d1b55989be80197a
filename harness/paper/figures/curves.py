"""Draw curves of robust accuracy against steps (with the paper's own curve), epsilon, draws or queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from harness.paper import claims
from harness.paper.claims import Claim
from harness.paper.comparison import keep_probabilities, steps_of
from harness.paper.expansion import training_of
from harness.paper.measured import Number, Results, Share
from harness.paper.protocol import Profile, Protocol, headings
from harness.results.style import COLOURS, DARK, GREY, MARKERS, Drawing
from harness.spec import parse

Point = tuple[float, Share]


def steps(table: Protocol, profile: Profile, results: Results) -> Drawing:
    """Draw a panel for each value of the first label: the measured curve, with the paper's behind it."""
    numbers = results.numbers(table, profile)
    panels = list(dict.fromkeys(row.labels[0] for row in table.rows))
    methods = list(dict.fromkeys(row.labels[-1] for row in table.rows))
    wide = min(2, len(panels))
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(4.4 * wide, 3.1 * high + 0.9))
    rows: list[tuple[object, ...]] = []
    handles: dict[str, Any] = {}
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(high, wide, place + 1)
        here: set[str] = set()
        for number in numbers:
            row = table.rows[number.place.row]
            if row.labels[0] != panel:
                continue
            method = row.labels[-1]
            at = methods.index(method)
            colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
            behind = _claimed(table, number)
            if behind:
                axes.plot(
                    [claim.steps or 0 for claim in behind],
                    [claim.value or 0.0 for claim in behind],
                    color=colour,
                    linestyle=":",
                    marker=marker,
                    markerfacecolor="none",
                    markersize=5,
                    alpha=0.55,
                )
            points = _trace(number)
            if points:
                handles[method] = _measured(axes, points, colour, marker)
                here |= {_where(number)}
            rows += _rows(row.labels, points, behind, number)
        axes.set_title(panel + (f"\nhere: {'; '.join(sorted(here))}" if here else ""))
        axes.set(ylim=(-3, 103), ylabel="accuracy (%)", xlabel=table.axis)
        if table.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        if not here:
            reason = next((n.reason for n in numbers if _panel(table, n) == panel and n.reason), "")
            _note(axes, "not measured" + (f": {reason}" if reason else ""))
    _legend(figure, handles, claimed=True)
    figure.suptitle(f"{table.title}. Profile {profile.name}")
    header = (*headings(table), "steps", "claimed", "measured", "low", "high")
    return Drawing(figure, (*header, "images", "key"), rows)


def curve(table: Protocol, profile: Profile, results: Results) -> Drawing:
    """Draw one panel: a line for each row, a point for each column."""
    numbers = results.numbers(table, profile)
    figure = Figure(figsize=(6.2, 3.9))
    axes = figure.add_subplot(1, 1, 1)
    rows: list[tuple[object, ...]] = []
    handles: dict[str, Any] = {}
    for at, row in enumerate(table.rows):
        mine = [number for number in numbers if number.place.row == at]
        points = []
        for number in mine:
            x = table.columns[number.place.column].x or 0.0
            share = number.measured
            record = number.records[0] if number.records else None
            if share is not None:
                points.append((x, share))
            low, high = share.interval if share else ("", "")
            rows.append(
                (
                    *row.labels,
                    x,
                    share.mean if share else "",
                    low,
                    high,
                    record.passes.get("forwards", "") if record else "",
                    record.count if record else "",
                    " ".join(number.flags),
                    number.reason,
                    _keys(number),
                )
            )
        if points:
            colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
            handles[" / ".join(row.labels)] = _measured(axes, points, colour, marker)
    axes.set(ylim=(-3, 103), xlabel=table.axis, ylabel="robust accuracy (%)")
    if table.logarithmic:
        axes.set_xscale("log")
    axes.set_xticks([column.x or 0.0 for column in table.columns], [c.title for c in table.columns])
    axes.minorticks_off()
    if not handles:
        _note(axes, "nothing is measured yet")
    classes = {record.classes for number in numbers for record in number.records}
    if len(classes) == 1:
        chance = 100 / classes.pop()
        line = axes.axhline(chance, color=GREY, linewidth=0.8, linestyle="-.")
        handles["chance"] = line
    axes.legend(list(handles.values()), list(handles))
    here = sorted({_where(number) for number in numbers if number.records})
    figure.suptitle(
        f"{table.title}. Profile {profile.name}" + (f": {'; '.join(here)}" if here else "")
    )
    header = (*headings(table), "x", "measured", "low", "high")
    return Drawing(figure, (*header, "queries", "images", "flags", "reason", "key"), rows)


def _trace(number: Number) -> list[Point]:
    """Return the robust accuracy after each number of steps, mean over seeds, up to the number itself."""
    if not number.records or number.measured is None:
        return []
    last = steps_of(number.records[0].cell.attack)
    seen: dict[int, list[float]] = {}
    for record in number.records:
        for point in record.trace:
            seen.setdefault(point.step, []).append(point.accuracy)
    points = [
        (float(step), Share(sum(values) / len(values), number.measured.count))
        for step, values in sorted(seen.items())
        if step != last and len(values) == len(number.records)
    ]
    return [*points, (float(last or 1), number.measured)]


def _claimed(table: Protocol, number: Number) -> list[Claim]:
    """Return the points of the paper's curve for a row; none where the row has other keep probabilities."""
    settings = number.place.settings
    spec = parse(settings.defense or "")
    defense, p = spec.name, keep_probabilities(spec)
    return [
        claim
        for claim in claims.load()
        if claim.id == (table.claims or table.name)
        and (claim.dataset, claim.model, claim.defense)
        == (settings.dataset, settings.model, defense)
        and claim.training == training_of(settings)
        and claim.attack == settings.attack
        and claim.p in (None, p)
        and claim.value is not None
    ]


def _measured(axes: Any, points: Sequence[Point], colour: str, marker: str) -> Any:
    x = [point[0] for point in points]
    y = [100 * point[1].mean for point in points]
    low = [100 * point[1].interval[0] for point in points]
    high = [100 * point[1].interval[1] for point in points]
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    (line,) = axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.6)
    return line


def _keys(number: Number) -> str:
    """Return the keys of the records behind a number, one for each seed."""
    return " ".join(record.key for record in number.records)


def _rows(
    labels: Sequence[str], points: Sequence[Point], behind: Sequence[Claim], number: Number
) -> list[tuple[object, ...]]:
    measured = dict(points)
    claimed = {float(claim.steps or 0): claim.value for claim in behind}
    record = number.records[0] if number.records else None
    rows: list[tuple[object, ...]] = []
    for step in sorted({*measured, *claimed}):
        share = measured.get(step)
        low, high = share.interval if share else ("", "")
        rows.append(
            (
                *labels,
                int(step),
                claimed.get(step, ""),
                share.mean if share else "",
                low,
                high,
                record.count if share and record else "",
                _keys(number) if share else "",
            )
        )
    return rows


def _where(number: Number) -> str:
    target = number.records[0].cell.target
    return f"{target.dataset}, {target.model}"


def _panel(table: Protocol, number: Number) -> str:
    return table.rows[number.place.row].labels[0]


def _note(axes: Any, text: str) -> None:
    short = text if len(text) < 60 else text[:57] + "..."
    axes.text(0.5, 0.5, short, transform=axes.transAxes, ha="center", va="center", fontsize=8)


def _legend(figure: Any, handles: dict[str, Any], *, claimed: bool) -> None:
    from matplotlib.lines import Line2D

    shown = dict(handles)
    if claimed:
        shown["the paper's curve"] = Line2D(
            [], [], color=DARK, linestyle=":", marker="o", markerfacecolor="none"
        )
    if shown:
        figure.legend(
            list(shown.values()),
            list(shown),
            loc="outside lower center",
            ncols=len(shown) if len(shown) < 5 else 3,
        )
