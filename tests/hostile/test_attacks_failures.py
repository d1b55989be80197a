"""Whatever an attack raises, and however its process ends, is one cell's failure; the next cell runs."""

from __future__ import annotations

import signal

import pytest

from harness.registry import load_file
from harness.results.records import Failure, Record
from harness.types import Spec

from .conftest import FILE, Both, cell, hostile, target

zoo = load_file(FILE)
REASONS = {
    "SystemExit(0)": "SystemExit: 0",
    "SystemExit(text)": "SystemExit: bye",
    "KeyboardInterrupt": "KeyboardInterrupt: it tried to end the run",
    "GeneratorExit": "GeneratorExit: it tried to end the run",
    "StopIteration": "StopIteration",
    "BaseException": "BaseException: base",
    "MemoryError": "MemoryError",
    "no text": "Unprintable: its text cannot be read",
    "text that exits": "Rude: its text cannot be read",
    "lone surrogate": r"ValueError: bad \udcff text",
    "many lines": "ValueError: first",
    "control characters": "ValueError:  [31mred",
    "very long": "ValueError: xxx",
    "Busy": "Busy: the engine's own",
    "DamagedFile": "DamagedFile: /etc/hostname is damaged",
    "StoreError": "StoreError: no disk",
    "DamageError": "DamageError: damage",
    "Interrupted": "Interrupted",
    "QueryBudgetSpent": "QueryBudgetSpent",
    "HarnessError": "a refusal",
    "HarnessError of status 0": "Status: fine",
    "a group": "BaseExceptionGroup: several",
}


@pytest.fixture
def noted_signals() -> object:
    """A run takes note of Ctrl-C itself; only then can a guest's own interrupt be told from the user's."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", zoo.ERRORS)
def test_what_an_attack_raises_is_its_cells_failure(
    both: Both, error: str, noted_signals: object
) -> None:
    found = both(hostile(error=error))
    assert isinstance(found, Failure), found
    assert found.reason.startswith(REASONS[error]), found.reason
    assert found.kind == ("refused" if error == "HarnessError" else "failed")
    assert len(found.reason) < 400 and found.reason.isprintable()


@pytest.mark.parametrize("error", ["SystemExit(0)", "StoreError", "no text", "Interrupted"])
@pytest.mark.parametrize("training", ["true", "false"])
def test_what_a_defense_raises_is_its_cells_failure(
    both: Both, error: str, training: str, noted_signals: object
) -> None:
    on = target(0, Spec(f"{FILE}:Leaves", {"kind": error, "training": training}))
    found = both(cell(on, Spec("clean")), trained=False)
    assert isinstance(found, Failure), found
    assert found.reason.startswith(REASONS[error]), found.reason


def test_endless_recursion(both: Both) -> None:
    found = both(hostile(kind="recursion"))
    assert isinstance(found, Failure)
    assert found.reason.startswith("RecursionError")


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("os._exit", "exit status 0"),
        ("segmentation fault", "signal 11"),
        ("killed", "signal 9"),
    ],
)
def test_the_death_of_an_isolated_process(both: Both, kind: str, end: str) -> None:
    found = both(hostile(kind=kind), isolate=True)
    assert isinstance(found, Failure), found
    assert found.reason == f"its process ended with {end} and left no record"


def test_isolated_and_honest_is_the_same_record(both: Both) -> None:
    found = both(hostile(kind="nothing"), isolate=True)
    assert isinstance(found, Record), found
