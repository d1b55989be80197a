"""Fit suites of attacks (`recipes/*.toml`) to one defense and one ball."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.registry import attacks, defenses
from harness.spec import build, parse
from harness.types import Attack, Defense, HarnessError, Spec, ThreatModel

_LEAST = {"steps": 10, "eot": 2, "samples": 2, "queries": 20}
"""The factors of a budget, each with its smallest value. It is the same for all attacks, so that the costlier
of two attacks stays the costlier."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One attack of a suite, ready for one defense and one ball."""

    name: str
    why: str
    attack: Spec
    threat: ThreatModel
    scaled: str = ""
    """The ways in which it is less than the published recipe; empty where it is not."""


@functools.cache
def _table(suite: str) -> dict[str, Any]:
    path = importlib.resources.files("harness.evaluation").joinpath("recipes", f"{suite}.toml")
    return tomllib.loads(path.read_text("utf-8"))


def is_suite(name: str) -> bool:
    """Return whether a word of the command line, such as `adaptive`, stands for several attacks."""
    return name == "adaptive"


def expand(
    suite: str,
    defense: Defense,
    threat: ThreatModel,
    *,
    scale: float = 1.0,
    overrides: Mapping[str, int] | None = None,
) -> list[Entry]:
    """Return the attacks of a suite that apply to `defense`, in the suite's order.

    Attacks whose backward pass the defense does not offer are left out; `left_out` names them.

    Args:
        scale: the share of the published budget of passes, in (0, 1]. Its factors (steps and draws,
            steps and samples) shrink alike, and the order of the attacks by cost stays the same.
        overrides: `steps` or `eot` that replace those of the recipes.

    Raises:
        HarnessError: a scale outside (0, 1].
    """
    if not 0 < scale <= 1:
        raise HarnessError(
            f"a budget scale of {scale}: it must be above 0 and at most 1", page="flags"
        )
    entries = []
    for row in _applying(suite, defense, threat):
        if _missing(row, defense):
            continue
        radius = _radius(row.get("radius"), threat.epsilon)
        if threat.norm == "linf":
            radius = min(radius, 1.0)  # this ball holds every image
        ball = dataclasses.replace(threat, epsilon=radius)
        asked = dict(overrides or {})
        spec, scaled = _fitted(row, ball, asked, defense.is_random, scale)
        entries.append(
            Entry(name=row["name"], why=row["why"], attack=spec, threat=ball, scaled=scaled)
        )
    return entries


def left_out(suite: str, defense: Defense, threat: ThreatModel) -> list[str]:
    """Return a line for each attack of a suite whose backward pass the defense does not offer."""
    return [
        f"{row['name']} is left out: the defense offers no backward pass {missing!r}"
        for row in _applying(suite, defense, threat)
        if (missing := _missing(row, defense))
    ]


def _missing(row: Mapping[str, Any], defense: Defense) -> str:
    """Return the backward pass that a row asks for and the defense does not offer; empty where none is."""
    asked = ""

    def look(inner: Spec) -> Spec:
        nonlocal asked
        asked = str(inner.parameters.get("backward", ""))
        return inner

    _innermost(parse(row["attack"]), look)
    offered = defense.offered_backward_passes
    return asked if asked and asked not in offered else ""


def _applying(suite: str, defense: Defense, threat: ThreatModel) -> list[Mapping[str, Any]]:
    """Return the rows of a suite whose norm and conditions apply."""
    holds = {
        "randomised": defense.is_random,
        "differentiable": defense.differentiable,
        "approximated": defense.backward != "exact",
    }
    return [
        row
        for row in _table(suite)["attacks"]
        if threat.norm in row.get("norms", ("linf", "l2"))
        and all(holds[condition] for condition in row.get("when", ()))
    ]


def needs_another_model(spec: Spec) -> bool:
    """Return whether an attack makes its images on a second, independently trained copy of the model."""
    attack: Attack = build(spec, attacks)
    return attack.source is not None and attack.source.defense is None


def without_copies(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Return the attacks that a model with given weights allows, and a line for each one that it does not."""
    served = [entry for entry in entries if not needs_another_model(entry.attack)]
    notes = [
        f"{entry.name}: left out, it needs an independently trained copy of the model"
        for entry in entries
        if entry not in served
    ]
    return served, notes


def refuse_copies(specs: Sequence[Spec]) -> None:
    """Check that a model with given weights allows these attacks.

    Raises:
        HarnessError: an attack needs an independently trained copy of the model.
    """
    for spec in specs:
        if needs_another_model(spec):
            raise HarnessError(
                f"{spec} needs an independently trained copy of the model; this one came with its "
                "weights, and no independent copy can be made: let `harness run` train both (no "
                f"--weights), or name another source (transfer(...,defense={defenses.default}))",
                page="quickstart",
            )


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
    """Return (the attack of a row, the ways in which it is less than published).

    Its parameters are those asked for, or the published ones cut to `scale`.
    """
    less: list[str] = []

    def fit(inner: Spec) -> Spec:
        chosen = dict(inner.parameters)
        if not randomised:
            chosen.pop("eot", None)
        factors = [name for name in _LEAST if name in chosen]
        rest = scale
        for place, name in enumerate(factors):
            published = int(chosen[name])
            share = rest ** (
                1 / (len(factors) - place)
            )  # the others make up for a factor at its floor
            fitted = min(published, max(_LEAST[name], round(published * share)))
            rest = min(1.0, rest * published / fitted)
            chosen[name] = str(asked.get(name, fitted))
            if int(chosen[name]) < published:
                less.append(f"{chosen[name]} of {published} {name}")
        if "travel" in row:
            size = row["travel"] * threat.epsilon / int(chosen["steps"])
            chosen["step_size"] = f"{size:.6g}"
        return dataclasses.replace(inner, parameters=chosen)

    return _innermost(parse(row["attack"]), fit), ", ".join(sorted(less))


def _innermost(spec: Spec, change: Callable[[Spec], Spec]) -> Spec:
    """Return the spec with `change` applied to its innermost attack."""
    if spec.inner is None:
        return change(spec)
    return dataclasses.replace(spec, inner=_innermost(spec.inner, change))
