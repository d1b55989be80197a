"""Every planted pathology raises its flag, and no healthy pair raises any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.audit import binarization
from harness.registry import attacks, load_file
from harness.spec import build, parse
from harness.types import ThreatModel

zoo = load_file(Path(__file__).parents[1] / "helpers" / "zoo.py")
own = zoo.named


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


PATHOLOGIES = {
    # name: (flag, defense, attacks, index of the flagged one, options)
    "zero gradients": ("masked-gradients", own("Rounded"), ["pgd(steps=10)"], 0, {}),
    "quantised input": ("masked-gradients", own("Quantised"), ["pgd(steps=10)"], 0, {}),
    "shattered gradients": (
        "masked-gradients",
        own("Shattered"),
        ["pgd(steps=20)", "square(queries=300)"],
        0,
        {},
    ),
    "no bound and no success": (
        "masked-gradients",
        "vanilla",
        [own("Downhill"), own("Downhill")],
        0,
        {"epsilons": [0.3, 1.0]},
    ),
    "saturated softmax": (
        "masked-gradients",
        "vanilla",
        ["pgd(steps=10)"],
        0,
        {"model": own("Saturated")},
    ),
    "detects the clean image": (
        "masked-gradients",
        own("CleanDetector"),
        ["pgd(steps=10,random_start=false)", "noise"],
        0,
        {},
    ),
    "one step beats many": ("masked-gradients", "vanilla", [own("Downhill"), "fgsm"], 0, {}),
    "the smaller ball does better": (
        "masked-gradients",
        "vanilla",
        [own("LosesItsWay"), own("LosesItsWay")],
        0,
        {"epsilons": [0.3, 0.2]},
    ),
    "random noise": (
        "noise-success",
        own("Noisy") + "(sigma=0.9)",
        ["pgd(steps=5)"],
        0,
        {"epsilon": 0.02},
    ),
    "keeps lucky draws": ("noise-success", own("Flicker"), [own("KeepsLuckyDraws")], 0, {}),
    "undeclared noise": (
        "silent-success",
        "vanilla",
        ["pgd(steps=10,keep=last)"],
        0,
        {"model": own("Undecided"), "epsilon": 0.02},
    ),
    "returns its input": ("silent-success", "vanilla", [own("ReturnsInput")], 0, {}),
    "returns worse than it had": ("silent-success", own("Noisy"), [own("WalksOn")], 0, {}),
    "cheats by 1/255": ("invalid-examples", "vanilla", [own("Overreaches")], 0, {}),
    "not finite": ("invalid-examples", "vanilla", [own("ReturnsNothing")], 0, {}),
    "edits the weights": ("model-changed", "vanilla", [own("EditsWeights")], 0, {}),
    "not in evaluation mode": (
        "model-changed",
        "vanilla",
        ["pgd(steps=2)"],
        0,
        {"model": own("Restless")},
    ),
    "stops early": (
        "not-converged",
        "vanilla",
        ["pgd(steps=2,step_size=0.01)", "pgd(steps=40)"],
        0,
        {},
    ),
    "too few steps by its own trace": (
        "not-converged",
        own("Noisy"),
        [own("Creeps")],
        0,
        {"epsilon": 0.2},
    ),
    "adaptive and weaker": (
        "weak-adaptive",
        "vanilla",
        [own("Misadapted"), "pgd(steps=40)"],
        0,
        {},
    ),
    "fewer images": ("scaled-down", "vanilla", ["fgsm"], 0, {}),
}


@pytest.mark.parametrize("name", PATHOLOGIES)
def test_pathology_raises_its_flag(name: str, tmp_path: Path) -> None:
    flag, defense, names, index, options = PATHOLOGIES[name]
    record = zoo.measured(tmp_path, defense, names, **options)[index]
    assert flag in record.flags, (record.flags, record.robust, record.trace)
    assert len(record.flags[flag]) > 10  # a reason, not a word


HEALTHY = {
    "plain network, every kind of attack": (
        "vanilla",
        ["pgd(steps=40)", "pgd(steps=20)", "fgsm", "square(queries=100)", "noise", "cw(steps=20)"],
        {},
    ),
    "plain network, small ball": (
        "vanilla",
        ["pgd(steps=40,keep=last)", "pgd(steps=80,keep=last)", "fgsm", "square(queries=100)"],
        {"epsilon": 0.06},
    ),
    "growing balls": (
        "vanilla",
        ["pgd(steps=20)"] * 4,
        {"epsilons": [0.03, 0.1, 0.3, 1.0]},
    ),
    "a little noise": (
        own("Noisy"),
        ["pgd(steps=10)", "pgd(steps=10,eot=2)", "fgsm", "noise", "square(queries=60)"],
        {"epsilon": 0.1},
    ),
    "noise held fixed": (
        own("Noisy") + "(randomness=fixed)",
        ["pgd(steps=20)", "noise"],
        {"epsilon": 0.1},
    ),
    "noise by the input": (own("Noisy") + "(randomness=per-input)", ["noise"], {"epsilon": 0.1}),
    "rounding past which BPDA goes": (
        own("Straight"),
        ["bpda(steps=20,keep=best)", "noise", "square(queries=100)"],
        {},
    ),
    "ME-Net": ("menet-usvt", ["bpda(steps=10,keep=best)", "noise"], {"limit": 60, "draws": 5}),
    "no attack": ("vanilla", ["clean"], {}),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_pair_raises_none(name: str, tmp_path: Path) -> None:
    defense, names, options = HEALTHY[name]
    for record in zoo.measured(tmp_path, defense, names, **options):
        assert not zoo.doubts(record), (str(record.cell.attack), record.cell.threat, record.flags)


def test_random_mask_toy_is_explained_by_its_control(tmp_path: Path) -> None:
    """A toy that is wrong on about half of its single draws, and right by the vote of fifty."""
    (record,) = zoo.measured(
        tmp_path, own("Flicker"), [own("KeepsLuckyDraws")], draws=50, limit=300
    )
    assert record.clean.mean == pytest.approx(0.52, abs=0.06)
    assert record.robust.one_draw == pytest.approx(0.52, abs=0.09)
    assert record.clean.vote == pytest.approx(0.96, abs=0.02)
    assert record.robust.vote == pytest.approx(record.clean.vote, abs=0.03)
    assert record.fooled_on_the_way > 0.95  # what the attack itself would report as success
    assert "noise-success" in record.flags
    assert f"{record.clean.vote:.1%}" in record.flags["noise-success"]


@pytest.mark.parametrize(
    ("attack", "sound"),
    [
        ("pgd(steps=40)", True),
        ("bpda(steps=40,keep=last)", True),
        (own("ReturnsInput"), False),
        ("pgd(steps=2,step_size=0.001)", False),
        (own("Downhill"), False),
    ],
)
def test_binarisation_finds_unsound_attacks(attack: str, sound: bool, tmp_path: Path) -> None:
    found = _readout(attack, "vanilla", tmp_path)
    assert found.usable >= 24
    assert found.random <= 0.25 * found.usable  # else the test would be no test
    assert bool(found.flag) is not sound, found


def test_binarisation_sees_through_zero_gradients(tmp_path: Path) -> None:
    assert _readout("pgd(steps=20)", own("Rounded"), tmp_path).flag
    assert not _readout("bpda(steps=20,keep=last)", own("Straight"), tmp_path).flag


def test_binarisation_refuses_what_it_cannot_test(tmp_path: Path) -> None:
    assert _readout("noise", "vanilla", tmp_path).refused
    assert "3 classes" in _readout("pgd(loss=dlr)", "vanilla", tmp_path).refused


def _readout(attack: str, defense: str, folder: Path) -> binarization.Readout:
    model_store = zoo.Ready(
        store=zoo.Store(folder),
        device=torch.device("cpu"),
        reporter=zoo.Silent(),
        stop=zoo.training.Stop(),
    )
    target = zoo.Target(
        dataset="digits",
        model=parse("small-cnn"),
        defense=parse(defense),
        training=zoo.TrainingPlan(epochs=1),
    )
    defended = model_store.obtain(target)
    batch = model_store.dataset("digits", "test").batch(slice(0, 32))
    made = build(parse(attack), attacks)
    threat = ThreatModel(epsilon=0.2)
    before = {name: value.clone() for name, value in defended.model.state_dict().items()}
    found = binarization.binarisation_test(defended, made, batch, threat, seed=0, name=attack)
    for name, value in defended.model.state_dict().items():
        assert torch.equal(value, before[name])
    return found
