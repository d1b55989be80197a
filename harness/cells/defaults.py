"""Look up the defaults of each dataset in `defaults.toml`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import tomllib
import typing
from collections.abc import Mapping
from typing import Any

from harness.cells.cells import TrainingPlan
from harness.spec import convert, parse
from harness.types import HarnessError, Spec, number


@functools.cache
def _table() -> dict[str, Any]:
    text = importlib.resources.files("harness.cells").joinpath("defaults.toml").read_text("utf-8")
    return tomllib.loads(text)


def of(dataset: str) -> dict[str, Any]:
    """Return model, epsilon, step size and training of a dataset; for an unknown one, those of `"*"`."""
    table = _table()
    entry = dict(table.get(dataset.partition(":")[0], table["*"]))
    base = entry.pop("like", None)
    if base is None:
        return entry
    inherited = of(base)
    for name, value in entry.items():
        both = isinstance(value, dict) and isinstance(inherited.get(name), dict)
        inherited[name] = {**inherited[name], **value} if both else value
    return inherited


def epsilon(dataset: str) -> float:
    """Return the radius of the L-infinity ball, in pixel values of [0, 1]."""
    return number(str(of(dataset)["epsilon"]))


def step_size(dataset: str, *, epsilon: float, steps: int) -> float | None:
    """Return the step size of a dataset's attacks, or None where it is to follow from the ball.

    It follows from the ball for an unknown dataset, and where `steps` steps could not cross the ball.
    """
    if dataset.partition(":")[0] not in _table():
        return None
    size = number(str(of(dataset)["step_size"]))
    return size if steps * size >= epsilon else None


PUBLISHED_BATCH = 256
"""The batch size of every published schedule."""


def updates(dataset: str, plan: TrainingPlan) -> int | None:
    """Return the number of weight updates of a training; None where the dataset's size is not known."""
    images = int(of(dataset)["train_images"])
    if not images:
        return None
    return plan.epochs * -(-min(images, plan.limit or images) // plan.batch_size)


def published_updates(dataset: str, plan: TrainingPlan, versions: int = 1) -> int | None:
    """Return the number of weight updates in the published schedule; None where there is no such schedule.

    Args:
        versions: the number of training versions of each image that one published epoch sees: ten for
            the masks of pure ME-Net (released code), one where each use draws afresh.
    """
    images = int(of(dataset)["train_images"])
    if not images or not plan.paper_epochs:
        return None
    return plan.paper_epochs * -(-images * versions // PUBLISHED_BATCH)


def plan(dataset: str, kind: str, overrides: Mapping[str, Any]) -> TrainingPlan:
    """Return the training plan of a dataset, with the fields in `overrides` replaced.

    Setting `epochs` compresses the schedule, since milestones are shares of it.

    Raises:
        HarnessError: an override is no field of TrainingPlan, or does not fit its type.
    """
    entry = of(dataset)
    chosen = {**entry[kind], "kind": kind, "paper_epochs": entry.get("paper_epochs") or None}
    if kind == "adversarial":
        chosen.setdefault("epsilon", epsilon(dataset))
    chosen |= {name: value for name, value in overrides.items() if value is not None}
    hints = typing.get_type_hints(TrainingPlan)
    known = {field.name for field in dataclasses.fields(TrainingPlan)}
    for name in list(chosen):
        if name not in known:
            allowed = ", ".join(sorted(known - {"kind", "paper_epochs"}))
            raise HarnessError(f"training has no parameter {name!r}: it has {allowed}")
        if name == "inner":
            chosen[name] = chosen[name] if isinstance(chosen[name], Spec) else parse(chosen[name])
        else:
            chosen[name] = convert(name, chosen[name], hints[name], "training")
    return TrainingPlan(**chosen)
