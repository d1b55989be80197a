"""The rule by which a measured number agrees with a claim, differs from it, or is at other settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.cells import defaults
from harness.cells.cells import Cell, TrainingPlan
from harness.paper import claims, expansion, protocol, tables
from harness.paper.claims import Claim
from harness.paper.comparison import compare, differences, keep_probabilities
from harness.paper.expansion import Place
from harness.paper.measured import Results, verdict
from harness.results import flags
from harness.results.tables import counted, summary
from harness.spec import parse
from harness.storage.store import Store
from harness.types import ThreatModel
from tests.helpers.fabricated import COUNT, record

PAPER = protocol.profile("paper")


def place_of(name: str, row: int, column: int = 0) -> Place:
    """Return a place of a table at the paper's own scale."""
    found = expansion.expand(protocol.load(name), PAPER)
    return next(place for place in found if (place.row, place.column) == (row, column))


def claimed() -> tuple[Claim, Cell]:
    """Return Table 4's claim about ME-Net on ResNet-18, and its cell at the paper's scale."""
    place = place_of("table4", 1)
    assert place.claim is not None
    return place.claim, place.cells[0]


def trained(cell: Cell, **changes: object) -> Cell:
    """Return the cell with another training plan."""
    plan = dataclasses.replace(cell.target.training, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(cell, target=dataclasses.replace(cell.target, training=plan))


def defended(cell: Cell, text: str) -> Cell:
    """Return the cell with another defense."""
    return dataclasses.replace(cell, target=dataclasses.replace(cell.target, defense=parse(text)))


@pytest.mark.parametrize(
    ("interval", "state", "side"),
    [
        ((0.5, 0.6), "agrees", "within"),
        ((0.528, 0.6), "agrees", "within"),
        ((0.4, 0.52), "differs", "below"),
        ((0.53, 0.6), "differs", "above"),
    ],
)
def test_the_interval_decides_at_the_same_settings(
    interval: tuple[float, float], state: str, side: str
) -> None:
    found = compare(0.528, interval, ())
    assert (found.state, found.side, str(found)) == (state, side, state)


@pytest.mark.parametrize("interval", [(0.0, 0.1), (0.5, 0.6), (0.9, 1.0)])
def test_nothing_is_decided_where_one_setting_differs(interval: tuple[float, float]) -> None:
    found = compare(0.528, interval, ("p from 0.2 to 0.4, not 0.4 to 0.6",))
    assert found.state == "other settings"
    assert str(found) == "other settings: p from 0.2 to 0.4, not 0.4 to 0.6"


def test_the_cell_of_the_claim_itself_has_no_other_settings() -> None:
    claim, cell = claimed()
    assert differences(claim, cell, cell) == ()


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        ("menet-usvt(p_low=0.4,p_high=0.6)", "estimator menet-usvt, not menet-nuc"),
        ("menet-nuc(p_low=0.2,p_high=0.4)", "p from 0.2 to 0.4, not 0.4 to 0.6"),
        ("menet-nuc(p_low=0.4,p_high=0.60)", ""),
        ("menet-nuc", "the keep probabilities are not said"),
        ("menet-nuc(p_low=0.4,p_high=0.6,gap=1e-2)", "gap 1e-2, not as by default"),
        ("tvm", "estimator tvm, not menet-nuc"),
    ],
)
def test_estimator_and_keep_probabilities(defense: str, says: str) -> None:
    claim, cell = claimed()
    found = differences(claim, defended(cell, defense), cell)
    assert (says in "; ".join(found)) if says else found == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 30}, "5,880 of 39,200 updates"),
        ({"limit": 10_000}, "10,000 training images"),
        ({"learning_rate": 0.05}, "learning rate 0.05, not 0.1"),
        ({"inner": parse("pgd(steps=2)")}, "inner attack pgd(steps=2), not pgd("),
        ({"warmup": 0.5}, "warmup 0.5, not 0"),
        ({"inner_transform": "inference"}, "transformation of inference, not training"),
        ({"kind": "pure"}, "training pure, not adversarial"),
    ],
)
def test_training(changes: dict[str, object], says: str) -> None:
    claim, cell = claimed()
    assert any(says in each for each in differences(claim, trained(cell, **changes), cell))


def test_what_the_inner_attack_meets_is_one_thing_where_nothing_is_masked() -> None:
    place = place_of("table4", 0)
    assert place.claim is not None and place.claim.defense == "madry"
    cell = place.cells[0]
    assert differences(place.claim, trained(cell, inner_transform="inference"), cell) == ()


def test_attack_ball_data_and_network() -> None:
    claim, cell = claimed()
    fewer = dataclasses.replace(
        cell, attack=parse(f"bpda(keep=last,step_size={2 / 255!r},steps=40)")
    )
    assert differences(claim, fewer, cell) == ("40 of 1,000 attack steps",)
    other = dataclasses.replace(cell, attack=parse("pgd(steps=1000)"))
    assert "attack pgd(steps=1000), not bpda(" in differences(claim, other, cell)[0]
    wide = dataclasses.replace(cell, threat=ThreatModel(epsilon=0.1))
    assert differences(claim, wide, cell) == ("linf epsilon 0.1, not linf 0.03137",)
    target = dataclasses.replace(cell.target, dataset="cifar10-jpeg", model=parse("small-cnn"))
    found = differences(claim, dataclasses.replace(cell, target=target), cell)
    assert found == ("data set cifar10-jpeg, not cifar10", "network small-cnn, not resnet18")


def test_number_of_test_images_and_seed_are_left_to_the_interval() -> None:
    claim, cell = claimed()
    few = dataclasses.replace(cell, limit=200, target=dataclasses.replace(cell.target, seed=3))
    assert differences(claim, few, cell) == ()


def test_what_a_claim_does_not_say_is_no_agreement() -> None:
    tiny = place_of("figure6", 13)
    assert tiny.claim is not None and tiny.claim.dataset == "tiny-imagenet"
    assert tiny.differences == ("the claim's keep probabilities are not known",)
    appendix = place_of("outside", 0)
    assert appendix.claim is not None and appendix.claim.value == 96.8
    assert appendix.differences == ("the claim does not name its estimator",)
    assert place_of("outside", 1).differences == ()


def test_every_place_at_the_papers_scale_states_its_keep_probabilities() -> None:
    for name in protocol.names():
        for place in expansion.expand(protocol.load(name), PAPER):
            for cell in place.cells:
                if claims.is_menet(cell.target.defense.name):
                    assert keep_probabilities(cell.target.defense), (name, place.row)


def test_mnist_and_svhn_have_their_own_keep_probabilities() -> None:
    table = protocol.load("figure6")
    for place in expansion.expand(table, PAPER):
        claim, (cell,) = place.claim, place.cells
        if claim is None or not claims.is_menet(claim.defense):
            continue
        stated = "0.4 to 0.6" in table.rows[place.row].labels[1]
        wanted = (
            (0.4, 0.6) if stated or cell.target.dataset not in ("mnist", "svhn") else (0.2, 0.4)
        )
        assert keep_probabilities(cell.target.defense) == wanted
        assert bool(place.differences) is (stated or claim.p is None)


def found_in(folder: Path, place: Place, robust: float) -> Results:
    """Return a results folder with a record of the place's cell."""
    store = Store(folder)
    store.prepare()
    made = record(place.cells[0], robust=robust)
    store.write_json("records", made.key, made)
    return Results(store)


@pytest.mark.parametrize(
    ("robust", "state", "becomes"), [(0.85, "agrees", "holds"), (0.2, "differs", "fell")]
)
def test_a_record_at_the_claims_settings(
    tmp_path: Path, robust: float, state: str, becomes: str
) -> None:
    place = place_of("outside", 1, 3)
    assert place.claim is not None and place.claim.value == 87.85
    number = found_in(tmp_path, place, robust).number(place)
    assert number.compared is not None and number.compared.state == state
    judged = verdict(number)
    assert judged is not None and judged.state == becomes
    assert tables.measured(number, {}).endswith(f": {state}")
    assert tables.claimed(number) == "87.85; 86.5 figure6, menet-nuc"


@pytest.mark.parametrize("robust", [0.0, 0.83, 1.0])
def test_a_record_at_other_keep_probabilities_is_no_verdict(tmp_path: Path, robust: float) -> None:
    place = place_of("figure6", 3)
    number = found_in(tmp_path, place, robust).number(place)
    assert number.compared is not None and number.compared.state == "other settings"
    judged = verdict(number)
    assert judged is not None and judged.state == "untested"
    assert "p from 0.4 to 0.6, not 0.2 to 0.4" in judged.says


def test_a_lower_number_of_another_metric_refutes_no_accuracy() -> None:
    claim = place_of("table6", 2, 2).claim
    assert claim is not None and claim.defense == "menet-usvt"
    found = claims.refutations(claim)
    assert {each.value for each in found} == {49.7, 26.0}
    assert {each.metric for each in found} == {"accuracy"}


def test_images_outside_the_ball_are_scored_as_returned(tmp_path: Path) -> None:
    """The clean accuracy of images that count as not attacked is never printed as the attack's result."""
    place = place_of("table5", 0)
    store = Store(tmp_path)
    store.prepare()
    made = record(place.cells[0], robust=0.9)
    left = dataclasses.replace(
        made,
        bounded=False,
        adaptive=True,
        returned=dataclasses.replace(made.returned, mean=0.05),
        distances={"median_linf": 0.4, "largest_linf": 0.6},
    )
    store.write_json("records", left.key, left)
    number = Results(store).number(place)
    assert number.outside and number.measured is not None and number.measured.mean == 0.05
    assert number.measured.count == COUNT
    assert "5.0" in tables.shown(number) and "as returned, outside the ball" in tables.shown(number)
    assert "90" not in tables.shown(number)
    flagged = number.records[0]
    assert counted(flagged).mean == 0.05 and counted(made) == made.robust
    assert "| 5.0 " in summary([flagged], {})


@pytest.mark.parametrize(
    ("changes", "flagged"),
    [
        ({}, True),
        ({"bounded": True}, False),
        (
            {"adaptive": False},
            False,
        ),  # a minimum-norm attack: its accuracy at epsilon means what it says
        ({"distances": {"median_linf": 8 / 255}}, False),
    ],
)
def test_the_flag_of_images_outside_the_ball(changes: dict[str, object], flagged: bool) -> None:
    made = record(place_of("table5", 0).cells[0])
    unbounded = dataclasses.replace(
        made, bounded=False, adaptive=True, distances={"median_linf": 0.4}
    )
    found = flags.flags(dataclasses.replace(unbounded, **changes))  # type: ignore[arg-type]
    assert ("mostly-outside" in found) is flagged


# --- updates ----------------------------------------------------------------------------------------


def test_updates_are_counted_by_hand() -> None:
    plan = TrainingPlan(epochs=8, batch_size=64, limit=10_000, paper_epochs=200)
    assert defaults.updates("cifar10", plan) == 8 * 157
    assert defaults.published_updates("cifar10", plan) == 200 * 196
    assert defaults.published_updates("cifar10", plan, versions=10) == 200 * 1954
    assert defaults.updates("of-ones-own", plan) is None
    assert defaults.published_updates("digits", TrainingPlan(epochs=30)) is None


def test_pure_menet_trains_as_many_updates_as_the_released_code() -> None:
    """Its epoch sees all ten masks of each image."""
    for name, row, versions in (("table3", 3, 10), ("table4", 1, 1), ("figure6", 1, 10)):
        cell = place_of(name, row).cells[0]
        plan, dataset = cell.target.training, cell.target.dataset
        done = defaults.updates(dataset, plan)
        published = defaults.published_updates(dataset, plan, versions)
        assert done is not None and published is not None
        assert published <= done < 1.01 * published
