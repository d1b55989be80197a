"""The rules of the flags at their limits: differences beyond doubt are flagged, noise is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from harness.registry import load_file
from harness.results import flags
from harness.results.paired import compare
from harness.results.records import Accuracy, Record, TracePoint, pack
from harness.results.resolved import Plugin
from harness.types import ThreatModel

record = load_file(Path(__file__).parents[1] / "helpers" / "zoo.py").record


def one(right: int, count: int = 200, name: str = "pgd", **changes: object) -> Record:
    """A deterministic record whose first `right` images stand."""
    return record([[place < right for place in range(count)]], name, **changes)


def raised(*records: Record) -> dict[str, Mapping[str, str]]:
    return {str(r.cell.attack): flags.across(records)[r.key] for r in records}


def steps(record: Record, **parameters: object) -> Record:
    return attacked_by(record, record.cell.attack.name, **parameters)


def attacked_by(record: Record, name: str, **parameters: object) -> Record:
    attack = Plugin(name=name, parameters=parameters, code="none")
    resolved = msgspec.structs.replace(record.resolved, attack=attack)
    return dataclasses.replace(record, resolved=resolved)


def test_black_box_beats_white_box() -> None:
    white, square = one(120), one(80, name="square", access="scores")
    assert "square" in raised(white, square)["pgd"]["masked-gradients"]
    assert not raised(white, square)["square"]


def test_a_small_lead_is_noise() -> None:
    """Five of 200 images: McNemar's p is 0.06."""
    assert not raised(one(120), one(115, name="square", access="scores"))["pgd"]


def test_a_short_attack_is_weak_and_not_masked() -> None:
    white = steps(one(120), steps=3)
    assert not raised(white, one(80, name="square", access="scores"))["pgd"]
    assert raised(white, one(80, name="noise", access="none"))["pgd"]


def test_other_images_and_balls_are_not_compared() -> None:
    white = one(120)
    other = one(10, name="square", access="scores")
    assert not raised(white, dataclasses.replace(other, ids="other"))["pgd"]
    wider = one(10, name="square", access="scores", threat=ThreatModel(epsilon=0.2))
    assert not raised(white, wider)["pgd"]


def test_transfer_beats_white_box() -> None:
    assert "another model" in str(raised(one(120), one(60, name="transfer", transferred=True)))


def test_many_comparisons_ask_for_more(tmp_path: Path) -> None:
    """A lead of 8 images (p = 0.008) is beyond doubt alone, and not among many."""
    white = one(120)
    lead = one(112, name="square", access="scores")
    assert raised(white, lead)["pgd"]
    others = [one(119, name=f"score-{k}", access="scores") for k in range(9)]
    assert not raised(white, lead, *others)["pgd"]


def test_doubled_budget_does_better() -> None:
    less, more = steps(one(120, name="a"), steps=20), steps(one(90, name="a2"), steps=40)
    more = attacked_by(more, "a", steps=40)
    assert "steps=40" in raised(less, more)["a"]["not-converged"]
    assert not raised(less, more)["a2"]
    weaker = attacked_by(one(90, name="a2"), "a", steps=30)
    assert not raised(less, weaker)["a"]  # not doubled


def test_adaptive_is_measured_by_a_plain_attack_of_no_more_passes() -> None:
    adaptive = steps(one(120, name="clever", adaptive=True), steps=40)
    assert raised(adaptive, steps(one(80), steps=40))["clever"]["weak-adaptive"]
    assert not raised(adaptive, steps(one(80), steps=4000))["clever"]


def test_one_step_may_overshoot() -> None:
    """A single step that is worse in the larger ball is no sign of masking."""
    near = steps(one(100, threat=ThreatModel(epsilon=0.1), name="fgsm"), steps=1)
    far = steps(one(150, threat=ThreatModel(epsilon=0.3), name="fgsm"), steps=1)
    assert not flags.across([near, far])[far.key]
    near, far = steps(near, steps=20), steps(far, steps=20)
    assert "smaller ball" in flags.across([near, far])[far.key]["masked-gradients"]


def test_no_bound_must_reach_chance() -> None:
    everything = ThreatModel(epsilon=1.0)
    assert "masked-gradients" in flags.flags(one(60, threat=everything))
    assert not flags.flags(one(20, threat=everything))
    short = steps(one(60, threat=everything), steps=40, step_size=0.001)
    assert not flags.flags(short)  # it could not get there


def test_dead_gradients_beyond_what_any_model_has() -> None:
    passes = {"backwards": 40.0, "dead_gradients": 0.04}
    assert not flags.flags(one(50, passes=passes))
    assert flags.flags(one(50, passes={**passes, "dead_gradients": 0.06}))["masked-gradients"]


def test_silent_success_counts_images() -> None:
    lost = [place in range(90, 110) for place in range(200)]
    silent = one(100, fooled_outcomes=pack(lost))
    assert "10 of 200" in flags.flags(silent)["silent-success"]
    assert not flags.flags(dataclasses.replace(silent, transferred=True))
    few = one(100, fooled_outcomes=pack([place == 99 for place in range(200)]))
    assert not flags.flags(few)
    # On a randomised defense a wrong answer on the way may be luck.
    assert "silent-success" not in flags.flags(dataclasses.replace(silent, randomised=True))


def test_trace_of_a_randomised_defense_shows_what_was_lost() -> None:
    trace = (TracePoint(step=20, accuracy=0.3, fell=0, rose=60), TracePoint(step=40, accuracy=0.6))
    assert "silent-success" in flags.flags(one(120, randomised=True, trace=trace))
    close = (TracePoint(step=20, accuracy=0.59, fell=5, rose=9), TracePoint(step=40, accuracy=0.6))
    assert not set(flags.flags(one(120, randomised=True, trace=close))) & {"silent-success"}


@pytest.mark.parametrize(
    ("half", "last", "moved", "step_size", "flagged"),
    [
        (0.6, 0.4, 40, 0.1, True),
        (0.6, 0.59, 2, 0.1, False),  # no doubt to speak of
        (0.2, 0.0, 40, 0.1, False),  # nothing is left to lose
        (0.6, 0.4, 40, 0.001, False),  # the half could not cross the ball
        (0.6, 0.4, 40, None, False),  # nor could it here
    ],
)
def test_trace_says_not_converged(
    half: float, last: float, moved: int, step_size: float | None, flagged: bool
) -> None:
    trace = (
        TracePoint(step=20, accuracy=half, fell=moved, rose=0),
        TracePoint(step=40, accuracy=last),
    )
    found = steps(one(round(200 * last), trace=trace), steps=40, step_size=step_size)
    assert ("not-converged" in flags.flags(found)) is flagged


def noisy(vote: float, mean: float, robust: float) -> Record:
    """A randomised record, by its accuracies alone."""
    made = record([[place < robust * 200 for place in range(200)]] * 2)
    clean = Accuracy(one_draw=mean, mean=mean, vote=vote, all_draws=0.1, count=200)
    return dataclasses.replace(made, clean=clean, distances={"largest_linf": 0.1})


def test_noise_explains_at_least_half_of_the_drop() -> None:
    assert "52.0%" in flags.flags(noisy(0.96, 0.52, 0.52))["noise-success"]
    assert flags.flags(noisy(0.96, 0.52, 0.4))["noise-success"]
    assert not flags.flags(noisy(0.90, 0.88, 0.3))  # the attack's own success
    assert not flags.flags(noisy(0.90, 0.88, 0.88))  # noise within the interval
    control = dataclasses.replace(noisy(0.96, 0.52, 0.52), distances={"largest_linf": 0.0})
    assert not flags.flags(control)


@pytest.mark.parametrize(
    ("clean", "flagged"), [(0.1, True), (0.13, True), (0.2, False), (0.02, True)]
)
def test_a_model_that_never_learned_is_named(clean: float, flagged: bool) -> None:
    """Ten classes, 200 images: chance is 10 %, 13 % is within its interval."""
    found = flags.flags(noisy(clean, clean, 0.0))
    assert ("at-chance" in found) is flagged
    assert not flagged or "chance is 10.0%" in found["at-chance"]


@pytest.mark.parametrize("kind", ["alone", "later", "gradients", "attack"])
def test_another_answer_to_the_same_question(kind: str) -> None:
    asked = {"asked": 8, "replayed": 8}
    assert not flags.flags(one(50, looks={**asked, kind: 1}))  # a solver's rounding
    assert "2 of 8" in flags.flags(one(50, looks={**asked, kind: 2}))["inconsistent-defense"]
    assert (
        "1 of 4"
        in flags.flags(one(50, looks={"asked": 4, "replayed": 4, kind: 1}))["inconsistent-defense"]
    )


@pytest.mark.parametrize(
    ("end", "randomised", "flagged"),
    [
        (0.25, False, False),
        (0.255, False, False),  # one image: rounding
        (0.30, False, True),
        (0.30, True, False),  # 60 images of 200 and 50 of 200 may be luck
        (0.45, True, True),
    ],
)
def test_the_trace_ends_where_the_score_is(end: float, randomised: bool, flagged: bool) -> None:
    trace = (TracePoint(step=20, accuracy=end), TracePoint(step=40, accuracy=end))
    found = one(50, trace=trace, randomised=randomised)
    assert ("inconsistent-defense" in flags.flags(found)) is flagged
    assert not flags.flags(dataclasses.replace(found, transferred=True)).get("inconsistent-defense")


def test_gradients_beyond_the_access() -> None:
    passes = {"backwards": 8.0, "dead_gradients": 0.0}
    assert "labels" in flags.flags(one(50, access="labels", passes=passes))["access-exceeded"]
    assert not flags.flags(one(50, access="gradients", passes=passes))
    assert not flags.flags(one(50, access="labels"))


def test_fewer_than_published_is_said() -> None:
    cell = one(50).cell
    training = dataclasses.replace(cell.target.training, epochs=5, paper_epochs=200, limit=600)
    target = dataclasses.replace(cell.target, training=training)
    scaled = one(50, cell=dataclasses.replace(cell, target=target, limit=200))
    reason = flags.flags(scaled)["scaled-down"]
    for words in ("15 of 1,200 updates", "600 images", "first 200 test images"):
        assert words in reason
    assert "one scoring draw" in flags.flags(one(50, randomised=True))["scaled-down"]


def test_strict_forgives_what_was_asked_for() -> None:
    assert flags.strict_status([]) == flags.strict_status(["scaled-down"]) == 0
    assert flags.strict_status(["scaled-down", "silent-success"]) == 3


def test_every_flag_is_explained_on_its_page() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "flags.md").read_text("utf-8")
    for flag in flags.EXPLANATIONS:
        assert f"`{flag}`" in page


def test_paired_comparison_counts_images() -> None:
    first = record([[True, True, False, False], [True, False, False, False]])
    second = record([[True, False, True, False], [False, False, True, False]])
    compared = compare(first, second)
    assert (compared.more, compared.fewer) == (2, 1)
    assert compared.difference == 0.0
    with pytest.raises(ValueError, match="different images"):
        compare(first, dataclasses.replace(second, ids="other"))


def test_equal_attacks_are_seldom_flagged() -> None:
    """Of 300 pairs of equally strong noisy attacks at most a hundredth is flagged, or nearly."""
    import random

    generator = random.Random(0)
    alarms = 0
    for _ in range(300):
        rates = [generator.random() for _ in range(100)]
        pair = [
            record([[generator.random() < rate for rate in rates] for _ in range(4)], name)
            for name in ("pgd", "square")
        ]
        alarms += flags.beaten(compare(*pair))
    assert alarms <= 6
