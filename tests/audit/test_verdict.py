"""The verdict of an audit, from fabricated records of one target."""

from __future__ import annotations

import dataclasses

import pytest

from harness.audit.verdict import conclude
from harness.cells.cells import Cell
from harness.paper import expansion, protocol
from harness.results.records import Accuracy, Record
from harness.spec import Spec
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


def test_without_an_attack_that_looks_nothing_is_said(cell: Cell) -> None:
    control = record(dataclasses.replace(cell, attack=Spec("clean")))
    assert judged(control)[0] == "untested"


def test_a_model_at_chance_is_neither_broken_nor_robust(cell: Cell) -> None:
    made = record(cell, robust=0.0)
    guess = Accuracy(one_draw=0.1, mean=0.1, vote=0.1, all_draws=0.1, count=COUNT)
    word, sentence = judged(dataclasses.replace(made, clean=guess))
    assert word == "untested"
    assert "where chance is 10.0%" in sentence
