"""Suites of attacks as data (`suites/*.toml`), and the worst case of what they found, image by image."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.results import flags
from harness.results.paired import comparable
from harness.results.records import Record, unpack
from harness.results.statistics import wilson
from harness.spec import parse
from harness.types import Defense, HarnessError, Spec, ThreatModel

_LEAST = {"steps": 10, "eot": 2, "queries": 100, "samples": 16}
"""Below these no share of a budget goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One attack of a suite, made ready for one defense and one ball."""

    name: str
    why: str
    attack: Spec
    threat: ThreatModel
    scaled: str = ""
    """How it is less than the published recipe; empty where it is not."""


@functools.cache
def _table(suite: str) -> dict[str, Any]:
    path = importlib.resources.files("harness.evaluation").joinpath("recipes", f"{suite}.toml")
    return tomllib.loads(path.read_text("utf-8"))


def is_suite(name: str) -> bool:
    """Whether a word of the command line, such as `adaptive`, stands for several attacks."""
    return name == "adaptive"


def expand(
    suite: str,
    defense: Defense,
    threat: ThreatModel,
    *,
    scale: float = 1.0,
    overrides: Mapping[str, int] | None = None,
) -> list[Entry]:
    """The attacks of a suite that apply to `defense`.

    Args:
        scale: the share of the published budget of passes, in (0, 1]: steps and draws shrink by its
            square root each, queries by all of it.
        overrides: `steps` or `eot` to take instead of the recipes'.

    Raises:
        HarnessError: a scale outside (0, 1].
    """
    if not 0 < scale <= 1:
        raise HarnessError(
            f"a budget scale of {scale}: it must be above 0 and at most 1", page="flags"
        )
    holds = {
        "randomised": is_random(defense),
        "differentiable": defense.differentiable,
        "approximated": defense.backward != "exact",
    }
    entries = []
    for row in _table(suite)["attacks"]:
        wanted = threat.norm in row.get("norms", ("linf", "l2"))
        if not wanted or not all(holds[condition] for condition in row.get("when", ())):
            continue
        ball = dataclasses.replace(threat, epsilon=_radius(row.get("radius"), threat.epsilon))
        asked = dict(overrides or {})
        spec, scaled = _fitted(row, ball, asked, holds["randomised"], scale)
        entries.append(
            Entry(name=row["name"], why=row["why"], attack=spec, threat=ball, scaled=scaled)
        )
    return entries


def is_random(defense: Defense) -> bool:
    """Whether two looks at one image may differ."""
    return defense.randomised and defense.randomness == "fresh"


def _radius(text: str | None, epsilon: float) -> float:
    if text is None:
        return epsilon
    return epsilon * float(text[:-1]) if text.endswith("x") else float(text)


def _fitted(
    row: Mapping[str, Any],
    threat: ThreatModel,
    asked: Mapping[str, int],
    randomised: bool,
    scale: float,
) -> tuple[Spec, str]:
    """(the attack of a row with what was asked for or cut to `scale`, how it is less than published)."""
    less: list[str] = []

    def fit(inner: Spec) -> Spec:
        chosen = dict(inner.parameters)
        if not randomised:
            chosen.pop("eot", None)
        for name in chosen.keys() & (_LEAST.keys() | asked.keys()):
            published = int(chosen[name])
            share = scale if name in ("queries", "samples") else math.sqrt(scale)
            fitted = min(published, max(_LEAST.get(name, 1), round(published * share)))
            chosen[name] = str(asked.get(name, fitted))
            if int(chosen[name]) < published:
                less.append(f"{chosen[name]} of {published} {name}")
        if "travel" in row:
            size = row["travel"] * threat.epsilon / int(chosen["steps"])
            chosen["step_size"] = f"{size:.6g}"
        return dataclasses.replace(inner, parameters=chosen)

    return _innermost(parse(row["attack"]), fit), ", ".join(sorted(less))


def _innermost(spec: Spec, change: Callable[[Spec], Spec]) -> Spec:
    """The spec with `change` done to the attack inside all others."""
    if spec.inner is None:
        return change(spec)
    return dataclasses.replace(spec, inner=_innermost(spec.inner, change))


# --- the worst case -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worst:
    """What several attacks on one target leave together."""

    count: int
    mean: float
    """Robust accuracy if each image meets its worst attack, mean over the scoring draws. The attack is
    chosen by one half of the draws and scored by the other, so that luck in scoring is no success. Never
    more than the strongest attack leaves alone: to use it on every image is a choice too."""
    vote: float
    """Images whose vote stands under every attack."""
    attacks: tuple[str, ...]
    alone: Mapping[str, int]
    """By attack: images that stand, by vote, under every other attack."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `mean`."""
        return wilson(self.mean * self.count, self.count)


def groups(records: Sequence[Record]) -> dict[tuple[str, ThreatModel], list[Record]]:
    """Records whose outcomes may be joined: of one target, one set of images and one ball."""
    found: dict[tuple[str, ThreatModel], list[Record]] = {}
    for record in records:
        place = (flags.target_key(record), record.cell.threat)
        found.setdefault(place, []).append(record)
    return found


def worst_case(records: Sequence[Record]) -> Worst:
    """Of records of one target on the same images.

    Raises:
        ValueError: no records, or of different images or numbers of draws.
    """
    first = records[0]
    draws = len(first.robust_outcomes)
    if any(not comparable(first, r) or len(r.robust_outcomes) != draws for r in records):
        raise ValueError("a worst case needs records of the same images and draws")
    rows = [[unpack(row, r.count) for row in r.robust_outcomes] for r in records]
    votes = [vote_outcomes(record) for record in records]
    standing = [all(column) for column in zip(*votes, strict=True)]
    alone = {
        str(record.cell.attack): sum(
            not own[image] and all(v[image] for other, v in enumerate(votes) if other != place)
            for image in range(first.count)
        )
        for place, (record, own) in enumerate(zip(records, votes, strict=True))
    }
    split = sum(_split_minimum(rows, image) for image in range(first.count)) / first.count
    return Worst(
        count=first.count,
        mean=min([split, *(record.robust.mean for record in records)]),
        vote=sum(standing) / first.count,
        attacks=tuple(str(record.cell.attack) for record in records),
        alone=alone,
    )


def vote_outcomes(record: Record) -> list[bool]:
    """(n,) whether each attacked image's vote is right; a strict majority in records that lack votes."""
    if record.robust_votes:
        return unpack(record.robust_votes, record.count)
    rows = [unpack(row, record.count) for row in record.robust_outcomes]
    return [2 * sum(column) > len(rows) for column in zip(*rows, strict=True)]


def _split_minimum(rows: Sequence[Sequence[Sequence[bool]]], image: int) -> float:
    """The share of draws in which one image is right under the attack that is its worst.

    `rows[attack][draw][image]`. With one draw it is the plain minimum. With more, the even draws choose
    for the odd ones and the odd for the even; attacks that tie count alike.
    """
    outcomes = [[draw[image] for draw in attack] for attack in rows]
    draws = len(outcomes[0])
    if draws == 1:
        return float(min(own[0] for own in outcomes))
    total = 0.0
    for choosing, scoring in ((0, 1), (1, 0)):
        shares = [sum(own[choosing::2]) for own in outcomes]
        lowest = min(shares)
        scores = [
            sum(own[scoring::2])
            for own, share in zip(outcomes, shares, strict=True)
            if share == lowest
        ]
        total += sum(scores) / len(scores)
    return total / draws
