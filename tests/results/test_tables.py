"""`harness table`: what stays readable when there are many attacks, datasets and failures."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from harness.cells.cells import Cell
from harness.paper import expansion, protocol
from harness.results import tables
from harness.results.records import Failure, Record
from harness.spec import Spec
from tests.helpers.fabricated import COUNT, record


@pytest.fixture
def cell() -> Cell:
    first = expansion.expand(protocol.load("table3"), protocol.profile("smoke"))[0].cells[0]
    return dataclasses.replace(first, limit=COUNT)


def attacked(cell: Cell, attack: str, dataset: str = "mnist") -> Cell:
    target = dataclasses.replace(cell.target, dataset=dataset)
    return dataclasses.replace(cell, attack=Spec(attack), target=target)


def table(*found: Record | Failure) -> str:
    records = [each for each in found if isinstance(each, Record)]
    failures = [each for each in found if isinstance(each, Failure)]
    return tables.markdown(tables.Loaded(records, failures, {}))


def test_few_attacks_are_columns_and_many_are_lines(cell: Cell) -> None:
    names = ["bpda", "cw", "fgsm", "noise", "pgd", "square"]
    few = table(*(record(attacked(cell, name)) for name in names)).splitlines()
    assert all(f"{name} at linf" in few[0] for name in names)
    assert few[3] == ""  # one row
    many = table(*(record(attacked(cell, name)) for name in [*names, "spsa"])).splitlines()
    assert "attack" in many[0] and "robust" in many[0]
    assert [line.split("|")[8].split()[0] for line in many[2:9]] == sorted([*names, "spsa"])


def test_every_dataset_has_its_own_columns(cell: Cell) -> None:
    made = (record(attacked(cell, "fgsm")), record(attacked(cell, "pgd", "cifar10")))
    first, second = table(*made).split("\n\n")[:2]
    assert "cifar10" in first and "pgd" in first and "fgsm" not in first
    assert "mnist" in second and "fgsm" in second and "pgd" not in second


def test_a_reason_stands_below_the_table_once(cell: Cell) -> None:
    reason = "the data folder lacks what it needs, and nothing was downloaded"
    failures = [
        Failure(key=name, cell=attacked(cell, name), reason=reason, kind="refused")
        for name in ("fgsm", "pgd")
    ]
    text = table(record(attacked(cell, "bpda")), *failures)
    assert text.count(reason) == 1
    assert text.splitlines()[2].count("| refused") == 2
    assert "and 1 more" in text


def test_a_record_outranks_a_failure_of_its_cell(cell: Cell) -> None:
    mine = attacked(cell, "fgsm")
    text = table(record(mine), Failure(key="k", cell=mine, reason="it broke", kind="failed"))
    assert "it broke" not in text and "failed" not in text


def test_models_of_one_description_share_a_row_and_its_lowest_worst_case(cell: Cell) -> None:
    cells = [attacked(cell, name) for name in ("bpda", "fgsm")]
    stands = [record(each, robust=0.9) for each in cells]
    falls = []
    for made in (record(each, robust=0.0) for each in cells):
        anew = msgspec.structs.replace(made.resolved.target, training={"target": "trained anew"})
        resolved = msgspec.structs.replace(made.resolved, target=anew)
        falls.append(dataclasses.replace(made, key=f"{made.key}-anew", resolved=resolved))
    for found in (stands + falls, falls + stands):
        head, _, row = table(*found).splitlines()[:3]
        columns = [name.strip() for name in head.split("|")]
        (worst,) = (k for k, name in enumerate(columns) if name.startswith("worst case"))
        assert row.split("|")[worst].split()[0] == "0.0"
