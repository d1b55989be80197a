"""No defense gets away with telling the judge from an attack: each try ends in a flag or a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.audit.battery import Battery
from harness.audit.randomness import disagreement
from harness.cells.cells import Cell, Target, TrainingPlan
from harness.conformance.check import probes
from harness.datasets.data import load
from harness.evaluation.runner import Runner
from harness.geometry import project
from harness.registry import load_file
from harness.results.records import Failure, Record
from harness.spec import parse
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.targets.training import Stop
from harness.types import Batch, HarnessError, Spec, ThreatModel

HERE = Path(__file__)
zoo = load_file(HERE.parents[1] / "helpers" / "zoo.py")
liars = load_file(HERE.with_name("liars.py"))
BALL = ThreatModel(epsilon=0.3)


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    liars.calls[0], liars.patience[0] = 0, 10**9
    liars.notes.clear()


def model_store(folder: Path):
    return zoo.Ready(
        store=Store(folder), device=torch.device("cpu"), reporter=Silent(), stop=Stop()
    )


def target(name: str) -> Target:
    return Target(
        dataset="digits",
        model=Spec("small-cnn"),
        defense=Spec(f"{liars.HERE}:{name}"),
        training=TrainingPlan(epochs=1),
    )


def result(folder: Path, name: str, attack: str) -> Record | Failure:
    cell = Cell(target=target(name), attack=parse(attack), threat=BALL, draws=4, limit=40)
    (found,) = Runner(model_store=model_store(folder), batch_size=25).run([cell])
    return found


KNOWING = (
    "GradModeReader",
    "RequiresGradReader",
    "StackInspector",
    "FileInspector",
    "AttackInspector",
)


@pytest.mark.parametrize("attack", ["pgd(steps=8)", "pgd(steps=30,restarts=2)"])
@pytest.mark.parametrize("name", KNOWING)
def test_a_defense_that_knows_who_asks_is_flagged(name: str, attack: str, tmp_path: Path) -> None:
    found = result(tmp_path, name, attack)
    assert isinstance(found, Record), found
    assert "inconsistent-defense" in found.flags


@pytest.mark.parametrize("name", ["BatchSizeReader", "NeighbourReader"])
def test_a_defense_that_guesses_who_asks_is_flagged(name: str, tmp_path: Path) -> None:
    """It lies to the attack too, now and then: that gradient is zero."""
    found = result(tmp_path, name, "pgd(steps=8)")
    assert isinstance(found, Record), found
    assert {"inconsistent-defense", "masked-gradients"} & set(found.flags)


def test_a_defense_that_counts_to_the_first_question_of_the_judge_is_flagged(
    tmp_path: Path,
) -> None:
    attack = "pgd(steps=8)"
    assert isinstance(result(tmp_path / "one", "CallCounter", attack), Record)
    last = 2 + 2 + 4 + 1 + 2  # what the judge asks about two batches, the first of them twice
    liars.calls[0], liars.patience[0] = 0, liars.calls[0] - last
    found = result(tmp_path / "two", "CallCounter", attack)
    assert isinstance(found, Record)
    assert found.looks["attack"] > 0
    assert "inconsistent-defense" in found.flags


def test_notes_are_of_no_use(tmp_path: Path) -> None:
    """The judge's attacked images come before the originals, and a second time after them."""
    honest = result(tmp_path / "honest", "HonestNoise", "pgd(steps=8)")
    found = result(tmp_path / "liar", "NoteTaker", "pgd(steps=8)")
    assert isinstance(found, Record) and isinstance(honest, Record)
    assert found.looks["later"] == found.looks["asked"] > 0
    assert "inconsistent-defense" in found.flags
    assert found.robust.mean == pytest.approx(honest.robust.mean, abs=0.1)


@pytest.mark.parametrize("name", ["RoleReader", "IdReader", "PlaceChanger"])
def test_there_is_nothing_to_read(name: str, tmp_path: Path) -> None:
    found = result(tmp_path, name, "pgd(steps=8)")
    assert isinstance(found, Failure)
    assert "OpaqueDraws" in found.reason and found.kind == "failed"


@pytest.mark.parametrize("attack", ["clean", "noise", "fgsm", "pgd(steps=8)", "square(queries=20)"])
@pytest.mark.parametrize("name", ["Honest", "HonestNoise"])
def test_an_honest_defense_is_not_flagged(name: str, attack: str, tmp_path: Path) -> None:
    found = result(tmp_path, name, attack)
    assert isinstance(found, Record), found
    assert found.looks["asked"] == 8 + 2
    assert (found.looks["replayed"] > 0) is (attack not in ("clean", "noise"))
    assert not any(found.looks[each] for each in ("alone", "later", "gradients", "attack"))
    assert "inconsistent-defense" not in found.flags


# --- what only an audit sees ----------------------------------------------------------------------


def attacked(name: str) -> tuple[object, Batch]:
    """A defended model, and images that fool the model behind it."""
    defended = model_store(Path()).__class__._make(model_store(Path()), target(name), "")
    batch = load("digits", "test").batch(slice(0, 100))
    pixels = batch.images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(defended.model(pixels), batch.labels)
    (slope,) = torch.autograd.grad(loss, pixels)
    images = project(batch.images + 0.3 * slope.sign(), batch.images, BALL)
    return defended, Batch(images, batch.labels, batch.ids)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Recogniser", "the judge's draws"),
        ("AttackRecogniser", "an attack's draws"),
        ("HeldReader", "one draw for all images"),
    ],
)
def test_draws_that_are_recognised(name: str, says: str) -> None:
    assert says in disagreement(*attacked(name), seed=0)


def test_draws_of_an_honest_defense_are_alike() -> None:
    for _ in range(5):
        assert not disagreement(*attacked("HonestNoise"), seed=0)


@pytest.mark.parametrize("name", ["GradModeReader", "StackInspector", "Recogniser", "HeldReader"])
def test_no_audit_says_that_a_liar_stands(name: str, tmp_path: Path) -> None:
    found, page = Battery(
        target=target(name),
        threat=BALL,
        model_store=model_store(tmp_path),
        budget=15,
        draws=4,
        limit=40,
        scale=0.01,
        promises=probes,
    ).run()
    assert found.verdict in ("in doubt", "broken"), page
    assert any("inconsistent-defense" in flags for flags in found.flags.values()), page


# --- access ---------------------------------------------------------------------------------------


def test_a_view_answers_under_the_attack_s_draws_alone() -> None:
    from harness.random import Draws, Role
    from harness.targets.views import View

    defended, batch = attacked("Honest")
    view = View(defended, batch, BALL, "gradients")
    for role in set(Role) - {Role.ATTACK}:
        draws = Draws(0, batch.ids, role)
        asks = (
            lambda draws=draws: view.labels(batch.images, draws),
            lambda draws=draws: view.logits(batch.images, draws),
            lambda draws=draws: view.transform(batch.images, draws),
            lambda draws=draws: view.gradient(
                batch.images, draws, lambda logits: logits.sum(dim=1)
            ),
            lambda draws=draws: view.module(batch, draws)(batch.images),
        )
        for ask in asks:
            with pytest.raises(HarnessError, match=role.name):
                ask()
    assert not view.evidence.forwards.any()


def test_gradients_beyond_the_declared_access_are_flagged(tmp_path: Path) -> None:
    found = result(tmp_path, "Honest", f"{liars.HERE}:Trespasser")
    assert isinstance(found, Record), found
    assert found.access == "labels"
    assert "8 backward passes" in found.flags["access-exceeded"]
