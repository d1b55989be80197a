"""Build plugins from specs; any error in the code of a guest becomes one line for the user."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from harness import registry
from harness.cells import guard, process
from harness.registry import Registry, attacks, defenses
from harness.spec import accepts_any, build, convert, fields
from harness.types import Attack, Defense, HarnessError, Spec

T = TypeVar("T")
_loading = functools.partial(guard.watched, noted=False, keep=(process.PATH,))
registry.around_file = _loading
"""Changes that a file makes to the process while it is loaded are put back, except for the import path."""


def guarded(what: str, call: Callable[[], T]) -> T:
    """Call a guest's code and return its result.

    Args:
        what: the subject of the error message.

    Raises:
        HarnessError: the code raised anything.
    """
    try:
        return guard.call(call)
    except guard.GuestError as error:
        raise HarnessError(f"{what} fails: {error}") from None


def attack(spec: Spec) -> Attack:
    """Return the attack that a spec names; raise HarnessError where it cannot be made."""
    found = _made(spec, attacks, Attack)
    assert isinstance(found, Attack)
    return found


def defense(spec: Spec) -> Defense:
    """Return the defense that a spec names; raise HarnessError where it cannot be made."""
    found = _made(spec, defenses, Defense)
    assert isinstance(found, Defense)
    return found


def _made(spec: Spec, plugins: Registry, kind: type[Attack] | type[Defense]) -> Any:
    own = any(each.name == spec.name and each.origin.startswith("harness.") for each in plugins)
    with contextlib.nullcontext() if own else _loading():
        found = guarded(f"{plugins.kind} {spec.name}", lambda: build(spec, plugins))
    if not isinstance(found, kind):
        raise HarnessError(
            f"{plugins.kind} {spec.name} is a {type(found).__name__}, not a subclass of "
            f"harness.types.{kind.__name__}"
        )
    return found


def check_parameters(spec: Spec, plugins: Registry) -> None:
    """Check a spec's parameters before anything is built.

    Raises:
        HarnessError: the plugin lacks a parameter, or a value does not fit its type.
    """
    owner = f"{plugins.kind} {spec.name}"
    make = plugins.get(spec.name)
    known = guarded(owner, lambda: fields(make))
    for name, value in spec.parameters.items():
        if name in known:
            convert(name, value, known[name], owner)
        elif not accepts_any(make):
            raise HarnessError(f"{owner} has no parameter {name!r}: it has {', '.join(known)}.")
