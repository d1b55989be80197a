"""Give every figure of the project one style, and write it so that the same data gives the same bytes.

Files hold no dates and no random ids. Needs no torch.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import matplotlib

from harness.results.tables import guarded
from harness.storage import store

# Okabe and Ito's palette, safe for common kinds of colour blindness; markers repeat what colours say.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#B8A800", "#0072B2", "#D55E00", "#CC79A7"
GREY, DARK = "#666666", "#555555"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "harness",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a $ in a user's title is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure with the rows of data that it shows."""

    figure: Any
    header: tuple[str, ...]
    rows: list[tuple[object, ...]]


def applied() -> contextlib.AbstractContextManager[None]:
    """Return a context in which matplotlib draws in the project's style."""
    context: contextlib.AbstractContextManager[None] = matplotlib.rc_context(_SETTINGS)
    return context


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function so that it draws in the project's style."""
    decorated: Callable[..., Any] = matplotlib.rc_context(_SETTINGS)(draw)
    return decorated


def encoded(figure: Any, form: Literal["svg", "png"]) -> bytes:
    """Return a figure's bytes, which are the same each time that it is drawn from the same data."""
    options: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}}
    if form == "png":
        options = {"dpi": 150, "metadata": {"Software": None}}
    file = io.BytesIO()
    with applied():
        figure.savefig(file, format=form, **options)
    return file.getvalue()


def rendered(drawing: Drawing) -> tuple[bytes, str]:
    """Return (SVG, CSV) of a figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(drawing.header)
    writer.writerows([guarded(v) if isinstance(v, str) else v for v in row] for row in drawing.rows)
    return encoded(drawing.figure, "svg"), text.getvalue()


def save(drawing: Drawing, folder: Path, name: str) -> list[Path]:
    """Write `name`.svg, .png and .csv, each whole or not at all; return their paths."""
    store.make_folder(folder)
    svg, text = rendered(drawing)
    files = {"svg": svg, "png": encoded(drawing.figure, "png"), "csv": text.encode()}
    written = []
    for suffix, content in files.items():
        path = folder / f"{name}.{suffix}"
        store.write_atomic(path, content)
        written.append(path)
    return written
