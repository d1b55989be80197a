"""Read the numbers that the paper, its users and its attackers published: `protocols/claims.csv`.

Needs no torch.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from typing import Any

FAMILY = "menet"
"""The defense of a claim that does not name the estimator of its ME-Net."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One published number, in percent; `value` is None where the number is not known here."""

    id: str
    """The table or figure: `table4`, `figure6`; `appendix` for numbers that users quote from the appendix,
    `rerun` for those that users measured with the authors' code, `refuted` for those of attackers."""
    dataset: str
    model: str
    defense: str
    p: tuple[float, float] | None
    """The range of keep probabilities in training; None where there is no mask or it is not known."""
    training: str
    attack: str
    steps: int | None
    metric: str
    value: float | None
    source: str
    note: str

    @property
    def black_box(self) -> bool:
        """True where the attacker does not see the model; a white-box attack then refutes nothing."""
        return self.attack.startswith(("transfer", "boundary", "spsa"))

    @property
    def key(self) -> tuple[object, ...]:
        """The key by which a protocol's cell finds its claim."""
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
    """Return all claims, in the order of the file."""
    text = (
        importlib.resources.files("harness.paper.protocols")
        .joinpath("claims.csv")
        .read_text("utf-8")
    )
    return tuple(_claim(row) for row in csv.DictReader(text.splitlines()))


def _claim(row: dict[str, Any]) -> Claim:
    for name, kind in (("steps", int), ("value", float)):
        row[name] = kind(row[name]) if row[name] else None
    low, _, high = row["p"].partition("-")
    row["p"] = (float(low), float(high)) if low else None
    return Claim(**row)


@functools.cache
def by_key() -> dict[tuple[object, ...], Claim]:
    """Return the claims by key. Every key occurs once."""
    return {claim.key: claim for claim in load()}


def is_menet(defense: str) -> bool:
    """Return whether a defense is ME-Net with some estimator."""
    return defense == FAMILY or defense.startswith(f"{FAMILY}-")


def beside(claim: Claim) -> list[Claim]:
    """Return other claims for the same ME-Net under the same attack, whatever its estimator.

    They are from the paper's tables, its appendix as users quote it, and users' reruns of the authors' code.
    At least one of the two claims is from outside the paper's main text, and p is known and the same.
    """
    if not is_menet(claim.defense) or claim.p is None:
        return []
    return [
        other
        for other in load()
        if other.id != claim.id
        and {other.id, claim.id} & {"appendix", "rerun"}
        and "refuted" not in (other.id, claim.id)
        and is_menet(other.defense)
        and (other.dataset, other.model, other.p, other.training)
        == (claim.dataset, claim.model, claim.p, claim.training)
        and (other.attack, other.steps, other.metric) == (claim.attack, claim.steps, claim.metric)
        and other.value is not None
    ]


def refutations(claim: Claim) -> list[Claim]:
    """Return lower robust accuracies that others published for the same defense, trained the same way.

    The attack may differ, since a claim of white-box robustness covers any attack in the ball. The metric
    must be the same: an image that was fooled at some iterate refutes no accuracy.
    """
    if (
        claim.id in ("refuted", "rerun")
        or claim.value is None
        or claim.attack == "clean"
        or claim.black_box
    ):
        return []
    return [
        other
        for other in load()
        if other.id == "refuted"
        and other.attack != "clean"
        and (other.dataset, other.defense, other.training, other.metric)
        == (claim.dataset, claim.defense, claim.training, claim.metric)
        and other.value is not None
        and other.value < claim.value
    ]
