"""Balls and boxes: pure functions on image tensors (N, C, H, W) with pixel values in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.random import Draws, Role
from harness.types import ThreatModel

TOLERANCE = 2.0**-20
"""Excess over the ball that float32 rounding explains; more is a violation."""


def norms(difference: Tensor, norm: str) -> Tensor:
    """(N,) the L-infinity or L2 norm of each sample."""
    flat = difference.flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def project(perturbed: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """The point of the ball around `images`, cut with the box [0, 1], that is nearest in its norm.

    For L2 the ball comes first and the box second: clipping towards an image inside the box
    never leaves the ball.
    """
    if threat.norm == "linf":
        low, high = images - threat.epsilon, images + threat.epsilon
        return torch.maximum(torch.minimum(perturbed, high), low).clamp_(0.0, 1.0)
    difference = perturbed - images
    length = norms(difference, "l2").clamp_min(1e-12)
    scale = (threat.epsilon / length).clamp_max(1.0)
    return (images + difference * _per_sample(scale)).clamp_(0.0, 1.0)


def step(direction: Tensor, step_size: float, threat: ThreatModel) -> Tensor:
    """The steepest-ascent step of length `step_size` along a gradient: its sign, or its L2 direction."""
    if threat.norm == "linf":
        return direction.sign().mul_(step_size)
    length = norms(direction, "l2").clamp_min(1e-12)
    return direction * _per_sample(step_size / length)


def random_start(images: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    """A uniform draw from the ball, clipped to the box (Madry et al. 2018)."""
    start = draws.at(role=Role.START)
    shape = tuple(images.shape[1:])
    if threat.norm == "linf":
        noise = (start.uniform(*shape).to(images) * 2.0 - 1.0) * threat.epsilon
    else:
        direction = start.normal(*shape).to(images)
        dimension = direction[0].numel()
        radius = start.uniform(lane="radius").to(images) ** (1.0 / dimension) * threat.epsilon
        noise = direction * _per_sample(radius / norms(direction, "l2").clamp_min(1e-12))
    return project(images + noise, images, threat)


def _per_sample(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
