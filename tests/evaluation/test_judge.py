"""The judge and the views, on victims whose truth is known."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.evaluation.judge import NOT_FINITE, OUTSIDE_BALL, OUTSIDE_BOX, check_images, judge
from harness.evaluation.summary import accuracy
from harness.random import Draws, OpaqueDraws, Role
from harness.targets.defended import Defended
from harness.targets.views import QueryBudgetSpent, View
from harness.types import Access, Batch, Defense, HarnessError, ThreatModel


class Brightness(nn.Module):
    """Class 1 where the mean pixel exceeds a half; the pixels' weights differ, and add up to one."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1) @ torch.tensor([0.2, 0.3, 0.2, 0.3])
        return torch.stack((0.5 - mean, mean - 0.5), dim=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Defense):
    def transform(self, images: Tensor, draws: OpaqueDraws, auxiliary: Any = None) -> Tensor:
        return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Defense):
    """Adds a random constant to each image; the classifier sees noise."""

    randomised: ClassVar[bool] = True
    size: float = 1.0

    def transform(self, images: Tensor, draws: OpaqueDraws, auxiliary: Any = None) -> Tensor:
        return images + self.size * (draws.uniform(1, 1, 1) - 0.5)


def batch(values: list[float], labels: list[int]) -> Batch:
    images = torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Batch(images, torch.tensor(labels), torch.arange(len(values)) + 100)


def plain() -> Defended:
    return Defended(Brightness(), Plain(), 2).frozen()


def view(access: Access = "gradients", **options: Any) -> tuple[View, Batch, Draws]:
    images = batch([0.2, 0.4, 0.8], [0, 0, 1])
    seen = View(plain(), images, ThreatModel(epsilon=0.15), access, **options)
    return seen, images, Draws(0, images.ids, Role.ATTACK)


def test_invalid_images_are_named_and_count_as_not_attacked() -> None:
    images = batch([0.4, 0.4, 0.4, 0.4, 0.02], [0, 0, 0, 0, 0])
    perturbed = images.images.clone()
    perturbed[0] += 0.15  # fair and fooled
    perturbed[1] += 0.15 + 1 / 255  # outside the ball
    perturbed[2, 0, 0, 0] = float("nan")
    perturbed[4] -= 0.05  # outside the box
    threat = ThreatModel(epsilon=0.15)
    codes = check_images(perturbed, images.images, threat)
    assert codes.tolist() == [0, OUTSIDE_BALL, NOT_FINITE, 0, OUTSIDE_BOX]
    found = judge(plain(), images, perturbed, threat, seed=0, draws=1)
    assert found.adversarial[0].tolist() == [1, 0, 0, 0, 0]
    assert found.returned[0].tolist() == [1, 1, 0, 0, 0]
    assert found.invalid.tolist() == codes.tolist()


def test_rounding_in_float32_is_no_violation() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 3, 8, 8, generator=generator)
    signs = torch.rand(200, 3, 8, 8, generator=generator).sub(0.5).sign()
    perturbed = (images + 8 / 255 * signs).clamp(0, 1)
    assert check_images(perturbed, images, ThreatModel(epsilon=8 / 255)).sum() == 0
    assert check_images(perturbed, images, ThreatModel(epsilon=7.99 / 255)).sum() > 0


def test_an_unbounded_attack_is_judged_at_epsilon() -> None:
    images = batch([0.4, 0.4], [0, 0])
    perturbed = images.images + torch.tensor([0.15, 0.4]).reshape(-1, 1, 1, 1)
    found = judge(
        plain(), images, perturbed, ThreatModel(epsilon=0.15), seed=0, draws=1, bounded=False
    )
    assert found.adversarial[0].tolist() == [1, 0]
    assert found.invalid.tolist() == [0, 0]


def test_control_and_attack_are_scored_on_the_same_draws() -> None:
    images = batch([0.45, 0.55] * 50, [0, 1] * 50)
    noisy = Defended(Brightness(), Shift(), 2).frozen()
    found = judge(noisy, images, images.images, ThreatModel(epsilon=0.1), seed=3, draws=7)
    assert torch.equal(found.clean, found.adversarial)
    assert 0.4 < float((found.clean == images.labels).float().mean()) < 0.8
    other = judge(noisy, images, images.images, ThreatModel(epsilon=0.1), seed=4, draws=7)
    assert not torch.equal(found.clean, other.clean)


@pytest.mark.parametrize("randomness", ["fixed", "per-input"])
def test_without_fresh_randomness_a_defense_is_deterministic(randomness: Any) -> None:
    images = batch([0.45, 0.55] * 20, [0, 1] * 20)
    steady = Defended(Brightness(), Shift(randomness=randomness), 2).frozen()
    assert not steady.randomised
    place = Draws(0, images.ids, Role.SCORE)
    one = steady.transform(images.images, place)
    two = steady.transform(images.images, place.at(role=Role.ATTACK, step=5, draw=2))
    assert torch.equal(one, two)
    shifts = (one - images.images).flatten(1)[:, 0]
    assert len(shifts.unique()) == (1 if randomness == "fixed" else 2)


def test_the_four_ways_to_count() -> None:
    labels = torch.tensor([0, 1, 2])
    predicted = torch.tensor([[0, 1, 0], [0, 0, 2], [0, 2, 0], [0, 1, 1]])
    found = accuracy(predicted, labels, 3)
    assert found.one_draw == 2 / 3
    assert found.mean == (4 + 2 + 1) / 12
    assert found.vote == 2 / 3  # image 0, and image 1 by 2 of 4 against 1 and 1
    assert found.all_draws == 1 / 3


def test_a_tie_is_no_majority() -> None:
    assert accuracy(torch.tensor([[0], [1]]), torch.tensor([0]), 2).vote == 0


@pytest.mark.parametrize(
    ("granted", "allowed"),
    [("none", 0), ("labels", 1), ("scores", 2), ("gradients", 4)],
)
def test_access_is_no_more_than_granted(granted: Access, allowed: int) -> None:
    seen, images, draws = view(granted)
    calls = [
        lambda: seen.labels(images.images, draws),
        lambda: seen.logits(images.images, draws),
        lambda: seen.gradient(images.images, draws, lambda logits: logits[:, 0]),
        lambda: seen.transform(images.images, draws),
    ]
    worked = 0
    for call in calls:
        try:
            call()
            worked += 1
        except HarnessError:
            pass
    assert worked == allowed


def test_passes_are_counted_by_sample() -> None:
    seen, images, draws = view()
    part = torch.tensor([2, 0])
    seen.logits(images.images, draws)
    seen.gradient(images.images[part], draws[part], lambda logits: logits[:, 0], samples=3)
    assert seen.evidence.forwards.tolist() == [4, 1, 4]
    assert seen.evidence.backwards.tolist() == [3, 0, 3]


def test_the_first_valid_query_that_fools_is_noted() -> None:
    seen, images, draws = view()
    far, near = images.images.clone(), images.images.clone()
    far[0] += 0.5  # fools, but outside the ball
    near[1] += 0.14  # fools inside it
    seen.logits(far, draws)
    seen.logits(near, draws)
    assert seen.evidence.first_fooled.tolist() == [-1, 2, -1]


@pytest.mark.parametrize("slope", [0.0, float("nan"), float("inf")])
def test_dead_gradients_are_counted_and_never_spread(slope: float) -> None:
    seen, images, draws = view()
    weights = torch.tensor([1.0, slope, 1.0])
    found = seen.gradient(images.images, draws, lambda logits: logits[:, 0] * weights)
    assert seen.evidence.dead_gradients.tolist() == [0, 1, 0]
    assert torch.isfinite(found.value).all() and float(found.value[0].abs().sum()) > 0


def test_a_graph_that_is_cut_counts_as_dead() -> None:
    seen, images, draws = view()
    found = seen.gradient(images.images, draws, lambda logits: logits.detach()[:, 0])
    assert seen.evidence.dead_gradients.tolist() == [1, 1, 1]
    assert float(found.value.abs().sum()) == 0


def test_a_query_budget_ends_the_attack_with_the_best_so_far() -> None:
    seen, images, draws = view("scores", max_queries=2)
    fooled = images.images.clone()
    fooled[1] += 0.14
    seen.logits(images.images, draws)
    seen.logits(fooled, draws)
    with pytest.raises(QueryBudgetSpent):
        seen.logits(images.images, draws)
    assert seen.evidence.forwards.tolist() == [2, 2, 2]
    assert seen.candidates is not None and torch.equal(seen.candidates, fooled)


def test_expectation_over_transformation_averages_fresh_draws() -> None:
    images = batch([0.45], [0])
    noisy = Defended(Brightness(), Shift(), 2).frozen()
    seen = View(noisy, images, ThreatModel(epsilon=0.1), "gradients")
    draws = Draws(0, images.ids, Role.ATTACK)
    found = seen.gradient(images.images, draws, lambda logits: logits[:, 1], samples=400)
    assert abs(float(found.correct) - 0.55) < 0.12
    assert abs(float(found.logits[0, 1]) + 0.05) < 0.06
    ones = [
        seen.gradient(images.images, draws.at(draw=k), lambda logits: logits[:, 1]).loss
        for k in range(4)
    ]
    four = seen.gradient(images.images, draws, lambda logits: logits[:, 1], samples=4).loss
    torch.testing.assert_close(torch.stack(ones).mean(0), four)


def test_a_look_is_the_first_draw_of_a_step() -> None:
    """Look once a step (Tramer et al. 2020): of eight draws a step nearly one is wrong on every image."""
    images = batch([0.45] * 200, [0] * 200)
    noisy = Defended(Brightness(), Shift(), 2).frozen()
    seen = View(noisy, images, ThreatModel(epsilon=0.1), "gradients")
    draws = Draws(0, images.ids, Role.ATTACK)
    for step in range(3):
        seen.gradient(images.images, draws.at(step=step), lambda s: s[:, 1], samples=8)
    wrong = sum(
        (noisy.logits(images.images, draws.at(step=step)).argmax(dim=1) == 1).long()
        for step in range(3)
    )
    assert torch.equal(seen.evidence.fooled_looks, torch.as_tensor(wrong))
    looked = (seen.evidence.fooled_looks > 0).double().mean()
    assert 0.8 < looked < 0.99 < (seen.evidence.first_fooled >= 0).double().mean()
    seen.logits(images.images, draws.at(step=9))  # an attack with gradients may look again: no step
    assert torch.equal(seen.evidence.fooled_looks, torch.as_tensor(wrong))


def test_without_gradients_each_query_is_a_look() -> None:
    seen, images, draws = view("labels")
    fooled = images.images.clone()
    fooled[1] += 0.14
    for asked in (images.images, fooled, fooled):
        seen.labels(asked, draws)
    assert seen.evidence.fooled_looks.tolist() == [0, 2, 0]


def test_a_library_gets_a_module_without_the_weights() -> None:
    images = batch([0.2, 0.4, 0.8], [0, 0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    seen = View(Defended(model, Plain(), 2).frozen(), images, ThreatModel(epsilon=0.1), "gradients")
    module = seen.module(images, Draws(0, images.ids, Role.ATTACK))
    weights = {id(parameter) for parameter in model.parameters()}
    assert not weights & {id(parameter) for parameter in module.parameters()}
    module.train()
    assert not model.training
    pixels = images.images[[2, 0]].clone().requires_grad_(True)  # a subset, in another order
    module(pixels).sum().backward()
    assert pixels.grad is not None and seen.evidence.forwards.tolist() == [1, 0, 1]
