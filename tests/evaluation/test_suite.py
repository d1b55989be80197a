"""Expansion of suites into attacks, and the worst case over their results."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import ClassVar

import pytest

from harness.evaluation import suites
from harness.registry import defenses, load_file
from harness.results import worst_case
from harness.results.records import unpack
from harness.results.summaries import spread, worst_lines
from harness.types import Defense, HarnessError, Norm, Spec, ThreatModel

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
    common = {"recipe", "mask-aware", "fixed mask", "transfer", "score-based"}
    assert set(randomised) == common | {"exact gradients"}
    assert set(names("tvm")) == common
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


# --- budgets, and backward passes of the defense's own ----------------------------------------------


def cost(spec: Spec) -> int:
    """Return the passes that an attack of a suite spends on an image."""
    inner = spec if spec.inner is None else spec.inner
    factors = [
        int(inner.parameters.get(name, 1)) for name in ("steps", "eot", "samples", "queries")
    ]
    return math.prod(factors)


@pytest.mark.parametrize("defense", ["menet-usvt", "vanilla"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_share_of_the_budget_keeps_the_order_of_the_attacks(defense: str, norm: Norm) -> None:
    """An attack that is published with more passes than another never gets fewer."""
    ball = ThreatModel(epsilon=0.1, norm=norm)
    full = names(defense, ball)
    for scale in [0.0001, 0.001, *(k / 200 for k in range(1, 201))]:
        part = names(defense, ball, scale=scale)
        assert list(part) == list(full)
        for dearer in full:
            assert cost(part[dearer]) <= max(cost(full[dearer]), 20)
            for other in full:
                if cost(full[dearer]) > cost(full[other]):
                    assert cost(part[dearer]) >= cost(part[other]), (scale, dearer, other)


def test_a_share_of_the_budget_is_near_what_was_asked_for() -> None:
    for name, spec in names("menet-usvt").items():
        part = names("menet-usvt", scale=0.25)[name]
        assert cost(part) == pytest.approx(cost(spec) / 4, rel=0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offering(zoo.Noisy):  # type: ignore[misc]
    """A defense with a backward pass of its own."""

    backward_passes: ClassVar[tuple[str, ...]] = ("mask-aware",)


def test_a_recipe_asks_for_a_backward_pass_that_not_every_defense_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        {"name": "own pass", "why": "w", "attack": "transfer(bpda(steps=20,backward=mask-aware))"},
        {"name": "another", "why": "w", "attack": "bpda(steps=20,backward=straight)"},
        {"name": "plain", "why": "w", "attack": "bpda(steps=20)"},
        {"name": "exact", "why": "w", "attack": "pgd(steps=20,backward=exact)"},
    ]
    monkeypatch.setattr(suites, "_table", lambda suite: {"attacks": rows})

    def found(defense: Defense) -> tuple[list[str], list[str]]:
        entries = suites.expand("adaptive", defense, BALL)
        return [e.name for e in entries], suites.left_out("adaptive", defense, BALL)

    assert found(Offering()) == (
        ["own pass", "plain", "exact"],
        ["another is left out: the defense offers no backward pass 'straight'"],
    )
    kept, notes = found(zoo.Noisy())
    assert kept == ["plain", "exact"] and len(notes) == 2 and "'mask-aware'" in notes[0]


def test_nothing_of_the_shipped_suites_is_left_out_silently() -> None:
    for suite in ("adaptive", "battery"):
        for defense in ("menet-usvt", "vanilla", "tvm"):
            made = defenses.get(defense)()
            missing = suites.left_out(suite, made, BALL)
            rows = suites._applying(suite, made, BALL)
            assert len(suites.expand(suite, made, BALL)) + len(missing) == len(rows)
