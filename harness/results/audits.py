"""What an audit found, as data. Needs no torch."""

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
    """Of its record; empty where there is none."""
    untested: str = ""
    """Why there is no record."""
    scaled: str = ""
    """How it was less than the published recipe."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """A check that is no attack."""

    name: str
    outcome: str
    flag: str = ""
    """Why it raises a flag against every attack with gradients, or against the attack `against` alone; or,
    where the defense is inconsistent, against every attack."""
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
    """Test images that there are."""
    draws: int
    budget: float
    """Seconds that were allowed."""
    spent: float
    scale: float
    """The share of the adaptive suite's published budget of passes."""
    tried: tuple[Tried, ...]
    probes: tuple[Probe, ...]
    flags: Mapping[str, Mapping[str, str]]
    """By key of a record: its flags, those that other records and the probes raise included."""
    verdict: Literal["broken", "weakened", "in doubt", "stands", "untested"]
    sentence: str
