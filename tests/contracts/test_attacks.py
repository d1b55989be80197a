"""Every registered attack keeps the same promises, against a deterministic and a randomised victim."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.defended import Defended
from harness.evaluate import OUTSIDE_BALL, check_images
from harness.random import Draws, Role
from harness.registry import attacks
from harness.spec import build, fields, parse
from harness.types import Attack, Batch, Defense, Perturbed, ThreatModel
from harness.views import View

QUICK = {
    "steps": 3,
    "samples": 8,
    "queries": 12,
    "max_iterations": 3,
    "eot": 2,
    "iterations": 3,
    "binary_search_steps": 2,
    "max_queries": 60,
}
"""Settings that make one attack of any kind a matter of a second."""

INNER = {"transfer": "transfer(pgd)"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Defense):
    def transform(self, images: Tensor, draws: Draws, auxiliary: Any = None) -> Tensor:
        return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(Defense):
    randomised: ClassVar[bool] = True

    def transform(self, images: Tensor, draws: Draws, auxiliary: Any = None) -> Tensor:
        return images * draws.bernoulli(0.8, *images.shape[1:])


def victim(defense: Defense) -> Defended:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(4),
    )
    model(torch.rand(64, 1, 12, 12))  # gives the normalisation its statistics
    return Defended(model, defense, 4).frozen()


def some_images(defended: Defended, count: int = 6) -> Batch:
    """Images with the labels that the undefended model gives them."""
    images = torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(5))
    labels = defended.model(images).argmax(dim=1)
    return Batch(images, labels, torch.arange(count) + 40)


def quick(name: str) -> Attack:
    spec = parse(INNER.get(name, name))
    known = fields(attacks.get(name))
    parameters = {key: value for key, value in QUICK.items() if key in known}
    attack: Attack = build(dataclasses.replace(spec, parameters=parameters), attacks)
    return attack


def perturb(attack: Attack, defended: Defended, batch: Batch, norm: Any) -> Perturbed:
    threat = ThreatModel(epsilon=0.1 if norm == "linf" else 1.0, norm=norm)
    view = View(defended, batch, threat, attack.access)
    attack.check(view, threat)
    return attack.perturb(view, batch, threat, Draws(0, batch.ids, Role.ATTACK))


def state(defended: Defended) -> list[Any]:
    model = defended.model
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
    ]


NAMES = attacks.names()
DEFENSES = [Plain(), Masked()]


@pytest.fixture(params=DEFENSES, ids=["deterministic", "randomised"])
def defended(request: Any) -> Defended:
    return victim(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_stays_in_ball_and_box_and_leaves_the_model_alone(name: str, defended: Defended) -> None:
    attack, batch = quick(name), some_images(defended)
    for norm in attack.norms:
        before = state(defended)
        with torch.random.fork_rng():
            torch.manual_seed(11)
            random_before = torch.random.get_rng_state()
            found = perturb(attack, defended, batch, norm)
            assert torch.equal(torch.random.get_rng_state(), random_before), "global random state"
        after = state(defended)
        for tensor, same in zip(before[0].values(), after[0].values(), strict=True):
            assert torch.equal(tensor, same)
        assert before[1:] == after[1:]
        assert found.images.shape == batch.images.shape
        assert not found.images.requires_grad
        threat = ThreatModel(epsilon=0.1 if norm == "linf" else 1.0, norm=norm)
        everything = [found.images, *found.snapshots.values()]
        for images in everything:
            codes = check_images(images.float(), batch.images, threat)
            if not attack.bounded:
                codes = codes & ~OUTSIDE_BALL
            assert codes.tolist() == [0] * len(batch)


@pytest.mark.parametrize("name", NAMES)
def test_is_deterministic_for_a_seed(name: str, defended: Defended) -> None:
    attack, batch = quick(name), some_images(defended)
    norm = attack.norms[0]
    one = perturb(attack, defended, batch, norm).images
    torch.manual_seed(999)  # nothing may depend on the global state
    two = perturb(attack, defended, batch, norm).images
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1])
def test_serves_one_image_and_none(name: str, count: int, defended: Defended) -> None:
    attack = quick(name)
    batch = some_images(defended)[slice(0, count)]
    found = perturb(attack, defended, batch, attack.norms[0])
    assert found.images.shape == batch.images.shape


@pytest.mark.parametrize("name", NAMES)
def test_has_a_summary_and_frozen_parameters(name: str) -> None:
    entry = next(entry for entry in attacks if entry.name == name)
    assert 10 < len(entry.summary) < 110 and entry.summary.endswith(".")
    attack = quick(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.steps = 1  # type: ignore[attr-defined]
