"""Detect and undo changes to a defended model, and to the images that it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.targets.defended import Defended
from harness.types import Dataset

_STRUCTURE = {"_parameters", "_buffers", "_modules"}
_NUMBERS = (bool, int, float, str, tuple, type(None))


class ModelState:
    """The state of a defended model: weights, buffers, modes, hooks, methods and submodules."""

    def __init__(self, defended: Defended) -> None:
        self._defended = defended
        self._fields = dict(vars(defended))
        self._defense = dict(vars(defended.defense))
        self._parts = [(each, _Part(each)) for top in defended.modules() for each in top.modules()]

    def restore(self) -> list[str]:
        """Put back what differs; return the names of it."""
        found = []
        for owner, before in (
            (self._defended, self._fields),
            (self._fields["defense"], self._defense),
        ):
            now = vars(owner)
            if any(now.get(name) is not value for name, value in before.items()):
                now.update(before)
                found.append(f"fields of {type(owner).__name__}")
        for module, part in self._parts:
            found += part.restore(module)
        return list(dict.fromkeys(found))


class _Part:
    """The state of one module of a model."""

    def __init__(self, module: nn.Module) -> None:
        self.kind = type(module)
        self.names = dict(vars(module))
        self.registered = {name: dict(self.names[name]) for name in _STRUCTURE}
        self.hooks = {
            name: dict(value)
            for name, value in self.names.items()
            if name not in _STRUCTURE and "_hooks" in name and isinstance(value, dict)
        }
        self.tensors = {
            name: value.detach().clone()
            for kind in ("_parameters", "_buffers")
            for name, value in self.registered[kind].items()
            if value is not None
        }

    def restore(self, module: nn.Module) -> list[str]:
        found = []
        if type(module) is not self.kind:
            object.__setattr__(module, "__class__", self.kind)
            found.append("class")
        found += self._names(vars(module))
        for name, before in (self.registered | self.hooks).items():
            live = vars(module)[name]
            if _ids(live) != _ids(before):
                live.clear()
                live.update(before)
                found.append("hooks" if "hooks" in name else "parameters, buffers or parts")
        found += self._tensors()
        if module.training:
            module.train(False)
            found.append("training mode")
        return found

    def _names(self, live: dict[str, Any]) -> list[str]:
        """Restore attributes that may replace code or be settings; those that a forward keeps may change."""
        found = []
        for name in [*live, *(name for name in self.names if name not in live)]:
            before, now = self.names.get(name), live.get(name)
            watched = callable(now) or callable(before) or isinstance(before, (*_NUMBERS, dict))
            if now is before or name == "training" or not watched:
                continue
            if name not in self.names and not callable(now):
                continue
            if isinstance(before, _NUMBERS) and type(now) is type(before) and now == before:
                continue
            if name in self.names:
                live[name] = before
            else:
                del live[name]
            found.append(f"`{name}`")
        return found

    def _tensors(self) -> list[str]:
        found = []
        live = self.registered["_parameters"] | self.registered["_buffers"]
        for name, before in self.tensors.items():
            now: Tensor = live[name]
            if not _equal(now, before):
                with torch.no_grad():
                    now.data = before.clone()
                found.append("weights or buffers")
            if now.requires_grad or now.grad is not None:
                now.requires_grad_(False)
                now.grad = None
                found.append("gradients")
            if now._backward_hooks:
                now._backward_hooks.clear()
                found.append("hooks")
        return found


class ImageState:
    """The images, labels and ids of a dataset as they were."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._fields = dict(vars(dataset))
        self._tensors = {
            name: value.clone() for name, value in self._fields.items() if isinstance(value, Tensor)
        }

    def restore(self, rows: slice | None = None) -> list[str]:
        """Put back what differs; return the names of it.

        Args:
            rows: the rows to look at; all where None, and where a row is found to differ.
        """
        found = []
        now = vars(self._dataset)
        if any(now[name] is not value for name, value in self._fields.items()):
            now.update(self._fields)
            found.append("fields of the dataset")
        for name, before in self._tensors.items():
            held: Tensor = self._fields[name]
            if held.shape != before.shape or not _equal(
                held if rows is None else held[rows], before if rows is None else before[rows]
            ):
                held.data = before.clone()
                found.append(f"{name} of the dataset")
        return found


def _ids(values: Mapping[str, Any]) -> list[tuple[Any, int]]:
    return [(name, id(value)) for name, value in values.items()]


def _equal(now: Tensor, before: Tensor) -> bool:
    """Return whether two tensors hold the same values, where all NaN count as equal."""
    if now.dtype != before.dtype or now.shape != before.shape or now.device != before.device:
        return False
    if torch.equal(now, before):
        return True
    if not now.is_floating_point():
        return False
    return bool(((now == before) | (now.isnan() & before.isnan())).all())
