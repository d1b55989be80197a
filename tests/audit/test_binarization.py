"""The binarisation test and its verdict on itself: passed, vacuous or untested."""

from __future__ import annotations

import pytest

from harness.audit.binarization import FEWEST, Readout


def readout(found: int, random: int, usable: int = 40) -> Readout:
    return Readout(attack="pgd", usable=usable, found=found, random=random)


@pytest.mark.parametrize(("random", "vacuous"), [(0, False), (20, False), (35, False), (40, True)])
def test_a_pass_is_vacuous_where_random_points_pass_too(random: int, vacuous: bool) -> None:
    found = readout(40, random)
    assert not found.flag
    assert bool(found.vacuous) is vacuous
    assert ("vacuous" in found.outcome) is vacuous
    assert f"random points find {random}" in found.outcome


def test_a_failure_is_never_vacuous() -> None:
    found = readout(10, 40)
    assert found.flag and not found.vacuous and "vacuous" not in found.outcome


def test_too_few_readouts_and_refusals_say_nothing() -> None:
    few = readout(FEWEST - 1, FEWEST - 1, usable=FEWEST - 1)
    assert not few.flag and not few.vacuous
    refused = Readout(attack="noise", usable=0, found=0, random=0, refused="it does not look")
    assert not refused.vacuous and refused.outcome == "it does not look"
