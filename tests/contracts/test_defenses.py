"""Every registered defense keeps the same promises: the conformance kit's."""

from __future__ import annotations

import dataclasses

import pytest

from harness.conformance.attacks import described
from harness.conformance.defenses import DEFENSE_CHECKS
from harness.registry import defenses
from harness.spec import build, fields, parse
from harness.types import Batch, Defense

QUICK = {"filters": 4, "layers": 1, "hidden": 8, "blocks": 1, "levels": 4}
"""Settings that make a defense of any kind a matter of a second."""

NAMES = defenses.names()


def quick(name: str) -> Defense:
    known = fields(defenses.get(name))
    parameters = {key: value for key, value in QUICK.items() if key in known}
    defense: Defense = build(dataclasses.replace(parse(name), parameters=parameters), defenses)
    return defense


@pytest.mark.parametrize("check", DEFENSE_CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_its_promises(name: str, check: str, digits_batch: Batch) -> None:
    DEFENSE_CHECKS[check](quick(name), digits_batch)


@pytest.mark.parametrize("name", NAMES)
def test_is_described(name: str) -> None:
    described(quick(name))
