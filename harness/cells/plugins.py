"""Plugins at the door: what a guest's code raises, or is not, becomes one line for the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from harness.registry import Registry, attacks, defenses
from harness.spec import accepts_any, build, convert, fields
from harness.types import Attack, Defense, HarnessError, Spec

T = TypeVar("T")


def guarded(what: str, call: Callable[[], T]) -> T:
    """Return what a guest's code returns.

    Raises:
        HarnessError: it raised anything.
    """
    try:
        return call()
    except HarnessError:
        raise
    except Exception as error:
        first = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        raise HarnessError(f"{what} fails: {first}") from error


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


def _made(spec: Spec, registry: Registry, kind: type[Attack] | type[Defense]) -> Any:
    found = guarded(f"{registry.kind} {spec.name}", lambda: build(spec, registry))
    if not isinstance(found, kind):
        raise HarnessError(
            f"{registry.kind} {spec.name} is a {type(found).__name__}, not a subclass of "
            f"harness.types.{kind.__name__}"
        )
    return found


def check_parameters(spec: Spec, registry: Registry) -> None:
    """Refuse a spec's parameters before anything is built.

    Raises:
        HarnessError: one that the plugin does not have, or a value that does not fit.
    """
    owner = f"{registry.kind} {spec.name}"
    make = registry.get(spec.name)
    known = guarded(owner, lambda: fields(make))
    for name, value in spec.parameters.items():
        if name in known:
            convert(name, value, known[name], owner)
        elif not accepts_any(make):
            raise HarnessError(f"{owner} has no parameter {name!r}: it has {', '.join(known)}.")
