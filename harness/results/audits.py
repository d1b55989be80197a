"""The results of an audit, as data. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from harness.cells.cells import Target
from harness.types import ThreatModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """One attack of the battery, run or not."""

    name: str
    why: str
    attack: str
    epsilon: float
    key: str = ""
    """The key of its record; empty where there is none."""
    untested: str = ""
    """The reason why there is no record."""
    scaled: str = ""
    """The ways in which it was less than the published recipe."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """A check that is no attack."""

    name: str
    outcome: str
    flag: str = ""
    """The reason for a flag; empty for none. The flag is raised against every attack with gradients, or
    against the attack `against` alone; where the defense is inconsistent, against every attack."""
    raises: Literal["masked-gradients", "unsound-readout", "inconsistent-defense"] = (
        "masked-gradients"
    )
    against: str = ""
    untested: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """All that `harness audit` found for one target and one ball."""

    key: str
    target: Target
    threat: ThreatModel
    count: int
    available: int
    """The number of test images that there are."""
    draws: int
    budget: float
    """The seconds that were allowed."""
    spent: float
    scale: float
    """The share of the adaptive suite's published budget of passes."""
    tried: tuple[Tried, ...]
    probes: tuple[Probe, ...]
    flags: Mapping[str, Mapping[str, str]]
    """The flags of each record by its key, including those that other records and the probes raise."""
    verdict: Literal["broken", "weakened", "in doubt", "stands", "untested"]
    sentence: str
