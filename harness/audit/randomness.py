"""Test whether a random defense treats all draws alike: the engine's, foreign ones, one for all images."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.evaluation.judge import answers
from harness.random import Draws, Role
from harness.results.consistency import LUCK
from harness.results.statistics import fisher
from harness.targets.defended import Defended
from harness.types import Batch

DRAWS = 10
SMALLEST = 0.02
"""The smallest difference of accuracy that is worth a flag."""


def disagreement(defended: Defended, batch: Batch, *, seed: int, draws: int = DRAWS) -> str:
    """Return how accuracy on some images depends on the source of the draws; empty where luck explains it.

    A defense that knows the engine and guesses the seed can recognise the draws of the judge and of an
    attack, but not those of a seed that is made up here. With one draw for all images, the mean over such
    draws is that of fresh ones, except for the luck of few draws.

    Args:
        batch: attacked images with their labels.
        seed: the seed of the runs whose draws are tested.
    """
    unforeseen = [secrets.randbits(62) for _ in range(draws)]
    held = dataclasses.replace(
        defended, defense=dataclasses.replace(defended.defense, randomness="fixed")
    )
    numbers = range(draws)
    new = _right(defended, batch, [Draws(s, batch.ids, Role.SCORE) for s in unforeseen])
    score = _right(defended, batch, [Draws(seed, batch.ids, Role.SCORE, draw=k) for k in numbers])
    attack = _right(defended, batch, [Draws(seed, batch.ids, Role.ATTACK, step=k) for k in numbers])
    fixed = _right(held, batch, [Draws(s, batch.ids, Role.SCORE) for s in unforeseen])
    for name, found in (("the judge's draws", score), ("an attack's draws", attack)):
        if not _same_share(new, found):
            return f"{_percent(found)} right under {name}, {_percent(new)} under draws of no run"
    if not _same_mean(new, fixed):
        return f"{_percent(fixed)} right under one draw for all images, {_percent(new)} under fresh ones"
    return ""


def _right(defended: Defended, batch: Batch, places: Sequence[Draws]) -> Tensor:
    """Return (K, N) bool: whether the label is predicted."""
    logits = answers(defended, ((batch.images, place) for place in places))
    return torch.stack([each.argmax(dim=1) == batch.labels for each in logits])


def _same_share(one: Tensor, other: Tensor) -> bool:
    """Return whether two shares may be equal, by Fisher's test or by the size of their difference."""
    if abs(_mean(one) - _mean(other)) <= SMALLEST:
        return True
    return fisher(int(one.sum()), one.numel(), int(other.sum()), other.numel()) >= LUCK / 2


def _same_mean(one: Tensor, other: Tensor) -> bool:
    """Return whether two means may be equal, by Welch's t-test over draws or by the size of their difference.

    Under one draw for all images, the images are right or wrong together, so the draws are the units. A
    variance is taken to be at least that of independent images.
    """
    from scipy.special import stdtr

    difference = abs(_mean(one) - _mean(other))
    if difference <= SMALLEST:
        return True
    draws, count = one.shape
    share = (_mean(one) + _mean(other)) / 2
    floor = max(share * (1 - share), 1 / count) / count
    error = sum(max(float(each.double().mean(dim=1).var()), floor) / draws for each in (one, other))
    return 2 * float(stdtr(draws - 1, -difference / error**0.5)) >= LUCK


def _mean(right: Tensor) -> float:
    return float(right.double().mean())


def _percent(right: Tensor) -> str:
    return f"{_mean(right):.1%}"
