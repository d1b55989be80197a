"""Bridges: defenses of the harness in other libraries, and its attacks in a user's own loop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.api.bridges import attacker, to_art, to_foolbox, to_torchattacks
from harness.api.evaluate import load_images
from harness.conformance.attacks import Broken, untouched_random_state
from harness.evaluation.judge import check_images
from harness.registry import defenses, load_file
from harness.results.frames import to_tensorboard
from harness.spec import build, parse
from harness.targets.defended import Defended
from harness.types import HarnessError, ThreatModel

own = load_file(Path(__file__).parents[1] / "helpers" / "own_models.py")
EPSILON = 0.1


@pytest.fixture(scope="module")
def defended() -> Defended:
    return Defended(own.trained(), build(parse("menet-usvt"), defenses), 10).frozen()


@pytest.fixture(scope="module")
def some() -> tuple[Tensor, Tensor]:
    return load_images("digits", "test", 16)


def right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())


def test_a_torchattacks_script_attacks_our_defense(
    defended: Defended, some: tuple[Tensor, Tensor]
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    target = to_torchattacks(defended)
    found = torchattacks.PGD(target, eps=EPSILON, alpha=0.02, steps=6)(*some)
    assert right(target, found, some[1]) < right(target, *some)


def test_a_foolbox_script_attacks_our_defense(
    defended: Defended, some: tuple[Tensor, Tensor]
) -> None:
    foolbox = pytest.importorskip("foolbox")
    model = to_foolbox(defended)
    _, found, fooled = foolbox.attacks.LinfPGD(rel_stepsize=0.3, steps=10)(
        model, *some, epsilons=EPSILON
    )
    assert float(fooled.float().mean()) > 1 - right(to_torchattacks(defended), *some)
    assert not check_images(found, some[0], ThreatModel(epsilon=EPSILON)).any()


def test_a_toolbox_script_attacks_our_defense(
    defended: Defended, some: tuple[Tensor, Tensor]
) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    estimator = to_art(defended, (1, 28, 28))
    attack = evasion.ProjectedGradientDescent(
        estimator, eps=EPSILON, eps_step=0.02, max_iter=6, verbose=False
    )
    found = torch.as_tensor(attack.generate(some[0].numpy(), some[1].numpy()))
    target = to_torchattacks(defended)
    assert right(target, found, some[1]) < right(target, *some)


def test_a_library_that_is_missing_is_named_with_what_brings_it(
    defended: Defended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(HarnessError, match="`pip install foolbox`"):
        to_foolbox(defended)


def test_a_defended_module_draws_anew_and_repeats_itself(
    defended: Defended, some: tuple[Tensor, Tensor]
) -> None:
    module = to_torchattacks(defended)
    one, two = module(some[0]), module(some[0])
    assert not torch.equal(one, two), "fresh masks at every call"
    again = to_torchattacks(defended)
    assert torch.equal(again(some[0]), one) and torch.equal(again(some[0]), two)
    assert not module.train().training, "it stays in evaluation mode"
    with untouched_random_state():
        module(some[0])


def test_our_attacks_serve_models_of_all_kinds(some: tuple[Tensor, Tensor]) -> None:
    model = own.trained()
    images, labels = some
    models = {"module": model}
    foolbox = pytest.importorskip("foolbox")
    models["foolbox"] = foolbox.PyTorchModel(own.trained().eval(), bounds=(0, 1))
    estimators = pytest.importorskip("art.estimators.classification")
    models["toolbox"] = estimators.PyTorchClassifier(
        own.trained(), nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1)
    )
    results = []
    for each in models.values():
        found = attacker(each, "pgd(steps=10)", epsilon=EPSILON)(images, labels)
        assert not check_images(found, images, ThreatModel(epsilon=EPSILON)).any()
        assert right(model, found, labels) < right(model, images, labels) - 0.3
        results.append(found)
    assert torch.allclose(results[0], results[1]) and torch.allclose(results[0], results[2])


def test_our_attacks_in_a_training_loop(some: tuple[Tensor, Tensor]) -> None:
    model = own.trained().train()
    attack = attacker(model, "pgd(steps=3)", epsilon=EPSILON)
    first = attack(*some)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    nn.functional.cross_entropy(model(first), some[1]).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(attack(*some), first), "a new start in every epoch"
    assert len(attack(some[0][:0], some[1][:0])) == 0
    one_hot = nn.functional.one_hot(some[1], 10).numpy()
    assert attack.generate(x=some[0].numpy(), y=one_hot).shape == tuple(some[0].shape)


def test_what_no_bridge_carries() -> None:
    with pytest.raises(HarnessError, match="elsewhere"):
        attacker(own.trained(), "transfer(pgd)")
    with pytest.raises(HarnessError, match="torch module"):
        attacker("a model", "pgd")


def test_a_record_as_tensorboard_events(some: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from harness.api.evaluate import evaluate

    result = evaluate(own.trained(), *some, attack="bpda(steps=8)", epsilon=EPSILON, quiet=True)
    to_tensorboard(result.records, tmp_path)
    assert len(list(tmp_path.rglob("events.out.tfevents*"))) == 1


def test_the_guard_of_the_random_state_bites() -> None:
    with pytest.raises(Broken, match="torch"), untouched_random_state():
        torch.rand(1)
