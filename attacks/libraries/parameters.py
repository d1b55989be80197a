"""Turn text from the command line into the parameters that the constructors of libraries want."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from harness.registry import nearest
from harness.types import HarnessError


def constructor(make: Callable[..., Any], leave: Sequence[str]) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a constructor, without those in `leave`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(make).parameters.values()
    return {
        parameter.name: parameter
        for parameter in found
        if parameter.kind in kinds and parameter.name not in leave
    }


def convert(
    attack: str,
    given: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    supplied: Mapping[str, str],
) -> dict[str, Any]:
    """Convert parameters (values, or text from `-A key=value`) to the types that the constructor wants.

    Raises:
        HarnessError: an unknown parameter, one that the harness passes, or text of the wrong type.
    """
    open_to_user = [name for name in known if name not in supplied]
    converted = {}
    for name, value in given.items():
        if name in known and name in supplied:
            raise HarnessError(f"{attack}: {name} comes from {supplied[name]}, not from -A {name}=")
        if name not in open_to_user:
            raise HarnessError(f"{attack} has no parameter {name!r}: {nearest(name, open_to_user)}")
        converted[name] = _converted(attack, known[name], value)
    for name, parameter in known.items():
        if name not in converted and name not in supplied and parameter.default is parameter.empty:
            raise HarnessError(f"{attack} needs a value for {name}: -A {name}=VALUE")
    return converted


def _converted(attack: str, parameter: inspect.Parameter, value: Any) -> Any:
    wanted = _wanted(parameter)
    if isinstance(value, str) and wanted is not str:
        value = parse(value)
    if value is None or wanted is None or type(value) is wanted:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and wanted is float:
        return float(value)
    if number and wanted is int:
        if float(value).is_integer():
            return int(value)
        if parameter.annotation is parameter.empty:
            return value  # c=1 and lam=3 are written as integers and mean any number
    if isinstance(value, tuple | list) and wanted in (tuple, list):
        return wanted(value)
    raise HarnessError(
        f"{attack}: {parameter.name} is {value!r}, it must be of type {wanted.__name__}"
        + ("" if parameter.default is parameter.empty else f" (default {parameter.default!r})")
    )


def _wanted(parameter: inspect.Parameter) -> type | None:
    """Return the type that a parameter's annotation names, else its default's; None where any will do."""
    plain: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
    note = parameter.annotation
    written = note if isinstance(note, str) else getattr(note, "__name__", "")
    if written in plain:
        return plain[written]
    named_none = note is not parameter.empty and parameter.default is None
    kinds = (bool, int, float, str, tuple, list)
    return None if named_none or type(parameter.default) not in kinds else type(parameter.default)


def parse(text: str) -> Any:
    """Read a value of the command line: true, none, 3, 0.5, 8/255, (2, 10); other text as it is."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("none", "null"):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        pass
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        return text
