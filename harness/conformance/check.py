"""Run the conformance checks on the plugins in a file, or on a registered plugin."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import registry
from harness.conformance import attacks as kit
from harness.conformance import defenses
from harness.datasets.data import load
from harness.results.audits import Probe
from harness.spec import build, fields, parse
from harness.types import Attack, Defense, HarnessError, Spec

QUICK: dict[type, dict[str, int]] = {
    Attack: {
        "steps": 3,
        "samples": 8,
        "queries": 12,
        "max_iterations": 3,
        "iterations": 3,
        "binary_search_steps": 2,
        "max_queries": 60,
        "eot": 2,
        "restarts": 1,
    },
    Defense: {"filters": 4, "layers": 1, "hidden": 8, "blocks": 1, "levels": 4},
}
"""Parameters with which a plugin of each kind runs in about a second; a plugin takes those that it has."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of one plugin. Calling it raises AssertionError with the reason where it fails."""

    plugin: str
    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()

    def __str__(self) -> str:
        return f"{self.plugin}: {self.name}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a check; `reason` is empty where the promise is kept."""

    check: str
    reason: str = ""


def checks(word: str) -> list[Check]:
    """Return all checks of the plugins that a word names.

    Args:
        word: a file, `file.py:Class`, or a registered name with parameters.

    Raises:
        HarnessError: there is no such file or plugin, or the file has no attacks and defenses.
    """
    found: list[Check] = []
    for name, plugin in _plugins(word):
        if isinstance(plugin, Attack):
            found += _of_attack(name, plugin)
        else:
            found += _of_defense(name, plugin)
    return found


def findings(word: str) -> Iterator[Finding]:
    """Run every check in turn, whatever the earlier ones found, and yield the results."""
    return map(finding, checks(word))


def finding(check: Check) -> Finding:
    """Run one check and return its result."""
    try:
        check()
    except AssertionError as error:
        return Finding(str(check), str(error) or "an assertion failed")
    except Exception as error:  # a guest's failure is one check's failure
        first = str(error).strip().split("\n")[0]
        return Finding(str(check), f"{type(error).__name__}: {first}")
    return Finding(str(check))


def probes(defense: Defense) -> Iterator[Probe]:
    """Check every promise of a defense that an audit depends on, and yield the results."""
    name = type(defense).__name__
    for check in _of_defense(name, defense):
        if check.name not in defenses.DOUBTS:
            continue
        reason = finding(check).reason
        yield Probe(
            name=f"promise: {check.name}",
            outcome=reason or "kept",
            flag=f"{check.name}: {reason}" if reason else "",
            raises=defenses.DOUBTS[check.name],
        )


def _plugins(word: str) -> list[tuple[str, Attack | Defense]]:
    if word.endswith(".py"):
        module = registry.load_file(Path(word))
        own = [
            each
            for each in vars(module).values()
            if inspect.isclass(each)
            and issubclass(each, Attack | Defense)
            and each.__module__ == module.__name__
            and not inspect.isabstract(each)
        ]
        if not own:
            raise HarnessError(
                f"{word} defines no attack and no defense: a class of harness.types.Attack or Defense",
                page="plugins",
            )
        return [(each.__name__, quick(f"{word}:{each.__name__}", _kind(each))) for each in own]
    spec = parse(word)
    for kind in (registry.attacks, registry.defenses):
        try:
            kind.get(spec.name)
        except HarnessError:
            continue
        plugin = quick(word, kind)
        right = Attack if kind is registry.attacks else Defense
        if isinstance(plugin, right):
            return [(spec.name.rpartition(":")[2], plugin)]
    raise HarnessError(
        f"{word!r} is no file, and neither an attack nor a defense: try `harness list`",
        page="plugins",
    )


def _kind(plugin: type) -> registry.Registry:
    return registry.attacks if issubclass(plugin, Attack) else registry.defenses


def quick(word: str, kind: registry.Registry) -> Any:
    """Return a plugin with small budgets, where it has such parameters and they were not set."""
    spec = parse(word)
    budgets = QUICK[Attack if kind is registry.attacks else Defense]
    known = fields(kind.get(spec.name)) if spec.inner is None else {}
    small = {name: value for name, value in budgets.items() if name in known}
    return build(Spec(spec.name, {**small, **spec.parameters}, spec.inner), kind)


def _of_attack(name: str, attack: Attack) -> list[Check]:
    found = [Check(name, "described", functools.partial(kit.described, attack))]
    for randomised in (False, True):
        victim = kit.victim(randomised=randomised)
        batch = kit.some_images(victim)
        against = "randomised" if randomised else "deterministic"
        for label, check in kit.ATTACK_CHECKS.items():
            run = functools.partial(check, attack, victim, batch)
            found.append(Check(name, f"{label} ({against} victim)", run))
    return found


def _of_defense(name: str, defense: Defense) -> list[Check]:
    batch = load("digits", "test").batch(slice(0, 8))
    found = [Check(name, "described", functools.partial(kit.described, defense))]
    for label, check in defenses.DEFENSE_CHECKS.items():
        found.append(Check(name, label, functools.partial(check, defense, batch)))
    return found
