"""Expand a protocol and a profile into cells. Needs no torch, so that tables can be drawn without it."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from harness.cells import defaults
from harness.cells.cells import Cell, Target
from harness.paper import claims, comparison, protocol
from harness.paper.claims import Claim
from harness.paper.protocol import Column, Profile, Protocol, Row, Rule, Settings
from harness.registry import defenses, nearest
from harness.spec import parse
from harness.types import HarnessError, Spec, ThreatModel

_SETTINGS = Settings.__struct_fields__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One place of a table: its row and column, its claim, and the cells that measure its number."""

    row: int
    column: int
    settings: Settings
    claim: Claim | None
    cells: tuple[Cell, ...] = ()
    """The cells, one for each seed; none where the place is skipped."""
    published: Cell | None = None
    """The cell at the paper's own scale."""
    skip: str = ""

    @property
    def differences(self) -> tuple[str, ...]:
        """The settings of the cells that differ from the claim's, in words; all cells share them."""
        if self.claim is None or self.published is None or not self.cells:
            return ()
        return comparison.differences(self.claim, self.cells[0], self.published)

    @property
    def full_scale(self) -> bool:
        """True where only seed and scoring draws differ from the paper's scale."""
        return (
            bool(self.cells)
            and self.published is not None
            and all(
                dataclasses.replace(
                    cell,
                    draws=self.published.draws,
                    target=dataclasses.replace(cell.target, seed=self.published.target.seed),
                )
                == self.published
                for cell in self.cells
            )
        )


def expand(
    table: Protocol, profile: Profile, datasets: Mapping[str, str] | None = None
) -> list[Place]:
    """Return every place of the table, row by row.

    Args:
        datasets: the stand-in that is used for each dataset; by default the first in the profile.

    Raises:
        HarnessError: a cell lacks a setting, or a recipe asks for a setting that does not exist.
    """
    published = protocol.profile("paper")
    found = []
    for i, row in enumerate(table.rows):
        for j, column in enumerate(table.columns):
            settings = merged(table, row, column)
            where = f"{table.name}, row {' / '.join(row.labels)}, column {column.title}"
            claim = _claim(table, settings)
            place = Place(row=i, column=j, settings=settings, claim=claim, skip=settings.skip or "")
            if not place.skip:
                try:
                    place = _filled(place, table, profile, datasets or {}, published)
                except HarnessError as error:
                    raise HarnessError(f"{where}: {error}") from error
            found.append(place)
    return found


def merged(table: Protocol, row: Row, column: Column) -> Settings:
    """Return the settings of a cell, merged from `defaults`, the column, the row, and the row's own cell.

    Later ones win.
    """
    values: dict[str, Any] = {}
    for source in (table.defaults, column, row, row.cells.get(column.title)):
        for name in _SETTINGS:
            value = getattr(source, name, None)
            if value is not None:
                values[name] = value
    return Settings(**values)


def _claim(table: Protocol, settings: Settings) -> Claim | None:
    """Return the claim for a cell; None where there is none, or the ball is not the dataset's own.

    A claim that does not name its estimator matches that of the cell.
    """
    if settings.norm == "l2" or settings.epsilon_times not in (None, 1.0):
        return None
    word = _word(settings.defense or "")
    for defense in (word, claims.FAMILY) if claims.is_menet(word) else (word,):
        key = (
            settings.claims or table.claims or table.name,
            settings.dataset,
            settings.model,
            defense,
            training_of(settings),
            settings.attack,
            settings.steps,
            settings.metric or "accuracy",
        )
        if key in claims.by_key():
            return claims.by_key()[key]
    return None


def _word(defense: str) -> str:
    """Return `menet-nuc` for `menet-nuc(p_low=0.8)`."""
    return defense.partition("(")[0]


def _filled(
    place: Place,
    table: Protocol,
    profile: Profile,
    datasets: Mapping[str, str],
    published: Profile,
) -> Place:
    settings = place.settings
    rules = _rules(settings, profile, datasets)
    skip = next((rule.skip for rule in reversed(rules) if rule.skip), "")
    caps = _caps(profile, rules)
    value = getattr(settings, table.vary) if table.vary else None
    if value is not None and value > caps.get(table.vary, value):
        skip = f"this profile takes at most {caps[table.vary]} {table.vary}"
    paper = _cell(settings, table, published, {}, 0)
    if skip:
        return dataclasses.replace(place, published=paper, skip=skip)
    cells = tuple(_cell(settings, table, profile, datasets, seed) for seed in profile.seeds)
    return dataclasses.replace(place, published=paper, cells=cells)


def dataset_of(name: str, profile: Profile, datasets: Mapping[str, str]) -> str:
    """Return the dataset that is used in place of `name`."""
    options = profile.datasets.get(name)
    return datasets.get(name) or (options[0] if options else name)


def training_of(settings: Settings) -> str:
    """Return `pure` or `adversarial`, from the settings or else from an alias of the defense."""
    if settings.training is not None:
        return settings.training
    return defenses.meant(_word(settings.defense or ""))[1] or "pure"


def _rules(settings: Settings, profile: Profile, datasets: Mapping[str, str]) -> list[Rule]:
    facts = {
        "dataset": dataset_of(settings.dataset or "", profile, datasets),
        "model": settings.model or "",
        "defense": _word(settings.defense or ""),
        "attack": settings.attack or "",
        "training": training_of(settings),
    }
    return [
        rule
        for rule in profile.rules
        if all(fnmatch.fnmatchcase(value, getattr(rule, name)) for name, value in facts.items())
    ]


def _caps(profile: Profile, rules: Sequence[Rule]) -> dict[str, int]:
    sources = [profile.caps, *(rule.caps for rule in rules)]
    return {str(name): most for source in sources for name, most in source.items()}


def _cell(
    settings: Settings, table: Protocol, profile: Profile, datasets: Mapping[str, str], seed: int
) -> Cell:
    for name in ("dataset", "model", "defense", "attack"):
        if getattr(settings, name) is None:
            raise HarnessError(f"it says no {name}", page="protocols")
    assert settings.dataset and settings.model and settings.defense and settings.attack
    rules = _rules(settings, profile, datasets)
    dataset = dataset_of(settings.dataset, profile, datasets)
    training = training_of(settings)
    caps = _caps(profile, rules)
    train: dict[str, Any] = {}
    limit, draws = profile.limit, settings.draws or profile.draws
    for rule in rules:
        train |= rule.train
        limit = rule.limit or limit
        draws = rule.draws or draws
    if settings.limit is not None:
        limit = min(settings.limit, limit or settings.limit)
    epsilon = defaults.epsilon(dataset) * (
        1.0 if settings.epsilon_times is None else settings.epsilon_times
    )
    target = Target(
        dataset=dataset,
        model=parse(profile.models.get(settings.model, settings.model)),
        defense=_defense(settings.defense, profile),
        training=defaults.plan(dataset, training, train),
        seed=seed,
        precision=profile.precision,
    )
    queries = settings.max_queries
    if queries is not None and "queries" in caps:
        queries = min(queries, caps["queries"])
    return Cell(
        target=target,
        attack=_attack(settings, table, caps, dataset, epsilon),
        threat=ThreatModel(epsilon=epsilon, norm=settings.norm or "linf"),
        draws=draws,
        limit=limit,
        max_queries=queries,
    )


def _defense(text: str, profile: Profile) -> Spec:
    spec = parse(text)
    extra = profile.defenses.get(spec.name, "")
    if extra:
        spec = dataclasses.replace(
            spec, parameters={**parse(f"x({extra})").parameters, **spec.parameters}
        )
    return dataclasses.replace(spec, name=defenses.meant(spec.name)[0])


def _attack(
    settings: Settings, table: Protocol, caps: Mapping[str, int], dataset: str, epsilon: float
) -> Spec:
    """Return the attack with its placeholders filled in."""
    text = settings.attack or ""
    template = table.attacks.get(text) or protocol.recipes().get(text) or text
    known = {
        "steps": settings.steps,
        "eot": settings.eot,
        "queries": settings.queries,
        "samples": None,
    }
    filled: dict[str, int] = {}

    def fill(match: re.Match[str]) -> str:
        name, _, otherwise = match.group(1).partition(":")
        if name not in known:
            raise HarnessError(
                f"attack {text!r} asks for {{{name}}}: {nearest(name, [*known, 'step'])}"
            )
        if otherwise and not otherwise.isdecimal():
            raise HarnessError(f"attack {text!r}: {{{match.group(1)}}} must be {{{name}:NUMBER}}")
        value = known[name] if known[name] is not None else int(otherwise) if otherwise else None
        if value is None:
            raise HarnessError(f"attack {text!r} needs {name}, and the cell does not say it")
        filled[name] = min(value, caps.get(name, value))
        return str(filled[name])

    spec = re.sub(r"\{((?!step\})[\w:]+)\}", fill, template)
    if "{step}" in spec:
        if "steps" not in filled:
            raise HarnessError(
                f"attack {text!r} asks for {{step}}, which needs {{steps}} beside it"
            )
        spec = spec.replace("{step}", _step(settings, dataset, epsilon, filled["steps"]))
    return parse(spec)


def _step(settings: Settings, dataset: str, epsilon: float, steps: int) -> str:
    """Return the step size of the cell or dataset; a larger one where the steps could not cross the ball."""
    if settings.travel is not None:
        return f"{settings.travel * epsilon / steps:.6g}"
    size = defaults.step_size(dataset, epsilon=epsilon, steps=steps)
    if size is None:
        size = min(2.5 * epsilon / steps, max(epsilon / 4, epsilon / steps))
    return repr(size)


def unique(places: list[Place]) -> list[Cell]:
    """Return the cells of several tables, each once, in order."""
    cells = {msgspec.json.encode(cell): cell for place in places for cell in place.cells}
    return list(cells.values())
