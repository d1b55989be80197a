"""What a suite expands to, and the worst case of what it found."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from harness.evaluation import suites
from harness.registry import defenses, load_file
from harness.results import worst_case
from harness.results.records import unpack
from harness.results.summaries import spread, worst_lines
from harness.types import HarnessError, Spec, ThreatModel

zoo = load_file(Path(__file__).parents[1] / "helpers" / "zoo.py")
record = zoo.record
BALL = zoo.BALL


def names(defense: str, threat: ThreatModel = BALL, **options: object) -> dict[str, Spec]:
    made = defenses.get(defense)()
    return {e.name: e.attack for e in suites.expand("adaptive", made, threat, **options)}


def test_recipe_is_the_published_one() -> None:
    recipe = names("menet-usvt")["recipe"]
    assert recipe.name == "bpda"
    assert recipe.parameters["steps"] == "200"
    assert recipe.parameters["eot"] == "40"
    assert recipe.parameters["keep"] == "best"
    assert float(recipe.parameters["step_size"]) == pytest.approx(5 * BALL.epsilon / 200, rel=1e-5)


def test_entries_follow_the_defense() -> None:
    randomised = names("menet-usvt")
    assert set(randomised) == {"recipe", "exact gradients", "fixed mask", "transfer", "score-based"}
    assert set(names("tvm")) == {"recipe", "fixed mask", "transfer", "score-based"}
    plain = names("vanilla")
    assert set(plain) == {"recipe", "transfer", "score-based"}
    assert "eot" not in plain["recipe"].parameters
    assert names("vanilla", ThreatModel(epsilon=1.0, norm="l2"))["score-based"].name == "spsa"


def test_held_randomness_is_no_randomness() -> None:
    made = defenses.get("menet-usvt")(randomness="fixed")
    assert "fixed mask" not in {e.name for e in suites.expand("adaptive", made, BALL)}


def test_a_share_of_the_budget_is_named() -> None:
    made = defenses.get("menet-usvt")()
    full = suites.expand("adaptive", made, BALL)
    part = suites.expand("adaptive", made, BALL, scale=0.25)
    assert not any(entry.scaled for entry in full)
    assert {e.name: e.scaled for e in part}["recipe"] == "100 of 200 steps, 20 of 40 eot"
    recipe = next(e.attack for e in part if e.name == "recipe")
    assert float(recipe.parameters["step_size"]) == pytest.approx(5 * BALL.epsilon / 100, rel=1e-5)
    transfer = next(e.attack for e in part if e.name == "transfer")
    assert transfer.inner is not None
    assert transfer.inner.parameters["eot"] == "20"
    with pytest.raises(HarnessError, match="budget scale"):
        suites.expand("adaptive", made, BALL, scale=0)


def test_worst_case_of_deterministic_records_is_the_minimum() -> None:
    first = record([[True, True, False, True]], "pgd")
    second = record([[True, False, True, True]], "square")
    worst = worst_case.worst_case([first, second])
    assert worst.mean == worst.vote == 0.5
    assert worst.alone == {"pgd": 1, "square": 1}


def test_luck_in_scoring_is_no_success() -> None:
    """Five attacks that all do nothing, on a defense that is right in half of its draws."""
    generator = random.Random(1)
    records = [
        record([[generator.random() < 0.5 for _ in range(400)] for _ in range(10)], f"attack-{k}")
        for k in range(5)
    ]
    least = [
        min(sum(column) / 10 for column in image)
        for image in zip(
            *[
                list(zip(*[unpack(row, 400) for row in r.robust_outcomes], strict=True))
                for r in records
            ],
            strict=True,
        )
    ]
    assert sum(least) / 400 < 0.36  # what the plain minimum would report
    assert worst_case.worst_case(records).mean == pytest.approx(0.5, abs=0.04)


def test_a_stronger_attack_is_found_by_every_half_of_the_draws() -> None:
    rows = [[True] * 6 for _ in range(4)]
    broken = [[False] * 6 for _ in range(4)]
    assert worst_case.worst_case([record(rows, "weak"), record(broken, "strong")]).mean == 0.0


def test_plurality_votes_are_used_where_stored() -> None:
    rows = [[True], [False], [False]]
    elected = record(rows, votes=[True])
    assert worst_case.worst_case([elected]).vote == 1.0
    assert worst_case.worst_case([dataclasses.replace(elected, robust_votes="")]).vote == 0.0


def test_other_images_have_no_common_worst_case() -> None:
    first = record([[True, False]])
    other = dataclasses.replace(record([[True, False]]), ids="other")
    with pytest.raises(ValueError, match="same images"):
        worst_case.worst_case([first, other])


def test_spread_tells_models_from_masks() -> None:
    rows = [[True] * 8 + [False] * 2, [True] * 6 + [False] * 4]
    found = spread([record(rows, seed=0), record([[True] * 10] * 2, seed=1)])
    assert found.values == (pytest.approx(0.7), 1.0)
    assert found.between_models == pytest.approx(0.3 / 2**0.5)
    assert found.between_draws == pytest.approx((0.02 / 2) ** 0.5)


def test_suite_end_to_end(tmp_path: Path) -> None:
    """The adaptive suite at a hundredth of its budget on a noisy defense: worst no better than any."""
    made = zoo.Noisy()
    entries = suites.expand("adaptive", made, ThreatModel(epsilon=0.1), scale=0.01)
    specs = [str(entry.attack) for entry in entries]
    assert len(specs) == 4
    records = zoo.measured(tmp_path, zoo.named("Noisy"), specs, epsilon=0.1, limit=40, draws=4)
    worst = worst_case.worst_case(records)
    assert worst.mean <= min(r.robust.mean for r in records)
    (line,) = worst_lines(records)
    assert f"{worst.mean:.1%}" in line
    transferred = [r for r in records if r.transferred]
    assert len(transferred) == 1
    assert transferred[0].cell.attack.name == "transfer"


def test_never_more_than_the_strongest_attack_alone() -> None:
    """Draws that choose an attack and draws that score it may differ; one attack for all is a choice."""
    strong = record([[True, False], [False, True]], "strong")
    weak = record([[False, True], [True, True]], "weak")
    assert worst_case.worst_case([strong, weak]).mean == strong.robust.mean == 0.5
