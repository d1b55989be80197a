"""Every registered attack keeps the conformance kit's promises, before each of its victims."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from harness.conformance import attacks as checked
from harness.conformance.check import quick
from harness.registry import attacks
from harness.types import Attack

INNER = {"transfer": "transfer(pgd)"}
"""Attacks that wrap another, with one."""

EXEMPT: dict[tuple[str, str, str], str] = {
    ("autoattack", "batch independent", "deterministic"): (
        "pyautoattack draws for a whole batch from one generator, which is seeded by the batch"
    ),
    ("autoattack", "batch independent", "randomised"): (
        "pyautoattack draws for a whole batch from one generator, which is seeded by the batch"
    ),
    ("boundary", "batch independent", "randomised"): (
        "the toolbox walks image by image, and the victim's noise at a look is numbered by all looks "
        "of the batch before it"
    ),
    ("hopskipjump", "batch independent", "randomised"): (
        "the toolbox walks image by image, and the victim's noise at a look is numbered by all looks "
        "of the batch before it"
    ),
}
"""By attack, check and victim: why this promise is not kept. All others are. One that is kept after all is
found, too: its line goes."""

NAMES = attacks.names()


def plugin(name: str) -> Attack:
    attack: Attack = quick(INNER.get(name, name), attacks)
    return attack


@pytest.mark.parametrize("kind", ["deterministic", "randomised"])
@pytest.mark.parametrize("check", checked.ATTACK_CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_its_promises(name: str, check: str, kind: str) -> None:
    defended = checked.victim(randomised=kind == "randomised")
    batch = checked.some_images(defended)
    run = functools.partial(checked.ATTACK_CHECKS[check], plugin(name), defended, batch)
    if (name, check, kind) in EXEMPT:
        with pytest.raises(checked.Broken):
            run()
    else:
        run()


def test_exemptions_name_attacks_and_checks_that_there_are() -> None:
    for name, check, _ in EXEMPT:
        assert name in NAMES and check in checked.ATTACK_CHECKS, (name, check)


@pytest.mark.parametrize("name", NAMES)
def test_has_a_summary_and_frozen_parameters(name: str) -> None:
    checked.described(plugin(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugin(name).steps = 1  # type: ignore[attr-defined]
