"""The verdict of an audit, from fabricated records of one target."""

from __future__ import annotations

import dataclasses

import pytest

from harness.audit.verdict import conclude
from harness.cells.cells import Cell
from harness.paper import expansion, protocol
from harness.results.flags import EXPLANATIONS
from harness.results.records import Accuracy, Record
from harness.spec import Spec
from harness.types import ThreatModel
from tests.helpers.fabricated import COUNT, record


@pytest.fixture
def cell() -> Cell:
    first = expansion.expand(protocol.load("table3"), protocol.profile("smoke"))[0].cells[0]
    return dataclasses.replace(first, limit=COUNT, attack=Spec("bpda"))


def judged(found: Record, flag: str = "") -> tuple[str, str]:
    flags = {found.key: {flag: "why"}} if flag else {}
    return conclude([found], flags, found.cell.threat)


@pytest.mark.parametrize(
    ("robust", "verdict"), [(0.0, "broken"), (0.2, "weakened"), (0.8, "stands")]
)
def test_what_stands_decides(cell: Cell, robust: float, verdict: str) -> None:
    word, sentence = judged(record(cell, robust=robust))
    assert word == verdict
    assert "right without an attack" in sentence


def test_a_flag_on_the_strongest_attack_is_a_doubt_unless_it_breaks_all(cell: Cell) -> None:
    assert judged(record(cell, robust=0.8), "masked-gradients")[0] == "in doubt"
    assert judged(record(cell, robust=0.8), "scaled-down")[0] == "stands"
    assert judged(record(cell, robust=0.0), "masked-gradients")[0] == "broken"


@pytest.mark.parametrize("flag", sorted(set(EXPLANATIONS) - {"scaled-down"}))
@pytest.mark.parametrize("robust", [0.2, 0.8])
def test_no_flag_of_any_row_is_passed_over(cell: Cell, flag: str, robust: float) -> None:
    strong = record(cell, robust=robust)
    weak = record(dataclasses.replace(cell, attack=Spec("fgsm")), robust=0.85)
    word, sentence = conclude([strong, weak], {weak.key: {flag: "why"}}, cell.threat)
    assert word == "in doubt"
    assert flag in sentence and "of the 2 attacks 1" in sentence


def test_a_flag_in_another_ball_is_no_doubt_here(cell: Cell) -> None:
    here = record(cell, robust=0.8)
    other = record(dataclasses.replace(cell, threat=ThreatModel(epsilon=0.9)), robust=0.8)
    assert (
        conclude([here, other], {other.key: {"model-changed": "why"}}, cell.threat)[0] == "stands"
    )


def test_without_an_attack_that_looks_nothing_is_said(cell: Cell) -> None:
    control = record(dataclasses.replace(cell, attack=Spec("clean")))
    assert judged(control)[0] == "untested"


def test_a_model_at_chance_is_neither_broken_nor_robust(cell: Cell) -> None:
    made = record(cell, robust=0.0)
    guess = Accuracy(one_draw=0.1, mean=0.1, vote=0.1, all_draws=0.1, count=COUNT)
    word, sentence = judged(dataclasses.replace(made, clean=guess))
    assert word == "untested"
    assert "where chance is 10.0%" in sentence
