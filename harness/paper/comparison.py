"""Compare measured numbers with claims, by one rule. Needs no torch.

A number can agree with a claim or differ from it only if all settings that may explain a difference are the
claim's own: dataset, network, estimator, keep probabilities, training, attack, ball. Otherwise the differing
settings are named, and the number is no verdict.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from harness.cells import defaults
from harness.cells.cells import Cell, TrainingPlan
from harness.paper.claims import FAMILY, Claim, is_menet
from harness.registry import defenses
from harness.types import Spec, ThreatModel

State = Literal["agrees", "differs", "other settings"]
Side = Literal["below", "within", "above"]

_GRID = ("p_low", "p_high")
_TRAINING = (
    "batch_size",
    "optimiser",
    "learning_rate",
    "momentum",
    "weight_decay",
    "milestones",
    "augment",
    "warmup",
    "inner",
    "inner_transform",
    "epsilon",
)

_LABELS = {"inner": "inner attack", "inner_transform": "inner attack on the transformation of"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """The comparison of a measured interval with a claim."""

    state: State
    side: Side
    """The side of the interval: `below` the claimed value, around it (`within`), or `above` it."""
    differences: tuple[str, ...]
    """The settings that differ from the claim's; empty unless the state is `other settings`."""

    def __str__(self) -> str:
        """Return text such as `agrees` or `other settings: p from 0.4 to 0.6, not 0.2 to 0.4`."""
        return ": ".join(
            [self.state, "; ".join(self.differences)] if self.differences else [self.state]
        )


def compare(
    claimed: float, interval: tuple[float, float], differences: tuple[str, ...]
) -> Compared:
    """Return the comparison of a measured interval with a claimed share, both in [0, 1]."""
    low, high = interval
    side: Side = "below" if high < claimed else "above" if low > claimed else "within"
    state: State = "agrees" if side == "within" else "differs"
    if differences:
        state = "other settings"
    return Compared(state=state, side=side, differences=differences)


def differences(claim: Claim, cell: Cell, published: Cell) -> tuple[str, ...]:
    """Return every setting of a cell that may explain a difference from the claim, each in words.

    Args:
        published: the cell at the paper's own scale.
    """
    here, there = cell.target, published.target
    found = [
        f"{name} {mine}, not {theirs}"
        for name, mine, theirs in (
            ("data set", here.dataset, claim.dataset),
            ("network", str(here.model), str(there.model)),
            ("training", here.training.kind, claim.training),
        )
        if mine != theirs
    ]
    found += _defense(claim, here.defense, there.defense)
    found += _probabilities(claim, here.defense)
    found += _updates(here.dataset, here.training, there.dataset, there.training)
    found += _plan(here.training, there.training, masked=is_menet(claim.defense))
    found += _attack(cell.attack, published.attack)
    found += _ball(cell.threat, published.threat)
    return tuple(found)


def _defense(claim: Claim, here: Spec, there: Spec) -> list[str]:
    if claim.defense == FAMILY:
        return ["the claim does not name its estimator"]
    found = []
    if here.name != defenses.meant(claim.defense)[0]:
        what = "estimator" if is_menet(claim.defense) else "defense"
        found.append(f"{what} {here.name}, not {claim.defense}")
    mine = {name: value for name, value in here.parameters.items() if name not in _GRID}
    theirs = {name: value for name, value in there.parameters.items() if name not in _GRID}
    changed = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    return found + [
        f"{name} {mine.get(name, 'as by default')}, not {theirs.get(name, 'as by default')}"
        for name in changed
    ]


def _probabilities(claim: Claim, here: Spec) -> list[str]:
    if not is_menet(claim.defense):
        return []
    if claim.p is None:
        return ["the claim's keep probabilities are not known"]
    mine = keep_probabilities(here)
    if mine is None:
        return ["the keep probabilities are not said"]
    if mine == claim.p:
        return []
    return ["p from {:g} to {:g}, not {:g} to {:g}".format(*mine, *claim.p)]


def keep_probabilities(defense: Spec) -> tuple[float, float] | None:
    """Return the range of p that a defense states, or None where it leaves it to its defaults."""
    given = [defense.parameters.get(name) for name in _GRID]
    if None in given:
        return None
    return float(str(given[0])), float(str(given[1]))


def _updates(
    dataset: str, here: TrainingPlan, published_dataset: str, there: TrainingPlan
) -> list[str]:
    """Return the ways in which the training is shorter or longer than published, or on fewer images."""
    mine, theirs = defaults.updates(dataset, here), defaults.updates(published_dataset, there)
    found = []
    if mine != theirs and None not in (mine, theirs):
        found.append(f"{mine:,} of {theirs:,} updates")
    elif here.epochs != there.epochs:
        found.append(f"{here.epochs:,} of {there.epochs:,} epochs")
    if here.limit is not None and here.limit != there.limit:
        found.append(f"{here.limit:,} training images")
    return found


def _plan(here: TrainingPlan, there: TrainingPlan, *, masked: bool) -> list[str]:
    """Return the fields of the plan that differ from the published ones, without its kind."""
    if here.kind != there.kind:
        return []
    found = []
    for name in _TRAINING:
        mine, theirs = getattr(here, name), getattr(there, name)
        if mine != theirs and (
            masked or name != "inner_transform"
        ):  # the two are the same where nothing is masked
            label = _LABELS.get(name, name.replace("_", " "))
            found.append(f"{label} {_text(mine)}, not {_text(theirs)}")
    return found


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _attack(here: Spec, there: Spec) -> list[str]:
    if here == there:
        return []
    if _without_length(here) == _without_length(there):
        mine, theirs = steps_of(here), steps_of(there)
        if mine != theirs:
            return [f"{mine:,} of {theirs:,} attack steps"]
    return [f"attack {here}, not {there}"]


def _without_length(spec: Spec) -> Spec:
    """Return the attack without its number of steps and their size, which follows from it."""
    kept = {name: v for name, v in spec.parameters.items() if name not in ("steps", "step_size")}
    inner = None if spec.inner is None else _without_length(spec.inner)
    return dataclasses.replace(spec, parameters=kept, inner=inner)


def steps_of(spec: Spec) -> int | None:
    """Return the number of steps of an attack, or of its inner attack where it has none itself."""
    value = spec.parameters.get("steps")
    if value is not None:
        return int(value)
    return steps_of(spec.inner) if spec.inner is not None else None


def _ball(here: ThreatModel, there: ThreatModel) -> list[str]:
    if here == there:
        return []
    return [f"{here.norm} epsilon {here.epsilon:.4g}, not {there.norm} {there.epsilon:.4g}"]
