"""Read tables and figures described in TOML; errors name line, key and nearest allowed word.

A protocol has rows and columns; its column, its row and `defaults` together define a cell. Scaling down for a
machine belongs in a profile, never here. Needs no torch.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from harness.cells.cells import Precision
from harness.paper.decoding import decode, line_of
from harness.registry import nearest
from harness.types import HarnessError, Norm, Training

Kind = Literal["table", "curve", "steps", "ranks", "masks", "features", "distances"]
Metric = Literal["accuracy", "accuracy-any-iterate"]

Count = Annotated[int, msgspec.Meta(ge=1)]
Caps = dict[Literal["steps", "samples", "eot", "queries"], Count]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The settings of a cell. A setting of None is left to `defaults`, to the column, or to the dataset."""

    dataset: str | None = None
    model: str | None = None
    defense: str | None = None
    training: Training | None = None
    attack: str | None = None
    """A recipe of `attacks.toml` or of this file, or an attack as on the command line."""
    steps: Count | None = None
    travel: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """The length of all steps together, in multiples of epsilon. Default: by the dataset's step size."""
    epsilon_times: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Epsilon as a multiple of the dataset's. Default: 1."""
    norm: Norm | None = None
    eot: Count | None = None
    queries: Count | None = None
    draws: Count | None = None
    limit: Count | None = None
    max_queries: Count | None = None
    metric: Metric | None = None
    claims: str | None = None
    """The id in claims.csv. Default: the table's; `none` where nothing is claimed."""
    skip: str | None = None
    """The reason why this cell is never run, which is printed in its place."""


class Column(Settings):
    """One column: an attack of the table, or a point of a curve."""

    title: str
    x: float | None = None
    """The place of the point on a curve's axis."""


class Row(Settings):
    """One row: a defended model."""

    labels: list[str]
    cells: dict[str, Settings] = {}
    """The settings that differ in one column, by the column's title."""


class Protocol(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The description of one table or figure."""

    kind: Kind
    title: str
    caption: str
    source: str = ""
    name: str = ""
    """The name, which `load` sets from the file's name."""
    claims: str = ""
    """The id in claims.csv. Default: the name."""
    heads: list[str] = []
    """The headings of the rows' labels."""
    attacks: dict[str, str] = {}
    """The recipes of this file: a name and an attack with `{steps}`, `{step}`, `{eot}`, ... to fill in."""
    defaults: Settings = msgspec.field(default_factory=Settings)
    columns: list[Column] = []
    rows: list[Row] = []
    axis: str = ""
    """The label of a curve's horizontal axis."""
    logarithmic: bool = False
    vary: Literal["", "eot", "queries"] = ""
    """The setting that a curve varies. Points beyond a profile's cap are left out, not measured with less."""
    suite: bool = True
    """True where the column `after the adaptive suite` makes sense."""
    datasets: list[str] = []
    defenses: list[str] = []
    images: Count = 2000
    probabilities: list[float] = []


def headings(table: Protocol) -> list[str]:
    """Return a heading for each label of a row: `method` or `label 1`, `label 2` where the file has none."""
    if table.heads or not table.rows:
        return table.heads
    count = len(table.rows[0].labels)
    return ["method"] if count == 1 else [f"label {place + 1}" for place in range(count)]


class Rule(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Settings for the cells that match shell patterns on the protocol's own words."""

    dataset: str = "*"
    """The pattern for the dataset that is used, after the profile's replacement."""
    model: str = "*"
    defense: str = "*"
    attack: str = "*"
    training: str = "*"
    limit: Count | None = None
    draws: Count | None = None
    caps: Caps = {}
    train: dict[str, Any] = {}
    skip: str | None = None


class Profile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A scale at which protocols are run. Of several rules that match a cell, the last one wins."""

    summary: str
    budget: str
    name: str = ""
    limit: Count | None = None
    draws: Count = 10
    seeds: Annotated[list[int], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [0]
    )
    images: Count | None = None
    """The most images of a figure that needs only images."""
    caps: Caps = {}
    """The most steps, samples, eot and queries of an attack."""
    datasets: dict[str, Annotated[list[str], msgspec.Meta(min_length=1)]] = {}
    """The datasets that stand in for another, of which the first that is available is used."""
    models: dict[str, str] = {}
    defenses: dict[str, str] = {}
    """The parameters that are added to a defense: `menet-nuc = "gap=1e-2"`."""
    precision: Precision = "auto"
    """The precision of the classifiers in training and in attacks."""
    rules: list[Rule] = []


# --- reading ----------------------------------------------------------------------------------------


def names() -> list[str]:
    """Return the names of the harness's own protocols: the paper's tables, its figures, then others."""
    folder = importlib.resources.files("harness.paper.protocols")
    found = [entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")]
    found = [name for name in found if name not in ("defaults", "profiles", "attacks")]
    return sorted(found, key=order)


def order(name: str) -> tuple[bool, bool, str]:
    """Return the sort key of a protocol's name: the paper's tables first, then its figures, then others."""
    return (re.fullmatch(r"table\d+", name) is None, re.fullmatch(r"figure\d+", name) is None, name)


def load(name: str) -> Protocol:
    """Return a protocol by its name, or a user's own by the path of its file.

    Raises:
        HarnessError: there is no such protocol (with the nearest), or its file is wrong (with line and key).
    """
    if name.endswith(".toml"):
        path = Path(name)
        text = _read(path)
        chosen = decode(text, Protocol, str(path))
        chosen.name = path.stem
    elif name in names():
        text = _shipped(f"{name}.toml")
        chosen = decode(text, Protocol, f"{name}.toml")
        chosen.name = name
    else:
        raise HarnessError(
            f"no protocol is called {name!r}: {nearest(name, names())}; one of your own is path/to/"
            "file.toml, and `all` means all",
            page="protocols",
        )
    if not _NAME.fullmatch(chosen.name):
        raise HarnessError(
            f"{name}: the file's name becomes the table's, so it must be of a-z, 0-9 and - "
            "(my-table.toml)"
        )
    _check(chosen, text, name)
    return chosen


def profiles() -> dict[str, Profile]:
    """Return the profiles that come with the harness, by name."""
    return _profiles(_shipped("profiles.toml"), "profiles.toml")


def profile(name: str) -> Profile:
    """Return a profile by its name, or a user's own as `file.toml:name`.

    Raises:
        HarnessError: there is no such profile, or its file is wrong.
    """
    file, separator, own = name.rpartition(":")
    if separator and file.endswith(".toml"):
        offered, name = _profiles(_read(Path(file)), file), own
    else:
        offered = profiles()
    if name not in offered:
        raise HarnessError(
            f"no profile is called {name!r}: {nearest(name, offered)}; one of your own is "
            "path/to/file.toml:name",
            page="protocols",
        )
    return offered[name]


@functools.cache
def recipes() -> dict[str, str]:
    """Return the attacks that protocols call by name."""
    table: dict[str, str] = tomllib.loads(_shipped("attacks.toml"))
    return table


def _shipped(file: str) -> str:
    return importlib.resources.files("harness.paper.protocols").joinpath(file).read_text("utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HarnessError(f"cannot read {path}: {reason}") from None


def _profiles(text: str, file: str) -> dict[str, Profile]:
    found = decode(text, dict[str, Profile], file)
    for name, each in found.items():
        if not _NAME.fullmatch(name):
            raise HarnessError(f"{file}: a profile's name must be of a-z, 0-9 and -, not {name!r}")
        each.name = name
    return found


# --- refusing ---------------------------------------------------------------------------------------


def _check(chosen: Protocol, text: str, file: str) -> None:
    """Raise HarnessError for mistakes that the types alone allow."""

    def refuse(path: str, message: str) -> typing.NoReturn:
        place = path.lstrip(".")
        raise HarnessError(
            f"{file}, line {line_of(text, path)}, {place}: {message}", page="protocols"
        )

    titles = [column.title for column in chosen.columns]
    if chosen.kind in ("table", "curve", "steps", "features", "distances"):
        for part in ("rows", "columns"):
            if not getattr(chosen, part):
                refuse(".kind", f"a {chosen.kind} needs [[{part}]]")
    if len(set(titles)) < len(titles):
        refuse(".columns", "two columns have the same title")
    for number, row in enumerate(chosen.rows):
        if chosen.heads and len(row.labels) != len(chosen.heads):
            refuse(
                f".rows[{number}].labels",
                f"{len(row.labels)} labels under {len(chosen.heads)} heads",
            )
        if not row.labels or len(row.labels) != len(chosen.rows[0].labels):
            refuse(f".rows[{number}].labels", "every row needs labels, as many as the first has")
        for title in row.cells:
            if title not in titles:
                message = f"no column is called {title!r}: {nearest(title, titles)}"
                refuse(f".rows[{number}].cells.{title}", message)
    if chosen.kind == "curve":
        for number, column in enumerate(chosen.columns):
            if column.x is None:
                refuse(f".columns[{number}]", "a point of a curve needs x")
    if chosen.kind in ("ranks", "masks") and not chosen.datasets:
        refuse(".kind", f"{chosen.kind} needs datasets")
    if chosen.kind == "masks" and not (chosen.defenses and chosen.probabilities):
        refuse(".kind", "masks needs defenses and probabilities")
    for place, value in enumerate(chosen.probabilities):
        if not 0 < value <= 1:
            refuse(".probabilities", f"{value} (number {place + 1}) is no probability above 0")
