"""Balls and boxes: pure functions on image tensors (N, C, H, W) with pixel values in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.random import Draws, Role
from harness.types import ThreatModel

TOLERANCE = 2.0**-20
"""The excess over the radius that float32 rounding explains; a greater one is a violation."""


def norms(difference: Tensor, norm: str) -> Tensor:
    """Return the (N,) L-infinity (`linf`) or L2 (`l2`) norm of each sample of (N, C, H, W)."""
    flat = difference.flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def project(perturbed: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """Return the points of the balls around `images`, and of the box [0, 1], nearest in the ball's norm.

    For L2, the projection onto the ball comes before that onto the box: clipping to a box that holds the
    ball's centre never leaves the ball.
    """
    if threat.norm == "linf":
        low, high = images - threat.epsilon, images + threat.epsilon
        return torch.maximum(torch.minimum(perturbed, high), low).clamp_(0.0, 1.0)
    difference = perturbed - images
    length = norms(difference, "l2").clamp_min(1e-12)
    scale = (threat.epsilon / length).clamp_max(1.0)
    return (images + difference * _per_sample(scale)).clamp_(0.0, 1.0)


def step(direction: Tensor, step_size: float, threat: ThreatModel) -> Tensor:
    """Return the steepest-ascent step of length `step_size` along a gradient (N, C, H, W).

    It is the sign of the gradient for L-infinity, and its direction for L2.
    """
    if threat.norm == "linf":
        return direction.sign().mul_(step_size)
    length = norms(direction, "l2").clamp_min(1e-12)
    return direction * _per_sample(step_size / length)


def random_start(images: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    """Return uniform draws from the balls around `images`, clipped to the box (Madry et al. 2018)."""
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
