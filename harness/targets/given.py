"""Serve a model that was passed in memory with its images: nothing is trained, and it is hashed once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.cells.cells import Target
from harness.datasets.data import Split
from harness.results.resolved import DatasetVersion, Plugin, ResolvedTarget
from harness.storage import keys
from harness.targets import objects
from harness.targets.defended import Defended
from harness.targets.source import TargetSource
from harness.types import Dataset, Defense, HarnessError


@dataclasses.dataclass(kw_only=True)
class GivenModel(TargetSource):
    """A source of one defended model, which it was given."""

    given: Defended
    target: Target
    test: Dataset

    def dataset(self, name: str, split: Split) -> Dataset:
        """Return the images that were given."""
        return self.test

    def defense(self, target: Target) -> Defense:
        """Return the defense in front of the model."""
        return self.given.defense

    def is_trained(self, target: Target) -> bool:
        """Return True: the weights came with the model."""
        return True

    def resolved(self, target: Target) -> ResolvedTarget:
        """Return digests of weights and code; the weights are read only at the first call."""
        return self._resolved

    @functools.cached_property
    def _resolved(self) -> ResolvedTarget:
        modules = [
            [str(module), _digest(module.state_dict()), _source(module)]
            for module in self.given.modules()
        ]
        return ResolvedTarget(
            engine=keys.ENGINE_VERSION,
            dataset=DatasetVersion(name=self.test.name, digest=self.test.digest),
            model=Plugin(name=self.target.model.name, parameters={}, code=keys.key(modules)),
            defense=objects.described(self.given.defense),
            training={"kind": "given"},
            seed=self.target.seed,
            precision=self.target.precision,
        )

    def obtain(self, target: Target, *, wait: bool = True) -> Defended:
        """Return the model.

        Raises:
            HarnessError: another target is asked for.
        """
        if target != self.target:
            raise HarnessError(
                "a transfer attack needs a second model: this one was given, not trained here, so "
                "there is no independent copy. `harness run` trains both"
            )
        return self.given


def _digest(tensors: Mapping[str, Any]) -> str:
    """Return a digest of a state dict's names and values."""
    total = hashlib.sha256()
    for name, value in tensors.items():
        total.update(f"{name}|".encode())
        if isinstance(value, Tensor):
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _source(module: nn.Module) -> str:
    """Return a digest of the code of a model's class, or its name where the code cannot be read."""
    try:
        return hashlib.sha256(inspect.getsource(type(module)).encode()).hexdigest()
    except (OSError, TypeError):
        return type(module).__qualname__
