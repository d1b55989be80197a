"""Every registered defense keeps the conformance kit's promises."""

from __future__ import annotations

import pytest

from harness.conformance.attacks import described
from harness.conformance.check import quick
from harness.conformance.defenses import DEFENSE_CHECKS
from harness.registry import defenses
from harness.types import Batch, Defense

NAMES = defenses.names()


def plugin(name: str) -> Defense:
    defense: Defense = quick(name, defenses)
    return defense


@pytest.mark.parametrize("check", DEFENSE_CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_its_promises(name: str, check: str, digits_batch: Batch) -> None:
    DEFENSE_CHECKS[check](plugin(name), digits_batch)


@pytest.mark.parametrize("name", NAMES)
def test_is_described(name: str) -> None:
    described(plugin(name))
