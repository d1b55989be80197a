"""Read plugins written as text: `pgd(steps=40)`, `transfer(pgd)`. Parsed, never evaluated."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from harness.registry import Registry, nearest
from harness.types import HarnessError, Page, Spec, number

_PAGES: Mapping[str, Page] = {"attack": "attacks", "defense": "defenses"}
"""The page of `docs/` that lists the parameters of a kind of plugin."""


def parse(text: str) -> Spec:
    """Return the plugin that a text names.

    Raises:
        HarnessError: brackets that do not close, or a parameter without a value.
    """
    text = text.strip()
    name, bracket, rest = text.partition("(")
    if not bracket:
        if not name or name.endswith(")"):
            raise HarnessError(f"{text!r} is not a plugin: write name or name(key=value,...)")
        return Spec(name)
    if not name or not rest.endswith(")"):
        raise HarnessError(f"{text!r} does not close its bracket: write name(key=value,...)")
    inner: Spec | None = None
    parameters: dict[str, Any] = {}
    for position, part in enumerate(_split(rest[:-1], text)):
        key, equals, value = part.partition("=")
        if "(" in key or not equals:
            if position or inner is not None:
                raise HarnessError(f"{part!r} in {text!r} has no value: write key=value")
            inner = parse(part)
        else:
            parameters[key.strip().replace("-", "_")] = value.strip()
    return Spec(name.strip(), parameters, inner)


def _split(inside: str, whole: str) -> list[str]:
    """Return the comma-separated parts on the outermost level."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(inside):
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            raise HarnessError(f"{whole!r} closes a bracket that it does not open")
        if character == "," and depth == 0:
            parts.append(inside[start:position])
            start = position + 1
    if depth:
        raise HarnessError(f"{whole!r} does not close its brackets")
    parts.append(inside[start:])
    return [part.strip() for part in parts if part.strip()]


def fields(make: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters that a plugin takes, with their types."""
    target = getattr(make, "make", make)  # a Preset
    if dataclasses.is_dataclass(target):
        hints = typing.get_type_hints(target)
        return {field.name: hints[field.name] for field in dataclasses.fields(target) if field.init}
    options = getattr(make, "parameters", None)
    if isinstance(options, Mapping):  # a bridge's own table
        return dict(options)
    signature = inspect.signature(target)
    hints = typing.get_type_hints(target if inspect.isfunction(target) else target.__init__)
    return {
        name: hints.get(name, str)
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in ("shape", "classes", "self")
    }


def accepts_any(make: Callable[..., Any]) -> bool:
    """Tell whether a plugin takes parameters that it does not name (a bridge to a library)."""
    target = getattr(make, "make", make)
    if dataclasses.is_dataclass(target):
        return False
    return any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(target).parameters.values()
    )


def convert(key: str, value: Any, kind: Any, owner: str) -> Any:
    """Return a parameter's value, converted from text to its type.

    Raises:
        HarnessError: the value does not fit the type.
    """
    allowed = [kind]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        allowed = list(typing.get_args(kind))
    nothing = value is None or (isinstance(value, str) and value.lower() == "none")
    if nothing and (type(None) in allowed or kind is Any):
        return None
    if isinstance(value, str):
        if float in allowed and "/" in value:
            return number(value)
        for option in allowed:
            if typing.get_origin(option) is tuple:
                value = [part for part in value.strip("()[] ").replace(" ", "").split(",") if part]
                kind = option
                break
    if kind is Any:
        return value
    try:
        return msgspec.convert(value, kind, strict=False)
    except (msgspec.ValidationError, TypeError) as error:
        choices = [str(choice) for choice in typing.get_args(kind)]
        literal = typing.get_origin(kind) is typing.Literal
        what = f"one of {', '.join(choices)}" if literal else getattr(kind, "__name__", str(kind))
        raise HarnessError(f"{owner}: {key}={value} does not fit: it must be {what}") from error


def build(spec: Spec, registry: Registry, **context: Any) -> Any:
    """Make the plugin that a spec names, with its parameters converted.

    Args:
        context: further arguments that the maker takes by name (a model's shape and classes).

    Raises:
        HarnessError: unknown plugin, unknown parameter (with the nearest), or a value that does not fit.
    """
    make = registry.get(spec.name)
    known = fields(make)
    parameters = {}
    for key, value in spec.parameters.items():
        if key not in known:
            if accepts_any(make):
                parameters[key] = value
                continue
            raise HarnessError(
                f"{registry.kind} {spec.name} has no parameter {key!r}: {nearest(key, known)}",
                page=_PAGES.get(registry.kind, "plugins"),
            )
        parameters[key] = convert(key, value, known[key], f"{registry.kind} {spec.name}")
    if spec.inner is not None:
        if "inner" not in known:
            raise HarnessError(f"{registry.kind} {spec.name} takes no other {registry.kind} inside")
        parameters["inner"] = build(spec.inner, registry)
    elif "inner" in known and "inner" not in parameters and "inner" in _required(make):
        raise HarnessError(
            f"{registry.kind} {spec.name} needs another inside: {spec.name}({registry.default}), "
            "for example"
        )
    try:
        return make(**context, **parameters)
    except TypeError as error:
        raise HarnessError(f"{registry.kind} {spec.name}: {error}{_made(registry)}") from error


def _made(registry: Registry) -> str:
    """Return a sentence on how the harness calls a model's maker; empty for other kinds."""
    if registry.kind != "model":
        return ""
    return (
        ". A model that is trained here is made by a function (shape, classes); one that comes with its "
        "weights by a function without arguments, and --weights FILE"
    )


def _required(make: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(getattr(make, "make", make)).parameters.values()
    return {parameter.name for parameter in parameters if parameter.default is parameter.empty}
