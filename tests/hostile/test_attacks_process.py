"""An attack that changes process or victim is flagged; the next honest cell is as in a fresh process."""

from __future__ import annotations

import sys

import pytest

from harness.registry import load_file
from harness.results.records import Failure, Record
from harness.types import Spec

from .conftest import FILE, Both, cell, hostile, target

zoo = load_file(FILE)


@pytest.mark.parametrize("kind", zoo.PROCESS)
def test_a_changed_process_is_flagged_and_put_back(both: Both, kind: str) -> None:
    found = both(hostile(kind=kind))
    assert isinstance(found, Record), found
    assert "process-changed" in found.flags, found.flags
    assert len(found.flags["process-changed"]) > len("changed and put back: ")
    assert "model-changed" not in found.flags


@pytest.mark.parametrize("kind", zoo.MODEL)
def test_a_changed_victim_is_flagged_and_put_back(both: Both, kind: str) -> None:
    found = both(hostile(kind=kind))
    assert isinstance(found, Record), found
    assert "model-changed" in found.flags, found.flags
    assert found.robust == found.clean  # the judge met the model as it was


@pytest.mark.parametrize("kind", zoo.SILENT)
def test_what_cannot_change_this_number_changes_no_other(both: Both, kind: str) -> None:
    assert isinstance(both(hostile(kind=kind)), Record)


def test_an_attack_that_does_nothing_raises_no_flag(both: Both) -> None:
    found = both(hostile(kind="nothing"))
    assert isinstance(found, Record)
    assert set(found.flags) <= {"at-chance", "scaled-down"}, found.flags


@pytest.mark.parametrize("kind", ["autocast left on", "default dtype", "Tensor.argmax", "threads"])
def test_a_defense_that_changes_the_process_in_judging_is_flagged(both: Both, kind: str) -> None:
    on = target(0, Spec(f"{FILE}:Leaves", {"kind": kind}))
    found = both(cell(on, Spec("clean")), trained=False)
    assert isinstance(found, Record), found
    assert "process-changed" in found.flags


@pytest.mark.parametrize("kind", ["autocast left on", "gradients off", "the optimiser's step"])
def test_a_defense_that_changes_the_process_in_training_is_refused(both: Both, kind: str) -> None:
    on = target(0, Spec(f"{FILE}:Leaves", {"kind": kind, "training": "true"}))
    found = both(cell(on, Spec("clean")), trained=False)
    assert isinstance(found, Failure), found
    assert (
        "changed the process while it was trained" in found.reason or "RuntimeError" in found.reason
    )


def test_standard_output_is_the_run_s_own(both: Both) -> None:
    before = sys.stdout
    both(hostile(kind="standard output"))
    assert sys.stdout is before
