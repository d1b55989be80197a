"""Draw the paper's figures, and three beyond it, from records and from `figures.data`. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from harness.paper.figures import curves
from harness.paper.figures.data import FOLDER as DATA
from harness.paper.figures.data import FeatureData, MaskData, Picture, RankData
from harness.paper.measured import Results
from harness.paper.protocol import Profile, Protocol
from harness.results import style
from harness.results.style import Drawing

FOLDER = "figures"


def write(table: Protocol, profile: Profile, results: Results) -> list[Path]:
    """Write a figure's three files to `figures/` of the results folder; without data, they say so."""
    drawing = draw(table, profile, results)
    return style.save(drawing, results.store.results / FOLDER, table.name)


def draw(table: Protocol, profile: Profile, results: Results) -> Drawing:
    """Draw a protocol's figure from the content of the results folder."""
    if table.kind == "ranks":
        return _stored(table, results, RankData, draw_ranks)
    if table.kind == "masks":
        return _stored(table, results, MaskData, draw_masks)
    if table.kind == "features":
        return _stored(table, results, FeatureData, draw_clouds)
    if table.kind == "distances":
        return _stored(table, results, FeatureData, draw_distances)
    with style.applied():
        if table.kind == "steps":
            return curves.steps(table, profile, results)
        return curves.curve(table, profile, results)


def _stored(
    table: Protocol,
    results: Results,
    kind: type[Any],
    drawn: Callable[[Protocol, Any], Drawing],
) -> Drawing:
    data = results.read(DATA, table.name, kind)
    if data is None:
        return empty(table, "not made yet: harness reproduce makes it")
    return drawn(table, data)


def empty(table: Protocol, reason: str) -> Drawing:
    """Draw a figure that gives the reason for missing data, so that no old figure remains."""
    with style.applied():
        figure = Figure(figsize=(6, 1.6))
        figure.suptitle(table.title)
        figure.text(0.5, 0.4, reason, ha="center", va="center", wrap=True)
    return Drawing(figure, ("reason",), [(reason,)])


# --- Figure 1 ---------------------------------------------------------------------------------------


@style.styled
def draw_ranks(table: Protocol, data: RankData) -> Drawing:
    """Draw the histogram and the empirical CDF of the approximate rank, in a panel for each dataset."""
    count = len(data.datasets)
    figure = Figure(figsize=(3.1 * count, 2.9))
    rows: list[tuple[object, ...]] = []
    for place, each in enumerate(data.datasets):
        axes = figure.add_subplot(1, count, place + 1)
        shares = [images / each.count for images in each.images_of_rank]
        total = [sum(shares[: rank + 1]) for rank in range(len(shares))]
        low = next((rank for rank, share in enumerate(shares) if share), 0)
        span = range(low, len(shares))
        axes.bar(span, shares[low:], color=style.ORANGE)
        axes.set(xlabel="approximate rank", ylabel="share of images (bars)" if not place else "")
        axes.set_title(f"{each.dataset}\n{each.count:,} images, {each.height} x {each.width}")
        second = axes.twinx()
        second.plot(span, total[low:], color=style.BLUE, marker="o", markersize=4)
        second.spines["right"].set_visible(True)
        second.set_ylim(0, 1.03)
        second.grid(visible=False)
        if place == count - 1:
            second.set_ylabel("empirical CDF (line)")
        rows += [
            (each.dataset, rank, images, share, cumulated)
            for rank, (images, share, cumulated) in enumerate(
                zip(each.images_of_rank, shares, total, strict=True)
            )
        ]
    title = table.title + "".join(f"\n{line.split(':')[0]}: not here" for line in data.missing)
    figure.suptitle(title)
    return Drawing(figure, ("dataset", "rank", "images", "share", "cdf"), rows)


# --- Figure 2 ---------------------------------------------------------------------------------------


@style.styled
def draw_masks(table: Protocol, data: MaskData) -> Drawing:
    """Draw one image under masks, with a row for the reconstructions of each defense."""
    columns, lines = len(data.probabilities), len(data.rows)
    figure = Figure(figsize=(0.95 * columns + 1.4, 1.02 * lines + 0.8))
    errors = dict(data.errors)
    families = {name.rpartition("-")[0] for name in errors}
    family = families.pop() + "-" if len(families) == 1 else ""
    for i, (name, pictures) in enumerate(data.rows):
        for j, each in enumerate(pictures):
            axes = figure.add_subplot(lines, columns, i * columns + j + 1)
            _show(axes, each)
            if i == 0:
                axes.set_title(f"p = {data.probabilities[j]:g}", fontsize=8)
            if name in errors:
                axes.set_xlabel(f"{errors[name][j]:.3f}", fontsize=7, labelpad=2)
            if j == 0:
                axes.set_ylabel(name.removeprefix(family), rotation=0, ha="right", va="center")
    figure.suptitle(
        f"{table.title}: {data.label}, test image {data.sample} of {data.dataset}; "
        "below each its root mean square error"
    )
    rows = [
        (name, probability, error)
        for name, found in data.errors
        for probability, error in zip(data.probabilities, found, strict=True)
    ]
    return Drawing(figure, ("method", "p", "rmse"), list(rows))


def _show(axes: Any, picture: Picture) -> None:
    import numpy as np

    values = np.frombuffer(picture.octets, np.uint8).reshape(picture.shape)
    if picture.shape[0] >= 3:
        axes.imshow(values[:3].transpose(1, 2, 0), interpolation="nearest")
    else:
        axes.imshow(values[0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


# --- Figures 4 and 5 --------------------------------------------------------------------------------


@style.styled
def draw_clouds(table: Protocol, data: FeatureData) -> Drawing:
    """Draw t-SNE in a panel for each model and kind of image, with classes by colour and marker."""
    if not data.clouds:
        return empty(table, "; ".join(data.missing))
    labels = list(dict.fromkeys(cloud.label for cloud in data.clouds))
    figure = Figure(figsize=(7.6, 3.3 * len(labels) + 0.7))
    rows: list[tuple[object, ...]] = []
    handles: list[Any] = []
    for cloud in data.clouds:
        place = labels.index(cloud.label) * 2 + int(cloud.attacked)
        axes = figure.add_subplot(len(labels), 2, place + 1)
        kind = "attacked" if cloud.attacked else "clean"
        axes.set_title(f"{cloud.label}, {kind}: {cloud.accuracy:.0%} right")
        axes.set(xticks=[], yticks=[])
        drawn = []
        for number, name in enumerate(data.names[:20]):
            at = [i for i, label in enumerate(cloud.classes) if label == number]
            drawn += axes.plot(
                [cloud.x[i] for i in at],
                [cloud.y[i] for i in at],
                linestyle="",
                marker=(*style.MARKERS, "<", ">")[number % 10],
                markersize=4,
                color=style.COLOURS[number % len(style.COLOURS)],
                markeredgewidth=0,
                label=name,
                alpha=0.85,
            )
        handles = handles or drawn
        rows += [
            (cloud.label, kind, data.names[label], x, y)
            for x, y, label in zip(cloud.x, cloud.y, cloud.classes, strict=True)
        ]
    figure.legend(handles, data.names[:20], loc="outside right center", title="class")
    figure.suptitle(f"{table.title}: {data.dataset}, t-SNE of the features before the last layer")
    return Drawing(figure, ("model", "images", "class", "x", "y"), rows)


@style.styled
def draw_distances(table: Protocol, data: FeatureData) -> Drawing:
    """Draw empirical CDFs of the distances within and among classes."""
    if not data.clouds:
        return empty(table, "; ".join(data.missing))
    labels = list(dict.fromkeys(cloud.label for cloud in data.clouds))
    figure = Figure(figsize=(7.6, 3.2))
    rows: list[tuple[object, ...]] = []
    kinds: Iterable[tuple[int, str]] = enumerate(("within", "among"))
    for place, kind in kinds:
        axes = figure.add_subplot(1, 2, place + 1)
        for cloud in data.clouds:
            values: Sequence[float] = getattr(cloud, kind)
            number = labels.index(cloud.label)
            steps = [i / max(1, len(values) - 1) for i in range(len(values))]
            state = "attacked" if cloud.attacked else "clean"
            axes.plot(
                values,
                steps,
                color=style.COLOURS[number % len(style.COLOURS)],
                linestyle="--" if cloud.attacked else "-",
                marker=style.MARKERS[number],
                markevery=40,
                markersize=4,
                label=f"{cloud.label}, {state}",
            )
            rows += [(cloud.label, state, kind, x, y) for x, y in zip(values, steps, strict=True)]
        axes.set(xlabel=f"distance {kind} classes" if place else "distance within a class")
        axes.set(ylabel="" if place else "empirical CDF", ylim=(0, 1.02))
        axes.legend(loc="lower right")
    figure.suptitle(f"{table.title}: {data.dataset}, features before the last layer")
    return Drawing(figure, ("model", "images", "pairs", "distance", "cdf"), rows)
