"""Attacks and defenses that come as objects: the spec by which a cell names them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from harness import registry
from harness.evaluation.suites import Entry
from harness.results.resolved import Plugin
from harness.spec import build
from harness.storage import keys
from harness.types import Attack, Defense, HarnessError, Spec

PREFIX = "object"
_objects: dict[str, Attack | Defense] = {}


def specification(plugin: Attack | Defense) -> Spec:
    """The spec that builds an equal plugin; one that no registry knows is kept under `object:Class`."""
    kind = registry.attacks if isinstance(plugin, Attack) else registry.defenses
    changed = _changed(plugin)
    for entry in kind:
        if entry.make is type(plugin):
            spec = Spec(entry.name, changed)
            try:
                if build(spec, kind) == plugin:
                    return spec
            except HarnessError:  # a field that no text can set
                break
    inside = ",".join(f"{name}={value}" for name, value in changed.items())
    label = type(plugin).__name__ + (f"({inside})" if inside else "")
    _objects[label] = plugin
    kind.bridge(PREFIX)(_bridge)
    return Spec(f"{PREFIX}:{label}")


def described(defense: Defense) -> Plugin:
    """Return what of a defense can change a number: class, parameters, code."""
    return Plugin(
        name=type(defense).__qualname__,
        parameters=msgspec.to_builtins(dataclasses.asdict(defense)),
        code=code(type(defense)),
    )


def code(kind: type) -> str:
    """The version of a class's code: of its module, or of its own text where it was typed in."""
    version = keys.code_version(kind)
    if version != "none":
        return version
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        return "none"


def needs_another_model(spec: Spec) -> bool:
    """Whether an attack makes its images on a second, independently trained copy."""
    attack: Attack = build(spec, registry.attacks)
    return attack.source is not None and attack.source.defense is None


def without_copies(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Of a suite, what serves a model that came with its weights, and what was left out and why."""
    served = [entry for entry in entries if not needs_another_model(entry.attack)]
    notes = [
        f"{entry.name}: left out, it needs an independently trained copy of the model"
        for entry in entries
        if entry not in served
    ]
    return served, notes


def refuse_copies(specs: Sequence[Spec]) -> None:
    """Raises HarnessError for an attack that a model with given weights cannot serve."""
    for spec in specs:
        if needs_another_model(spec):
            raise HarnessError(
                f"{spec} needs an independently trained copy of the model; this one came with its weights, "
                "and no independent copy can be made: let `harness run` train both (no --weights), or name "
                "another source (transfer(...,defense=vanilla))",
                page="quickstart",
            )


def _bridge(label: str) -> Callable[..., Any]:
    """Plugins that were handed in as objects."""
    if label not in _objects:
        raise HarnessError(f"no object called {label!r} was handed in, in this process")
    return lambda: _objects[label]


def _changed(plugin: Any) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    found = {}
    for field in dataclasses.fields(plugin):
        value = getattr(plugin, field.name)
        if field.default_factory is not dataclasses.MISSING:
            default: Any = field.default_factory()
        else:
            default = field.default
        if field.init and value != default:
            found[field.name] = value
    return found
