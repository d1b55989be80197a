"""One small run: a hostile cell, then an honest one whose target is trained after it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.cells.cells import Cell, Target, TrainingPlan
from harness.evaluation.runner import Runner
from harness.executors.isolated import Processes
from harness.results.records import Failure, Record
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.targets.model_store import ModelStore
from harness.targets.training import Stop
from harness.types import Spec, ThreatModel

FILE = Path(__file__).parents[1] / "helpers" / "hostile.py"
PLAN = TrainingPlan(epochs=1, batch_size=64, limit=192)


def target(seed: int, defense: Spec | None = None) -> Target:
    return Target(
        dataset="digits",
        model=Spec("small-cnn"),
        defense=defense or Spec("vanilla"),
        training=PLAN,
        seed=seed,
    )


def cell(on: Target, attack: Spec) -> Cell:
    return Cell(target=on, attack=attack, threat=ThreatModel(epsilon=0.3), draws=1, limit=12)


HONEST = cell(target(1), Spec("pgd", {"steps": 3}))


def hostile(**parameters: str) -> Cell:
    return cell(target(0), Spec(f"{FILE}:Hostile", parameters))


@dataclasses.dataclass
class Run:
    """What came of the two cells."""

    first: Record | Failure
    honest: Path
    """The results folder."""
    key: str


def runner(folder: Path, *, isolate: bool = False, limit: float | None = None) -> Runner:
    torch.set_num_threads(1)
    store = Store(folder)
    store.prepare()
    model_store = ModelStore(
        store=store, device=torch.device("cpu"), reporter=Silent(), stop=Stop()
    )
    processes = Processes(
        device="cpu", results=store.results, cache=store.cache, data_dir=None, limit=limit
    )
    return Runner(model_store=model_store, batch_size=6, elsewhere=processes, isolate=isolate)


Both = Callable[..., Record | Failure]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The honest cell, and the target of the hostile ones, from processes that met nobody else."""
    folder = tmp_path_factory.mktemp("fresh") / "store"
    found = runner(folder, isolate=True).run([HONEST, cell(target(0), Spec("clean"))])
    assert all(isinstance(each, Record) for each in found), found
    return folder


@pytest.fixture
def both(undisturbed: Path, tmp_path: Path) -> Both:
    """Run a hostile cell and then the honest one; return what came of the first."""

    def run(
        first: Cell, *, trained: bool = True, isolate: bool = False, limit: float | None = None
    ):  # type: ignore[no-untyped-def]
        folder = tmp_path / "store"
        working = runner(folder, isolate=isolate, limit=limit)
        if trained:  # the hostile cell's target: its training is no part of the case
            own = working.model_store.store.checkpoint_path(working.model_store.key(first.target))
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(undisturbed / "checkpoints" / own.name, own)
        found, honest = working.run([first, HONEST])
        assert isinstance(honest, Record), honest
        for pattern in (
            f"records/{honest.key}.json",
            f"checkpoints/{working.model_store.key(HONEST.target)}.safetensors",
        ):
            assert (folder / pattern).read_bytes() == (undisturbed / pattern).read_bytes(), pattern
        attacked = [each for each in (undisturbed / "progress").glob("*/*") if each.is_file()]
        assert attacked
        return found

    return run
