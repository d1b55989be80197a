"""What the paper, and those who attacked it, claim: `protocols/claims.csv`. Needs no torch."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One published number, in percent; `value` is None where the number is not known here."""

    id: str
    """The table or figure: `table4`, `figure6`; `refuted` for what others measured."""
    dataset: str
    model: str
    defense: str
    training: str
    attack: str
    steps: int | None
    metric: str
    value: float | None
    source: str
    note: str

    @property
    def black_box(self) -> bool:
        """Whether it is about an attacker who does not see the model: white-box attacks refute nothing."""
        return self.attack.startswith(("transfer", "boundary", "spsa"))

    @property
    def key(self) -> tuple[object, ...]:
        """What a protocol's cell finds its claim by."""
        return (
            self.id,
            self.dataset,
            self.model,
            self.defense,
            self.training,
            self.attack,
            self.steps,
            self.metric,
        )


@functools.cache
def load() -> tuple[Claim, ...]:
    """All claims, in the order of the file."""
    text = (
        importlib.resources.files("harness.paper.protocols")
        .joinpath("claims.csv")
        .read_text("utf-8")
    )
    return tuple(_claim(row) for row in csv.DictReader(text.splitlines()))


def _claim(row: dict[str, Any]) -> Claim:
    for name, kind in (("steps", int), ("value", float)):
        row[name] = kind(row[name]) if row[name] else None
    return Claim(**row)


@functools.cache
def by_key() -> dict[tuple[object, ...], Claim]:
    """The claims by what names them. Every name occurs once."""
    return {claim.key: claim for claim in load()}


def refutations(claim: Claim) -> list[Claim]:
    """Lower robust accuracies that others published for the same defense, trained the same way.

    The attack need not be the same: a claim of white-box robustness is one against any attack in the
    ball.
    """
    if claim.id == "refuted" or claim.value is None or claim.attack == "clean" or claim.black_box:
        return []
    return [
        other
        for other in load()
        if other.id == "refuted"
        and other.attack != "clean"
        and (other.dataset, other.defense, other.training)
        == (claim.dataset, claim.defense, claim.training)
        and other.value is not None
        and other.value < claim.value
    ]
