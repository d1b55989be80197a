"""Every registered attack keeps the same promises, against a deterministic and a randomised victim."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.conformance import attacks as checked
from harness.registry import attacks
from harness.spec import build, fields, parse
from harness.targets.defended import Defended
from harness.types import Attack

QUICK = {
    "steps": 3,
    "samples": 8,
    "queries": 12,
    "max_iterations": 3,
    "eot": 2,
    "iterations": 3,
    "binary_search_steps": 2,
    "max_queries": 60,
}
"""Settings that make one attack of any kind a matter of a second."""

INNER = {"transfer": "transfer(pgd)"}


def quick(name: str) -> Attack:
    spec = parse(INNER.get(name, name))
    known = fields(attacks.get(name))
    parameters = {key: value for key, value in QUICK.items() if key in known}
    attack: Attack = build(dataclasses.replace(spec, parameters=parameters), attacks)
    return attack


NAMES = attacks.names()


@pytest.fixture(params=[False, True], ids=["deterministic", "randomised"])
def defended(request: Any) -> Defended:
    return checked.victim(randomised=request.param)


CHECKS = ("ball, box and purity", "deterministic", "one image and none")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_its_promises(name: str, check: str, defended: Defended) -> None:
    batch = checked.some_images(defended)
    checked.ATTACK_CHECKS[check](quick(name), defended, batch)


@pytest.mark.parametrize("name", NAMES)
def test_has_a_summary_and_frozen_parameters(name: str) -> None:
    entry = next(entry for entry in attacks if entry.name == name)
    assert 10 < len(entry.summary) < 110 and entry.summary.endswith(".")
    attack = quick(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.steps = 1  # type: ignore[attr-defined]
