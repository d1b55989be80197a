"""`harness report`: write everything that a results folder holds to one self-contained HTML page.

It needs neither network nor torch: pictures are embedded, scripts and styles are inline, and a content
security policy forbids all else. The template engine escapes all text from records and files.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.cells import defaults
from harness.paper import protocol, tables
from harness.paper.figures import draw
from harness.paper.figures.data import FOLDER as DATA
from harness.paper.figures.data import Gallery, Picture
from harness.paper.measured import Number, Results, Share, Verdict, percent, share, verdict
from harness.paper.render import Reproduced, reproduced
from harness.results import flags as audit
from harness.results import style, summaries
from harness.results.records import Failure, Record
from harness.results.statistics import in_percent
from harness.results.tables import UNKNOWN
from harness.storage import store
from harness.storage.progress import duration
from harness.storage.store import Store
from harness.types import HarnessError

STATES: Mapping[str, tuple[str, str]] = {
    "holds": ("✓", "measured at the paper's scale, and not below the claim"),
    "fell": ("✗", "a measurement at the paper's scale, here or published, lies below the claim"),
    "untested": ("?", "no measurement at the paper's scale"),
    "unknown": (UNKNOWN, "the paper's number is not known here"),
}


def write(results: Path, output: Path | None) -> Path:
    """Write the page of a results folder, and return its path.

    Raises:
        HarnessError: there are no records.
    """
    if not (results / "records").is_dir():
        raise HarnessError(f"no records in {results}: `harness reproduce` makes some")
    path = output or results / "report.html"
    store.make_folder(path.parent)
    store.write_atomic(path, page(Store(results)).encode())
    return path


def page(folder: Store) -> str:
    """Return the page as text. The same records give the same text."""
    results = Results(folder)
    protocols, damage = reproduced(folder)
    parts = [_part(each, results) for each in protocols]
    gallery = _gallery(results)
    claims = [claim for part in parts for claim in part.claims]
    claims.sort(
        key=lambda claim: ("fell", "holds", "untested", "unknown").index(claim.verdict.state)
    )
    records = sorted(results.loaded.records, key=_order)
    worst = {
        key: in_percent(case.mean, case.interval)
        for key, case in summaries.worst_cases(records).items()
    }
    seconds = sum(timing.seconds for timing in results.loaded.timings.values())
    text: str = _template().render(
        style=_text("report.css"),
        script=_text("report.js"),
        parts=parts,
        claims=claims,
        counts=_counts(claims),
        states=STATES,
        scaled=sum(claim.verdict.scaled_down for claim in claims),
        profiles=sorted({part.profile for part in parts}),
        records=[_entry(record, results, worst.get(record.key, "")) for record in records],
        failures=sorted(results.loaded.failures, key=lambda each: each.key),
        flag_counts=_flags(results),
        explanations=audit.EXPLANATIONS,
        gallery=gallery,
        damage=[*damage, *results.damage],
        total=duration(seconds),
        commits=sorted({record.made.get("commit", "unknown") for record in records}),
        unknown=UNKNOWN,
    )
    return text


# --- the data of the template -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A record behind a number; a number has one for each seed."""

    key: str
    seed: int
    measured: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spot:
    """One measured place of a table."""

    claimed: str
    measured: str
    value: float | None
    flags: Mapping[str, str]
    evidence: Sequence[Evidence]
    reason: str
    state: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table."""

    labels: Sequence[str]
    spots: Sequence[Spot]
    after: str
    after_value: float | None
    after_says: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claimed:
    """One claim with its verdict."""

    part: str
    where: str
    claimed: str
    verdict: Verdict
    source: str
    evidence: Sequence[Evidence]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A table or a figure."""

    name: str
    title: str
    kind: str
    caption: Sequence[str]
    profile: str
    heads: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Line] = ()
    suite: bool = False
    claiming: bool = True
    notes: Sequence[str] = ()
    picture: str = ""
    data: str = ""
    claims: Sequence[Claimed] = ()


def _part(each: Reproduced, results: Results) -> Part:
    table, profile = each.protocol, each.profile
    common: dict[str, Any] = {"name": table.name, "profile": profile.name}
    if table.kind != "table":
        drawing = draw.draw(table, profile, results)
        svg, text = style.rendered(drawing)
        lines = [table.caption + "."]
        if table.source:
            lines.append(f"After {table.source}.")
        return Part(
            **common,
            title=table.title,
            kind="figure",
            caption=[*lines, f"Profile {profile.name}: {profile.summary}."],
            picture="data:image/svg+xml;base64," + base64.b64encode(svg).decode(),
            data=text,
        )
    numbers = results.numbers(table, profile)
    sheet = tables.sheet(table, profile, numbers)
    rows = []
    claims = []
    for i, row in enumerate(table.rows):
        mine = [number for number in numbers if number.place.row == i]
        worst = tables.worst(mine)
        rows.append(
            Line(
                labels=row.labels,
                spots=[_spot(number) for number in mine],
                after=percent(worst.share) if worst else "",
                after_value=worst.share.mean if worst else None,
                after_says=", ".join(worst.attacks) if worst else "",
            )
        )
        for number in mine:
            judged = verdict(number)
            if (
                judged is None
                or number.place.claim is None
                or number.place.claim.id
                in (
                    "refuted",
                    "rerun",
                )
            ):
                continue
            where = " / ".join(row.labels)
            if len(table.columns) > 1:
                where += f", {table.columns[number.place.column].title}"
            claims.append(
                Claimed(
                    part=table.title,
                    where=where,
                    claimed=tables.claimed(number),
                    verdict=judged,
                    source=number.place.claim.source,
                    evidence=_evidence(number),
                )
            )
    return Part(
        **common,
        title=table.title,
        kind="table",
        caption=[table.caption + ".", *sheet.caption],
        heads=protocol.headings(table),
        columns=[column.title for column in table.columns],
        rows=rows,
        suite=table.suite,
        claiming=tables.claims_anything(numbers),
        notes=[note for note in sheet.notes if note.startswith(tables.ABOUT_CLAIMS)],
        claims=claims,
    )


def _spot(number: Number) -> Spot:
    judged = verdict(number)
    return Spot(
        claimed=tables.claimed(number),
        measured=tables.shown(number) if number.measured else "",
        value=number.measured.mean if number.measured else None,
        flags=number.flags,
        evidence=_evidence(number),
        reason=number.reason,
        state=judged.state if judged else "",
    )


def _evidence(number: Number) -> list[Evidence]:
    return [
        Evidence(
            key=record.key,
            seed=record.cell.target.seed,
            measured=percent(share(number.place, record)),
        )
        for record in number.records
    ]


def _counts(claims: Sequence[Claimed]) -> dict[str, int]:
    counted = Counter(claim.verdict.state for claim in claims)
    return {state: counted[state] for state in STATES}  # type: ignore[index]


def _flags(results: Results) -> dict[str, int]:
    counted = Counter(flag for flags in results.flags.values() for flag in flags)
    return dict(sorted(counted.items()))


def _order(item: Record | Failure) -> tuple[str, ...]:
    cell, target = item.cell, item.cell.target
    ball = f"{cell.threat.norm} {cell.threat.epsilon:012.8f}"
    names = (target.dataset, target.label, str(target.model), str(cell.attack), ball)
    return (*names, f"{target.seed:012}", item.key)


def _entry(record: Record, results: Results, worst: str) -> dict[str, Any]:
    """Return a record as the page shows it, with all facts behind its number."""
    target, timing = record.cell.target, results.loaded.timings.get(record.key)
    robust, clean = (
        Share(record.robust.mean, record.count),
        Share(record.clean.mean, record.count),
    )
    ball = f"{record.cell.threat.norm} {record.cell.threat.epsilon:.4g}"
    facts: dict[str, object] = {
        "key": record.key,
        "dataset": target.dataset,
        "model": str(target.model),
        "defense": target.label,
        "attack": str(record.cell.attack),
        "ball": ball,
        "images": f"{record.count:,}",
        "robust accuracy": percent(robust) + " %, mean over draws [95 % Wilson interval]",
        "under one draw": f"{100 * record.robust.one_draw:.1f} %",
        "by vote": f"{100 * record.robust.vote:.1f} %",
        "right in every draw": f"{100 * record.robust.all_draws:.1f} %",
        "clean accuracy (epsilon = 0)": percent(clean) + " %",
        "scoring draws": record.resolved.draws,
        "fooled at some query": f"{100 * record.fooled_on_the_way:.1f} %",
        "forwards an image": f"{record.passes.get('forwards', 0):g}",
        "backwards an image": f"{record.passes.get('backwards', 0):g}",
        "training": _training(record),
        "seed": target.seed,
        "attack and scoring took": duration(timing.seconds) if timing else UNKNOWN,
        **{f"made with {name}": value for name, value in sorted(record.made.items())},
    }
    return {
        "record": record,
        "key": record.key,
        "target": target,
        "ball": ball,
        "measured": percent(robust),
        "worst": worst,
        "clean": percent(clean),
        "flags": results.flags[record.key],
        "facts": facts,
        "resolved": msgspec.json.format(msgspec.json.encode(record.resolved), indent=1).decode(),
    }


def _training(record: Record) -> str:
    plan = record.cell.target.training
    if plan.kind == "given":
        return "none: the model came with its weights"
    inner = f", inner attack {plan.inner}, epsilon {plan.epsilon:.4g}" if plan.inner else ""
    images = f"{plan.limit:,}" if plan.limit else "all"
    updates = defaults.updates(record.cell.target.dataset, plan)
    counted = f" ({updates:,} updates)" if updates else ""
    return (
        f"{plan.kind}, {plan.epochs} epochs on {images} images{counted}, "
        f"{plan.optimiser} {plan.learning_rate:g}, batch {plan.batch_size}{inner}"
    )


def _gallery(results: Results) -> list[dict[str, Any]]:
    gallery = results.read(DATA, "gallery", Gallery)
    shelves = []
    for shelf in gallery.shelves if gallery else ():
        record = results.records.get(shelf.key)
        if record is None:
            continue
        examples = [
            {
                "example": example,
                "pictures": [
                    (name, data_uri(picture), picture.shape)
                    for name, picture in (
                        ("original", example.original),
                        ("adversarial", example.adversarial),
                        ("perturbation × 10", example.perturbation),
                        ("reconstruction", example.rebuilt),
                    )
                    if picture is not None
                ],
            }
            for example in shelf.examples
        ]
        shelves.append({"record": record, "examples": examples})
    return shelves


def data_uri(picture: Picture) -> str:
    """Return a picture as a `data:` URI of a PNG, for an image on a self-contained page."""
    import numpy as np
    from PIL import Image

    pixels = np.frombuffer(picture.octets, np.uint8).reshape(picture.shape)
    colour = len(pixels) >= 3
    file = io.BytesIO()
    Image.fromarray(pixels[:3].transpose(1, 2, 0) if colour else pixels[0]).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- the template -----------------------------------------------------------------------------------


def _text(name: str) -> str:
    return (
        importlib.resources.files("harness.report").joinpath("templates", name).read_text("utf-8")
    )


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text("report.html.j2"))
