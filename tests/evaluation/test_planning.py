"""Planning: the command line and Python turn the same options into the same cells."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

import harness
from harness.api import evaluate as api
from harness.cells import defaults
from harness.cells.cells import Cell, Target
from harness.cli.main import main
from harness.cli.options import typed
from harness.evaluation import planning, suites
from harness.evaluation.planning import AttackOptions, RunOptions, TargetOptions
from harness.evaluation.plans import Plan
from harness.evaluation.runner import Runner
from harness.executors import session
from harness.executors.session import SessionOptions
from harness.registry import load_file
from harness.results.records import Failure, Record
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.targets.model_store import ModelStore
from harness.targets.training import Stop
from harness.types import HarnessError

own = load_file(Path(__file__).parents[1] / "helpers" / "own_models.py")


class Seen(Exception):
    """What was to be run is known."""


def from_the_command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Cell]:
    """Return the cells of `harness run` with these words; nothing runs."""
    found: list[Cell] = []

    def run(self: Runner, cells: list[Cell]) -> list[Record | Failure]:
        found.extend(cells)
        raise Seen

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", run)
        patch.setattr(Store, "prepare", lambda self: None)
        done = CliRunner().invoke(main, ["run", *words])
    assert isinstance(done.exception, Seen), done.output
    return found


def from_python(monkeypatch: pytest.MonkeyPatch, **words: Any) -> list[Cell]:
    """Return the cells of `harness.evaluate` with these words; nothing runs."""
    found: list[Cell] = []

    def run(self: Runner, cells: list[Cell]) -> list[Record | Failure]:
        found.extend(cells)
        raise Seen

    images, labels = api.load_images("digits", "test", 20)
    with monkeypatch.context() as patch, pytest.raises(Seen):
        patch.setattr(Runner, "run", run)
        harness.evaluate(own.trained(), images, labels, device="cpu", quiet=True, **words)
    return found


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "svhn"])
@pytest.mark.parametrize(
    ("attacks", "words", "settings"),
    [
        (["pgd(steps=40)"], [], {}),
        (["pgd"], ["--steps", "7", "--eot", "3"], {"steps": 7, "eot": 3}),
        (["transfer(bpda(steps=40),defense=vanilla)", "fgsm"], [], {}),
        (["pgd(steps=40,step_size=0.002)"], ["--norm", "l2"], {"norm": "l2"}),
        (["adaptive"], ["--steps", "20", "--draws", "3"], {"steps": 20, "draws": 3}),
        (
            ["square"],
            ["--epsilon", "0.05", "--max-queries", "9"],
            {"epsilon": 0.05, "max_queries": 9},
        ),
    ],
)
def test_the_same_words_give_the_same_cells(
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    attacks: list[str],
    words: list[str],
    settings: dict[str, Any],
) -> None:
    named = [word for attack in attacks for word in ("--attack", attack)]
    there = from_the_command_line(monkeypatch, "--dataset", dataset, *named, *words)
    attack = attacks[0] if attacks == ["adaptive"] else attacks
    here = from_python(monkeypatch, dataset=dataset, attack=attack, **settings)
    served = [cell for cell in there if not suites.needs_another_model(cell.attack)]
    assert served and [describe(cell) for cell in here] == [describe(cell) for cell in served]


def describe(cell: Cell) -> tuple[object, ...]:
    """Return all of a cell but its model."""
    return str(cell.attack), cell.threat, cell.draws, cell.max_queries, cell.target.seed


def test_the_same_words_give_the_same_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--defense", "menet-usvt", "--epochs", "2", "--seed", "3", "-T", "limit=50"]
    (cell,) = from_the_command_line(monkeypatch, "--attack", "fgsm", *words)
    asked: list[Target] = []
    monkeypatch.setattr(ModelStore, "obtain", lambda self, target: asked.append(target))
    harness.load_defended("menet-usvt", epochs=2, seed=3, limit=50, results=tmp_path, quiet=True)
    (target,) = asked
    store = ModelStore(
        store=Store(tmp_path), device=torch.device("cpu"), reporter=Silent(), stop=Stop()
    )
    assert store.key(target) == store.key(cell.target)


def test_images_of_no_known_dataset_are_attacked_at_the_pace_of_their_ball(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (cell,) = from_python(monkeypatch, attack="pgd(steps=40)")
    assert str(cell.attack) == "pgd(steps=40)" and cell.threat.epsilon == 8 / 255


def test_the_step_size_of_a_dataset_holds_where_it_crosses_the_ball() -> None:
    assert defaults.step_size("mnist", epsilon=0.3, steps=30) == 0.01
    assert defaults.step_size("mnist", epsilon=0.3, steps=29) is None
    assert defaults.step_size("cifar10", epsilon=8 / 255, steps=7) == pytest.approx(2 / 255)
    assert defaults.step_size("own.npz", epsilon=8 / 255, steps=7) is None


def test_options_that_nobody_has_are_refused() -> None:
    matrix = RunOptions(
        target=TargetOptions(defense_options={"keep": "0.5"}),
        attack=AttackOptions(attacks=["pgd"]),
        defenses=["vanilla", "vanilla"],
    )
    with pytest.raises(HarnessError, match="-D keep: none of vanilla, vanilla has it"):
        planning.cells(matrix)


# --- options objects ------------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    return {
        name: command
        for name, command in main.commands.items()
        if "words" in inspect.signature(command.callback or main).parameters
    }


@pytest.mark.parametrize("name", ["audit", "convergence", "reproduce", "run", "verify"])
def test_each_word_of_a_command_is_one_field_of_one_options_object(name: str) -> None:
    command = commands()[name]
    named = set(inspect.signature(command.callback or main).parameters) - {"words"}
    words = {parameter.name or "": None for parameter in command.params} | {"executor": "local"}
    fields = {name: value for name, value in words.items() if name not in named}
    if name == "convergence":
        fields |= {"attacks": ()}
    if name in ("reproduce", "verify"):
        typed(fields, SessionOptions)
    elif name == "audit":
        typed(fields, TargetOptions, SessionOptions)
    else:
        typed(fields, TargetOptions, AttackOptions, SessionOptions)


def test_a_word_of_no_options_object_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="colour"):
        typed({"quiet": True, "colour": "red"}, SessionOptions)


def test_only_these_commands_have_words() -> None:
    assert sorted(commands()) == ["audit", "convergence", "reproduce", "run", "verify"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"executor": "ray", "devices": "0,1"}, "--gpus-per-cell"),
        ({"address": "auto"}, "--address needs --executor ray"),
        ({"gpus_per_cell": 0.5}, "--gpus-per-cell needs --executor ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        SessionOptions(**words)


# --- the executor is handed to the runner ---------------------------------------------------------


def test_an_executor_gets_what_is_missing_and_the_rest_is_done_here(tmp_path: Path) -> None:
    class Refuses:
        """Refuses the first cell and leaves the others to the runner."""

        def run(self, plans: list[Plan], runner: Runner) -> dict[str, Record | Failure]:
            asked.append([str(each.cell.attack) for each in plans])
            return {plans[0].key: runner.fail(plans[0], "not today", "refused")}

    asked: list[list[str]] = []
    cells, _ = planning.cells(
        RunOptions(
            target=TargetOptions(epochs=1, training_options={"limit": 50}),
            attack=AttackOptions(attacks=["clean", "fgsm"], limit=4, draws=1),
        )
    )

    def work(runner: Runner) -> int:
        runner.executor = Refuses()
        first, second = runner.run(cells)
        assert isinstance(first, Failure) and first.reason == "not today"
        assert isinstance(second, Record)
        runner.run(cells)
        return 0

    assert session.run(SessionOptions(results=tmp_path, device="cpu", quiet=True), work) == 0
    assert asked == [["clean", "fgsm"], ["clean"]], "what is stored is not asked for again"
