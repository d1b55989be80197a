"""Name attacks and defenses that are passed as objects by a spec, as a cell needs it."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from harness import registry
from harness.results.resolved import Plugin
from harness.spec import build
from harness.storage import keys
from harness.types import Attack, Defense, HarnessError, Spec

PREFIX = "object"
_objects: dict[str, Attack | Defense] = {}


def specification(plugin: Attack | Defense) -> Spec:
    """Return a spec that builds an equal plugin.

    A plugin that no registry can build is remembered in this process as `object:Class`.
    """
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
    """Return the properties of a defense that can change a number: class, parameters, code."""
    return Plugin(
        name=type(defense).__qualname__,
        parameters=msgspec.to_builtins(dataclasses.asdict(defense)),
        code=code(type(defense)),
    )


def code(kind: type) -> str:
    """Return the code version of a class: that of its module or, for a class typed in, of its own text."""
    version = keys.code_version(kind)
    if version != "none":
        return version
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        return "none"


def _bridge(label: str) -> Callable[..., Any]:
    """Return the maker of a plugin that was passed as an object."""
    if label not in _objects:
        raise HarnessError(f"no object called {label!r} was handed in, in this process")
    return lambda: _objects[label]


def _changed(plugin: Any) -> dict[str, Any]:
    """Return the fields of a plugin that differ from their defaults."""
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
