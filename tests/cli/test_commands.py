"""`run --attack adaptive`, `audit`, `convergence` and `--strict`, as a user calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from harness.audit import battery, budget, convergence
from harness.cells.cells import Cell, Target, TrainingPlan
from harness.cli.main import main
from harness.registry import load_file
from harness.results.audits import Audit
from harness.results.records import Record
from harness.storage.store import Store
from harness.targets.training import Interrupted, Stop
from harness.types import HarnessError, Spec, ThreatModel

zoo = load_file(Path(__file__).parents[1] / "helpers" / "zoo.py")
QUICK = ["--epochs", "1", "-T", "limit=300", "--quiet", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def harness(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_adaptive_runs_its_cells_and_prints_the_worst_case(tmp_path: Path) -> None:
    words = ["run", "--defense", zoo.named("Noisy"), "--attack", "adaptive", "--attack", "noise"]
    words += ["--budget-scale", "0.01", "--steps", "3", "--eot", "2", "--limit", "20"]
    words += ["--seed", "0", "--seed", "1", "--draws", "4", "--results", str(tmp_path), *QUICK]
    result = harness(*words)
    assert result.exit_code == 0, result.output
    assert "each image under the worst of 5 attacks" in result.output
    assert "scaled-down: adaptive suite, recipe: 2 of 40 eot, 3 of 200 steps" in result.output
    assert "standard deviation between trained models" in result.output
    for seed in (0, 1):  # a line a cell
        assert result.output.count(f", seed {seed} ") == 5
    assert len(Store(tmp_path).names("records")) == 10
    table = harness("table", "--results", str(tmp_path))
    assert "worst case at linf 0.3" in table.output


def test_strict_is_status_3_and_scaled_down_alone_is_not(tmp_path: Path) -> None:
    words = ["run", "--limit", "60", "--results", str(tmp_path), "--strict", *QUICK]
    words += ["--epochs", "10"]  # one leaves the model at chance, which is flagged
    assert harness(*words, "--attack", "fgsm").exit_code == 0
    overreaching = harness(*words, "--attack", zoo.named("Overreaches"))
    assert overreaching.exit_code == 3
    assert "invalid-examples" in overreaching.output
    assert harness("table", "--results", str(tmp_path), "--strict").exit_code == 3
    assert harness("table", "--results", str(tmp_path)).exit_code == 0


def test_audit_prints_a_verdict_and_goes_on(tmp_path: Path) -> None:
    words = ["audit", "--defense", zoo.named("Rounded"), "--limit", "60", "--budget", "60s"]
    words += ["--budget-scale", "0.01", "--results", str(tmp_path), "--epochs", "4", "--quiet"]
    result = harness(*words)
    assert result.exit_code == 0, result.output
    for part in ("Verdict:", "What was tried", "What fell", "What remains untested"):
        assert part in result.output
    assert "masked-gradients" in result.output
    (name,) = Store(tmp_path).names("audits")
    found = Store(tmp_path).read_json("audits", name, Audit)
    assert found is not None
    assert found.count == 60
    assert {tried.name for tried in found.tried} >= {"noise", "plain", "recipe", "transfer"}
    # What another record and a probe found stands in the table too.
    assert "masked-gradients" in harness("table", "--results", str(tmp_path)).output
    again = harness(*words, "--strict")
    assert again.exit_code == 3


def test_a_budget_that_is_spent_leaves_things_untested(tmp_path: Path) -> None:
    words = ["audit", "--defense", "vanilla", "--budget", "0.001s", "--results", str(tmp_path)]
    result = harness(*words, *QUICK)
    assert result.exit_code == 0, result.output
    assert "Verdict: untested" in result.output
    assert not Store(tmp_path).names("records")
    (name,) = Store(tmp_path).names("audits")
    found = Store(tmp_path).read_json("audits", name, Audit)
    assert found is not None
    assert found.probes and all(probe.untested for probe in found.probes)
    assert not any(tried.key for tried in found.tried)


def test_budgets_are_read() -> None:
    assert budget.seconds("90") == budget.seconds("90s") == budget.seconds("1.5m") == 90
    assert budget.seconds("2h") == 7200
    for wrong in ("", "soon", "-3m", "0", "10d"):
        with pytest.raises(HarnessError, match="90s, 10m or 2h"):
            budget.seconds(wrong)


def test_a_deadline_is_a_stop() -> None:
    now = 0.0
    inner = Stop()
    deadline = budget.Deadline(inner, 5.0, lambda: now)
    deadline.check()
    now = 6.0
    assert deadline.asked
    with pytest.raises(budget.BudgetSpent):
        deadline.check()
    inner.asked = True  # a signal comes first: it is no matter of the budget
    with pytest.raises(Interrupted) as caught:
        deadline.check()
    assert not isinstance(caught.value, budget.BudgetSpent)


def test_undeclared_randomness_is_found(tmp_path: Path) -> None:
    model_store = zoo.Ready(
        store=Store(tmp_path), device=torch.device("cpu"), reporter=zoo.Silent(), stop=Stop()
    )
    target = Target(
        dataset="digits",
        model=Spec(zoo.named("Undecided")),
        defense=Spec("vanilla"),
        training=TrainingPlan(epochs=1),
    )
    made = battery.Battery(
        target=target,
        threat=ThreatModel(epsilon=0.1),
        model_store=model_store,
        budget=30,
        limit=20,
        scale=0.01,
    )
    found, page = made.run()
    assert "20 of 20 images give other logits" in page
    assert all("inconsistent-defense" in flags for flags in found.flags.values())


def test_convergence_writes_numbers_and_a_picture(tmp_path: Path) -> None:
    words = ["convergence", "--defense", zoo.named("Noisy"), "--attack", "pgd(steps=10,eot=1)"]
    words += ["--steps", "2,4", "--eot", "1,2", "--epsilons", "0.05,0.1", "--equal-budget"]
    words += ["--limit", "20", "--draws", "3", "--results", str(tmp_path / "runs")]
    result = harness(*words, "--output", str(tmp_path / "out"), *QUICK)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "out" / "convergence.csv").read_text().splitlines()
    axes = [line.split(",")[0] for line in lines[1:]]
    assert axes == ["steps"] * 2 + ["eot"] * 2 + ["epsilon"] * 2 + ["equal-budget"]
    picture = (tmp_path / "out" / "convergence.svg").read_text()
    assert picture.lstrip().startswith("<?xml")
    assert "gradient steps" in picture


def test_steps_go_as_far_however_many_there_are() -> None:
    target = Target(
        dataset="digits",
        model=Spec("small-cnn"),
        defense=Spec("vanilla"),
        training=TrainingPlan(epochs=1),
    )
    attack = Spec("bpda", {"steps": "200", "step_size": "0.0075", "eot": "40"})
    base = Cell(target=target, attack=attack, threat=ThreatModel(epsilon=0.3))
    found = convergence.points(base, {"steps": [50, 100]}, equal_budget=True)
    sizes = {p.value: float(p.cell.attack.parameters["step_size"]) for p in found[:2]}
    assert sizes == {50: pytest.approx(0.03), 100: pytest.approx(0.015)}
    for point in found[2:]:
        parameters = point.cell.attack.parameters
        assert int(parameters["steps"]) * int(parameters["eot"]) == pytest.approx(8000, rel=0.15)
    with pytest.raises(HarnessError, match="positive"):
        convergence.points(base, {"eot": [0]}, equal_budget=False)


@pytest.mark.parametrize("kind", ["fresh", "per-input", "fixed"])
def test_randomness_is_held_as_asked(kind: str, tmp_path: Path) -> None:
    defense = zoo.named("Noisy") + f"(sigma=0.9,randomness={kind})"
    (found,) = zoo.measured(tmp_path, defense, ["noise"], epsilon=0.05, limit=60, draws=4)
    assert isinstance(found, Record)
    assert found.randomised is (kind == "fresh")
    assert len(found.clean_outcomes) == (4 if kind == "fresh" else 1)
    differ = len(set(found.clean_outcomes)) > 1
    assert differ is (kind == "fresh")
    assert bool(found.notes) is (kind != "fresh")
    assert kind == "fresh" or "one scoring draw in place of 4" in found.notes[0]


def test_fixed_is_one_draw_for_all_images(tmp_path: Path) -> None:
    from harness.random import Draws, Role
    from harness.targets.defended import Defended

    images = torch.full((3, 1, 28, 28), 0.5)
    images[2] += 0.1
    draws = Draws(0, torch.tensor([4, 5, 6]), Role.SCORE)
    seen = {}
    for kind in ("fresh", "per-input", "fixed"):
        defended = Defended(torch.nn.Identity(), zoo.Noisy(randomness=kind), 10)
        seen[kind] = defended.transform(images, draws) - images
    assert not torch.allclose(seen["fresh"][0], seen["fresh"][1], atol=1e-5)
    assert torch.allclose(seen["per-input"][0], seen["per-input"][1], atol=1e-5)
    assert not torch.allclose(seen["per-input"][0], seen["per-input"][2], atol=1e-5)
    assert torch.allclose(seen["fixed"][0], seen["fixed"][2], atol=1e-5)


@pytest.mark.parametrize("value", ["nan", "inf", "2.5", "-1"])
def test_an_axis_has_counts(tmp_path: Path, value: str) -> None:
    words = ["convergence", "--defense", "vanilla", f"--steps={value}"]
    result = harness(*words, "--results", str(tmp_path))
    assert result.exit_code == 2 and "positive, and a count" in result.output, result.output


def test_a_default_number_of_steps_goes_as_far_too() -> None:
    """`pgd` takes 40 steps where nothing is said; 4 steps are ten times as large."""
    target = Target(
        dataset="digits",
        model=Spec("small-cnn"),
        defense=Spec("vanilla"),
        training=TrainingPlan(epochs=1),
    )
    for size in ("2/255", 2 / 255):
        attack = Spec("pgd", {"step_size": size})
        base = Cell(target=target, attack=attack, threat=ThreatModel(epsilon=0.3))
        (found,) = convergence.points(base, {"steps": [4]}, equal_budget=False)
        moved = float(found.cell.attack.parameters["step_size"])
        assert moved == pytest.approx(20 / 255, rel=1e-4)
