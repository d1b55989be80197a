"""What guests do at the edges of the guards: names seldom watched, acts that come late, odd tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from harness.cells import code, guard, process
from harness.cells.cells import Cell
from harness.evaluation.runner import Runner
from harness.registry import load_file
from harness.results.records import Failure, Record
from harness.spec import parse
from harness.targets.integrity import ImageState
from harness.types import Dataset, Spec

from .test_defenses import BALL, model_store, target

guests = load_file(Path(__file__).with_name("guests.py"))


def cell(attack: Spec, defense: str = "vanilla", *, limit: int = 12) -> Cell:
    on = dataclasses.replace(target("Honest"), defense=Spec(defense))
    return Cell(target=on, attack=attack, threat=BALL, draws=3, limit=limit)


def hostile(name: str, kind: str) -> Cell:
    return cell(Spec(f"{guests.HERE}:{name}", {"kind": kind}))


HONEST = cell(parse("pgd(steps=3)"))


def run(folder: Path, *cells: Cell, batch_size: int = 6) -> list[Record | Failure]:
    """Run cells in this process, put back as it was after each call."""
    return Runner(model_store=model_store(folder), batch_size=batch_size).run(cells)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Record:
    (found,) = run(tmp_path_factory.mktemp("honest"), HONEST)
    assert isinstance(found, Record)
    return found


@pytest.mark.parametrize("kind", guests.DIRTY)
def test_a_changed_process_is_flagged_and_put_back(
    kind: str, honest: Record, tmp_path: Path
) -> None:
    functions, facets = code.read(), process.read()
    found, then = run(tmp_path, hostile("Dirty", kind), HONEST)
    assert isinstance(found, Record), found
    assert "process-changed" in found.flags, found.flags
    assert then == honest
    assert not code.restore(functions)
    assert not process.restore(facets, {process.RANDOM, process.THREADS})


@pytest.mark.parametrize("kind", guests.LATE)
def test_what_acts_after_the_call_is_put_back_before_the_next_cell(
    kind: str, honest: Record, tmp_path: Path
) -> None:
    noted = len(guard.history)
    _, then = run(tmp_path, hostile("Dirty", kind), HONEST)
    assert then == honest
    assert guard.is_dirty(noted)


@pytest.mark.parametrize("kind", guests.ODD)
def test_an_odd_tensor_is_taken_for_its_numbers(kind: str, tmp_path: Path) -> None:
    found, plain = run(tmp_path, hostile("Odd", kind), cell(parse("clean")))
    assert isinstance(found, Record) and isinstance(plain, Record), found
    assert not set(found.flags) - {"scaled-down"}, found.flags
    assert (found.images, found.robust) == (plain.images, plain.robust)


@pytest.mark.parametrize("kind", guests.BAD)
def test_what_is_no_batch_of_images_is_a_failure(kind: str, honest: Record, tmp_path: Path) -> None:
    found, then = run(tmp_path, hostile("Odd", kind), HONEST)
    assert isinstance(found, Failure)
    assert then == honest


def test_images_that_are_not_finite_are_invalid(tmp_path: Path) -> None:
    (found,) = run(tmp_path, hostile("Odd", "not finite"))
    assert isinstance(found, Record)
    assert "invalid-examples" in found.flags and found.robust == found.clean


@pytest.mark.parametrize("attack", ["fgsm", "square(queries=20)"])
@pytest.mark.parametrize("name", ["Repeats", "KnowsFirst"])
def test_a_defense_that_looks_at_the_batch_is_flagged(
    name: str, attack: str, tmp_path: Path
) -> None:
    """One lies to the judge's later draws alone, the other beyond the images that were asked about again."""
    asked = cell(parse(attack), f"{guests.HERE}:{name}", limit=60)
    (found,) = run(tmp_path, asked, batch_size=25)
    assert isinstance(found, Record), found
    assert "inconsistent-defense" in found.flags, found.looks


def test_images_of_other_batches_are_compared_at_the_end(digits_test: Dataset) -> None:
    edited = dataclasses.replace(digits_test, images=digits_test.images.clone())
    state, before = ImageState(edited), edited.images.clone()
    edited.images[40] += 1
    assert not state.restore(slice(0, 10))
    assert state.restore(slice(30, 50)) == ["images of the dataset"]
    assert torch.equal(edited.images, before)
    edited.images[-1] += 1
    assert state.restore() == ["images of the dataset"] and torch.equal(edited.images, before)
