"""Test whether an attack finds adversarial examples that are known to exist: the binarisation test
(Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations").

For each image, the classifier's last layer is replaced by a linear readout with two classes. Class 0 holds
the image and random points of its ball; class 1 holds one point on the ball's surface, which is an
adversarial example by construction. An attack that is sound on this model finds some point of class 1.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.evaluation.judge import check_images, predictions
from harness.geometry import project, step
from harness.random import Draws, Role
from harness.results.statistics import wilson
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Attack, Backward, Batch, HarnessError, ThreatModel

INNER = 63
"""The number of random points of class 0 for each image, besides the image."""
LOOKS = 12
"""The number of draws of a randomised defense on which an image and its known example are scored."""
SOUND = 0.95
"""The share of the known examples that a sound attack finds (Zimmermann et al., section 5)."""
FEWEST = 8
"""The number of images below which the test says nothing."""
_COARSE = 7
"""The blocks along each side in which half of the points are constant, to pass a smoothing defense."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readout:
    """The result of the test for one attack."""

    attack: str
    usable: int
    """The number of images for which a readout with a known adversarial example could be made."""
    found: int
    """The number of these for which the attack returned a valid point of class 1."""
    random: int
    """The number of these for which one of `INNER` new random points is of class 1, under one draw."""
    refused: str = ""
    """The reason why the test could not be made; empty where it was."""

    @property
    def flag(self) -> str:
        """The reason for the flag `unsound-readout`; empty for none."""
        if self.refused or self.usable < FEWEST:
            return ""
        if wilson(self.found, self.usable)[1] >= SOUND:
            return ""
        return (
            f"it finds {self.found} of {self.usable} adversarial examples that are known to exist"
        )

    @property
    def vacuous(self) -> str:
        """The reason why a pass says nothing about the attack: random points pass by the same rule, too."""
        if self.refused or self.usable < FEWEST or self.flag:
            return ""
        if wilson(self.random, self.usable)[1] < SOUND:
            return ""
        return f"random points find {self.random} of {self.usable} too, so that the pass is vacuous"

    @property
    def outcome(self) -> str:
        """The result of the test in one sentence."""
        if self.refused:
            return self.refused
        found = (
            f"{self.attack} finds {self.found} of {self.usable} adversarial examples that are known "
            "to exist"
        )
        return f"{found}; {self.vacuous or f'random points find {self.random}'}"


@dataclasses.dataclass(frozen=True)
class Binarised(Defended):
    """A defended model in which each image has a readout of its own, found by the draws' ids."""

    def logits(self, images: Tensor, draws: Draws, *, backward: Backward = "declared") -> Tensor:
        self.model.choose(draws.ids)  # type: ignore[operator]
        return super().logits(images, draws, backward=backward)


class _Readouts(nn.Module):
    """The map from the features of images to (N, 2) logits, linear and different for each image."""

    ids: Tensor
    weight: Tensor
    threshold: Tensor
    rows: Tensor

    def __init__(self, features: _Features, ids: Tensor, weight: Tensor, threshold: Tensor) -> None:
        super().__init__()
        order = ids.argsort()
        self.features = features
        self.register_buffer("ids", ids[order])
        self.register_buffer("weight", weight[order])
        self.register_buffer("threshold", threshold[order])
        self.rows = order

    def choose(self, ids: Tensor) -> None:
        """Choose the readouts of the next images by their ids (N,)."""
        self.rows = torch.searchsorted(self.ids, ids)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.features(images)
        score = (seen * self.weight[self.rows]).sum(dim=1) - self.threshold[self.rows]
        return torch.stack((-score, score), dim=1)


class _Features(nn.Module):
    """The features (N, F): the input of the last layer where that is linear, else the model's output."""

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.model = model
        self._last = self._last_layer(sample)

    def _last_layer(self, sample: Tensor) -> nn.Module | None:
        seen: list[tuple[nn.Module, Any]] = []
        hooks = [
            layer.register_forward_hook(lambda layer, inputs, output: seen.append((layer, output)))
            for layer in self.model.modules()
            if isinstance(layer, nn.Linear)
        ]
        with torch.no_grad():
            out = self.model(sample)
        for hook in hooks:
            hook.remove()
        if seen and seen[-1][1].shape == out.shape and torch.equal(seen[-1][1], out):
            return seen[-1][0]
        return None

    def forward(self, images: Tensor) -> Tensor:
        if self._last is None:
            out: Tensor = self.model(images)
            return out.flatten(1)
        caught: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.model(images)
        finally:
            hook.remove()
        return caught[-1].flatten(1)


def binarisation_test(
    defended: Defended,
    attack: Attack,
    batch: Batch,
    threat: ThreatModel,
    *,
    seed: int,
    name: str,
    on_pass: Callable[[int], None] | None = None,
) -> Readout:
    """Make the readouts, run the attack on them, and return the counts. A few dozen images are enough.

    The test is refused for an attack that cannot run with two classes, or that attacks another model.
    """
    if attack.source is not None or attack.access == "none":
        return _refused(name, "it does not look at the model that it attacks")
    try:
        victim, usable = binarise(defended, batch, threat, seed=seed)
        if len(usable) < FEWEST:
            return _refused(
                name, f"a known example survives the defense's noise on {len(usable)} images alone"
            )
        part = batch[usable]
        two = Batch(part.images, torch.zeros_like(part.labels), part.ids)
        view = View(victim, two, threat, attack.access, on_pass=on_pass)
        attack.check(view, threat)
        place = Draws(seed, two.ids, Role.ATTACK)
        images = attack.perturb(view, two, threat, place).images.detach().float()
    except HarnessError as error:
        return _refused(name, str(error))
    valid = check_images(images, two.images, threat) == 0
    images = torch.where(valid.reshape(-1, 1, 1, 1), images, two.images)
    random = torch.zeros_like(valid)
    for number in range(INNER):
        points = _inside(two, threat, seed, INNER + number)
        random |= _elected(victim, points, two.ids, seed, looks=1)
    return Readout(
        attack=name,
        usable=len(two),
        found=int((valid & _elected(victim, images, two.ids, seed)).sum()),
        random=int(random.sum()),
    )


def _refused(name: str, reason: str) -> Readout:
    return Readout(attack=name, usable=0, found=0, random=0, refused=reason)


def _elected(
    victim: Defended, images: Tensor, ids: Tensor, seed: int, looks: int = LOOKS
) -> Tensor:
    """Return (N,) bool: whether an image is of class 1 under most of some new draws."""
    draws = looks if victim.randomised else 1
    seen = predictions(victim, images, ids, seed=seed, draws=draws, role=Role.AUDIT)
    return 2 * seen.sum(dim=0) > draws


def binarise(
    defended: Defended, batch: Batch, threat: ThreatModel, *, seed: int
) -> tuple[Binarised, Tensor]:
    """Return (the model with a readout for each image, positions of the images whose readout holds).

    A readout holds if, on new draws, its image is of class 0 by vote and the known example of class 1.
    """
    draws = Draws(seed, batch.ids, Role.AUDIT)
    looks = LOOKS if defended.randomised else 1
    with torch.no_grad():
        sample = defended.transform(batch.images, draws)
    # A copy: an attack that edits what it attacks edits this one.
    features = _Features(copy.deepcopy(defended.model), sample)
    known = known_examples(batch, threat, seed)

    def see(images: Tensor, number: int) -> Tensor:
        with torch.no_grad():
            out: Tensor = features(defended.transform(images, draws.at(step=1, draw=number)))
        return out.double()

    inner = [see(_inside(batch, threat, seed, number), looks + number) for number in range(INNER)]
    inner += [see(batch.images, number) for number in range(looks)]
    outer = [see(known, looks + INNER + number) for number in range(looks)]
    weight, threshold, apart = separate(torch.stack(inner, dim=1), torch.stack(outer, dim=1))
    readouts = _Readouts(features, batch.ids, weight.float(), threshold.float())
    victim = Binarised(readouts, defended.defense, 2, defended.auxiliary)
    victim.frozen()
    held = apart & ~_elected(victim, batch.images, batch.ids, seed)
    held &= _elected(victim, known, batch.ids, seed)
    return victim, held.nonzero().squeeze(1)


def separate(inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a linear readout for each image between its inner points (N, M, F) and its outer ones (N, L, F).

    The direction is Fisher's (1936), regularised, in its dual form, which inverts M x M instead of
    F x F. The threshold stands three quarters of the way from the highest inner score to the outer one, so
    that few other points pass; under noise half of the way between a high and a low decile.

    Returns:
        weight (N, F), threshold (N,), and whether the two classes come apart (N,).
    """
    centre = inner.mean(dim=1, keepdim=True)
    points = inner - centre
    towards = (outer.mean(dim=1, keepdim=True) - centre).mT  # (N, F, 1)
    gram = points @ points.mT
    count = gram.shape[1]
    trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    ridge = (0.1 * trace / count).clamp_min(1e-12)[:, None, None]
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    inside = torch.linalg.solve(gram + ridge * eye, points @ towards)
    weight = functional.normalize((towards - points.mT @ inside).squeeze(2), dim=1)
    inner_scores = (inner * weight[:, None]).sum(dim=2)
    outer_scores = (outer * weight[:, None]).sum(dim=2)
    several = outer.shape[1] > 1
    high = inner_scores.quantile(0.9, dim=1) if several else inner_scores.amax(dim=1)
    reached = outer_scores.quantile(0.1, dim=1) if several else outer_scores[:, 0]
    share = 0.5 if several else 0.75
    scale = (reached - high).abs().clamp_min(1e-12)
    # Scores in units of the gap: losses neither vanish nor saturate.
    threshold = (high + share * (reached - high)) / scale
    return weight / scale[:, None], threshold, reached > high


def known_examples(batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
    """Return (N, C, H, W): a point on the surface of each ball, inside the box, of random signs in blocks."""
    signs = _blocks(batch, seed, 0).sign()
    signs = torch.where(signs == 0, 1.0, signs)
    return project(batch.images + step(signs, threat.epsilon, threat), batch.images, threat)


def _inside(batch: Batch, threat: ThreatModel, seed: int, number: int) -> Tensor:
    """Return (N, C, H, W): a random point of each ball; every other number gives one constant in blocks."""
    draws = Draws(seed, batch.ids, Role.AUDIT, step=2, draw=number)
    shape = tuple(batch.images.shape[1:])
    if number % 2:
        noise = _blocks(batch, seed, number + 1)
    else:
        noise = draws.uniform(*shape, lane="point").to(batch.images) * 2 - 1
    if threat.norm == "l2":
        noise = step(noise, 1.0, threat)
        radius = draws.uniform(1, 1, 1, lane="radius").to(noise)
        return project(batch.images + noise * radius * threat.epsilon, batch.images, threat)
    return project(batch.images + noise * threat.epsilon, batch.images, threat)


def _blocks(batch: Batch, seed: int, number: int) -> Tensor:
    """Return (N, C, H, W): uniform in [-1, 1), constant in blocks."""
    channels, height, width = batch.images.shape[1:]
    draws = Draws(seed, batch.ids, Role.AUDIT, step=3, draw=number)
    coarse = draws.uniform(channels, min(height, _COARSE), min(width, _COARSE), lane="blocks")
    wide = functional.interpolate(coarse.to(batch.images), size=(height, width), mode="nearest")
    return wide * 2 - 1
