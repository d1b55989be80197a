"""`harness convergence`: measure robust accuracy against steps, draws a step, restarts and epsilon."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness import registry
from harness.cells.cells import Cell
from harness.results.records import Failure, Record
from harness.results.tables import guarded
from harness.spec import convert
from harness.types import HarnessError, Spec, number

AXES = ("steps", "eot", "restarts", "epsilon")


@dataclasses.dataclass(frozen=True)
class Point:
    """One cell of a curve."""

    axis: str
    """The varied parameter: one of `AXES`, or `equal-budget` (steps against draws at equal passes)."""
    value: float
    cell: Cell


def points(base: Cell, axes: Mapping[str, Sequence[float]], *, equal_budget: bool) -> list[Point]:
    """Return the cells of all curves: each axis is varied by itself around `base`.

    Raises:
        HarnessError: the attack does not have an axis, or a value does not fit.
    """
    found = []
    for axis, values in axes.items():
        for value in sorted(set(values)):
            count = axis == "epsilon" or float(value).is_integer()
            if not 0 < value < float("inf") or not count:
                raise HarnessError(
                    f"{axis} {value:g}: it must be positive, and a count but for epsilon",
                    page="flags",
                )
            found.append(Point(axis, value, _moved(base, axis, value)))
    if equal_budget:
        steps, eot = _number(base, "steps", 40), _number(base, "eot", 1)
        passes = steps * eot
        draws = 1
        while draws <= passes // 5:  # five steps at least
            cell = _moved(_moved(base, "eot", draws), "steps", passes // draws)
            found.append(Point("equal-budget", draws, cell))
            draws *= 4
    return found


def _number(base: Cell, name: str, default: int) -> int:
    value: int = convert(name, base.attack.parameters.get(name, default), int, str(base.attack))
    return value


def _moved(base: Cell, axis: str, value: float) -> Cell:
    if axis == "epsilon":
        threat = dataclasses.replace(base.threat, epsilon=value)
        return dataclasses.replace(base, threat=threat)
    attack = base.attack
    parameters = {**attack.parameters, axis: str(int(value))}
    if axis == "steps":
        # The steps go as far together, however many there are.
        size = attack.parameters.get("step_size")
        steps = _number(base, "steps", getattr(registry.attacks.get(attack.name), "steps", 0))
        if size is not None and steps:
            parameters["step_size"] = f"{number(str(size)) * steps / value:.6g}"
    return dataclasses.replace(base, attack=Spec(attack.name, parameters, attack.inner))


def csv(found: Sequence[tuple[Point, Record | Failure]]) -> str:
    """Return the points as CSV, one line each: accuracy, its interval, and its cost."""
    import pandas

    rows = []
    for point, result in found:
        row: dict[str, object] = {"axis": point.axis, "value": point.value}
        row |= {"attack": guarded(str(point.cell.attack)), "epsilon": point.cell.threat.epsilon}
        if isinstance(result, Record):
            low, high = result.robust.interval
            row |= {
                "robust": result.robust.mean,
                "robust_low": low,
                "robust_high": high,
                "robust_vote": result.robust.vote,
                "robust_one_draw": result.robust.one_draw,
                "clean": result.clean.mean,
                "count": result.count,
                "backwards": result.passes.get("backwards"),
                "flags": " ".join(result.flags),
                "key": result.key,
            }
        else:
            row |= {"failure": guarded(result.reason)}
        rows.append(row)
    text: str = pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    return text


def svg(found: Sequence[tuple[Point, Record | Failure]], title: str) -> bytes:
    """Return an SVG with a panel for each axis: mean over draws with its interval, vote, and control."""
    from matplotlib.figure import Figure

    from harness.results import style

    axes = list(dict.fromkeys(point.axis for point, _ in found))
    with style.applied():
        figure = Figure(figsize=(3.4 * len(axes), 3.2))
        panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)
        for panel, axis in zip(panels[0], axes, strict=True):
            rows = [
                (point.value, result)
                for point, result in found
                if point.axis == axis and isinstance(result, Record)
            ]
            _panel(panel, axis, rows)
        panels[0][0].set_ylabel("accuracy")
        panels[0][0].legend()
        figure.suptitle(title, fontsize=10)
    return style.encoded(figure, "svg")


_LABELS = {
    "steps": "gradient steps",
    "eot": "draws a step",
    "restarts": "restarts",
    "epsilon": "epsilon, in pixel values",
    "equal-budget": "draws a step, at equal passes",
}


def _panel(panel: Any, axis: str, rows: Sequence[tuple[float, Record]]) -> None:
    from harness.results import style

    values = [value for value, _ in rows]
    means = [record.robust.mean for _, record in rows]
    bounds = [record.robust.interval for _, record in rows]
    below = [mean - low for mean, (low, _) in zip(means, bounds, strict=True)]
    above = [high - mean for mean, (_, high) in zip(means, bounds, strict=True)]
    panel.errorbar(
        values,
        means,
        yerr=[below, above],
        fmt="o-",
        capsize=2,
        color=style.BLUE,
        label="mean of draws",
    )
    if any(record.randomised for _, record in rows):
        votes = [record.robust.vote for _, record in rows]
        panel.plot(values, votes, "s--", color=style.RED, markersize=4, label="vote")
    panel.plot(
        values, [record.clean.mean for _, record in rows], ":", color=style.GREY, label="no attack"
    )
    if axis != "epsilon" and values:
        panel.set_xscale("log", base=2)
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.minorticks_off()
    panel.set_xlabel(_LABELS[axis])
    panel.set_ylim(-0.02, 1.02)
