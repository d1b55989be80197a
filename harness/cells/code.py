"""Find out whether a guest replaced a function of the harness, torch or Python, and put it back.

A namespace (a module's or a class's names) is compared by the identity of its values, functions by their
code and defaults as well, and the constants of the harness by their content.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import functools
import operator
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

_MODULES = {
    "builtins",
    "copy",
    "dataclasses",
    "functools",
    "hashlib",
    "io",
    "json",
    "math",
    "msgspec",
    "msgspec.json",
    "numpy",
    "numpy.random",
    "operator",
    "os",
    "pathlib",
    "posixpath",
    "random",
    "safetensors",
    "safetensors.torch",
    "struct",
    "time",
    "torch",
    "torch._C._nn",
    "torch.autograd",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.optim",
    "torch.random",
    "zlib",
}
_PACKAGES = ("harness.", "torch.nn.modules.", "torch.optim.", "torch.autograd.", "torch._tensor")
_USER_FILE = "harness_file_"
_GROWING = {
    "Storage",
    "__annotations__",
    "__warningregistry__",
    "__parameters__",
    "__abstractmethods__",
}
"""Names that Python, or torch for its default dtype, sets when a namespace is used."""


@dataclasses.dataclass(frozen=True)
class Namespace:
    """The names of a module or class as they were."""

    owner: Any
    label: str
    values: dict[str, Any]
    ids: list[int]
    functions: list[FunctionType]
    facts: list[tuple[Any, ...]]
    constants: dict[str, Any]

    def is_whole(self) -> bool:
        """Return whether no name and no function was replaced."""
        if list(map(id, vars(self.owner).values())) != self.ids:
            return False
        return list(map(_facts, self.functions)) == self.facts


_known: dict[str, list[Namespace]] = {}
"""The namespaces of each module as they were last read, which are mostly still the same."""


def read() -> list[Namespace]:
    """Return every namespace that is watched, as it is now."""
    found: list[Namespace] = []
    for name, module in list(sys.modules.items()):
        if _is_watched(name) and isinstance(module, ModuleType):
            known = _known.get(name)
            if known is None or known[0].owner is not module or not known[0].is_whole():
                known = _known[name] = [
                    _namespace(owner, label) for owner, label in _owners(name, module)
                ]
            for place, space in enumerate(known[1:], 1):  # the first was looked at just now
                if not space.is_whole():
                    known[place] = _namespace(space.owner, space.label)
            found += known
    return found


def restore(before: list[Namespace]) -> list[str]:
    """Put back everything that was replaced; return the names.

    A name ends with "(it cannot be put back)" where it could not be.
    """
    found = []
    for space in before:
        if not space.is_whole():
            found += _restore_names(space)
            for function, facts in zip(space.functions, space.facts, strict=True):
                if _facts(function) != facts:
                    function.__code__, function.__defaults__, function.__kwdefaults__ = facts
                    found.append(f"code of {space.label}.{function.__name__}")
            if not space.is_whole() and not _has_grown(space):
                found.append(f"{space.label} (it cannot be put back)")
        if isinstance(space.owner, ModuleType) and sys.modules.get(space.label) is not space.owner:
            sys.modules[space.label] = space.owner
            found.append(f"module {space.label}")
        for name, value in space.constants.items():
            held = space.values[name]
            if held != value:
                held.clear()
                (held.extend if isinstance(held, list) else held.update)(value)
                found.append(f"content of {space.label}.{name}")
    return list(dict.fromkeys(found))


def _has_grown(space: Namespace) -> bool:
    """Return whether only names differ that Python or torch adds by itself."""
    live = vars(space.owner)
    return all(live.get(name) is value or name in _GROWING for name, value in space.values.items())


@functools.cache
def _is_watched(name: str) -> bool:
    return name in _MODULES or name == "harness" or name.startswith((*_PACKAGES, _USER_FILE))


def _owners(name: str, module: ModuleType) -> Iterator[tuple[Any, str]]:
    """Yield a module and the classes that it defines, each with its name."""
    yield module, name
    if name != "builtins":
        for key, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == name and not _is_legacy(name, key):
                yield value, f"{name}.{key}"


def _is_legacy(module: str, name: str) -> bool:
    """Return whether a class is one of torch's old ones for each dtype, which are never asked for."""
    return module == "torch" and name.endswith("Tensor") and name != "Tensor"


def _namespace(owner: Any, label: str) -> Namespace:
    values = dict(vars(owner))
    own = label.startswith("harness.")
    functions = (
        [each for value in values.values() for each in _functions(value)]
        if own or label.startswith(("torch.nn.", "torch.optim.", "torch._tensor"))
        else []
    )
    constants = (
        {
            name: copy.copy(value)
            for name, value in values.items()
            if type(value) in (dict, list, set) and name.strip("_").isupper()
        }
        if own and isinstance(owner, ModuleType)
        else {}
    )
    return Namespace(
        owner,
        label,
        values,
        list(map(id, values.values())),
        functions,
        list(map(_facts, functions)),
        constants,
    )


def _functions(value: Any) -> list[FunctionType]:
    """Return the functions behind a name: of a method of the class, a property, or a cached function, too."""
    if isinstance(value, property):
        inner = [value.fget, value.fset]
    elif isinstance(value, functools.cached_property):
        inner = [value.func]
    else:
        inner = [value, getattr(value, "__func__", None), _wrapped(value)]
    return [each for each in inner if type(each) is FunctionType]


def _wrapped(value: Any) -> Any:
    """Return what a decorator wraps, where it says so."""
    return None if isinstance(value, type) else getattr(value, "__wrapped__", None)


_facts = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")


def _restore_names(space: Namespace) -> list[str]:
    live, before = vars(space.owner), space.values
    user = isinstance(space.owner, ModuleType) and space.label.startswith(_USER_FILE)
    found = []
    for name, value in list(live.items()):
        if user and not (callable(value) and callable(before.get(name))):
            continue  # what a user's file keeps for itself
        if name in before:
            if value is not before[name] and name not in _GROWING:
                found.append(_put(space, name))
        elif _matters(space, name, value):
            found.append(_take_away(space, name))
    found += [_put(space, name) for name in before if name not in live and name not in _GROWING]
    return found


def _matters(space: Namespace, name: str, value: Any) -> bool:
    """Return whether a new name changes the behaviour of existing code.

    It does where it hides a builtin in a module, or is a method, a descriptor or an inherited name in a
    class. Caches and submodules appear by themselves.
    """
    if isinstance(space.owner, ModuleType):
        return hasattr(builtins, name)
    if name in _GROWING:
        return False
    hides = not name.startswith("_") and any(hasattr(base, name) for base in space.owner.__bases__)
    return hides or callable(value) or hasattr(value, "__get__")


def _put(space: Namespace, name: str) -> str:
    try:
        setattr(space.owner, name, space.values[name])
    except (AttributeError, TypeError):
        return f"{space.label}.{name} (it cannot be put back)"
    return f"{space.label}.{name}"


def _take_away(space: Namespace, name: str) -> str:
    try:
        delattr(space.owner, name)
    except (AttributeError, TypeError):
        return f"{space.label}.{name} (it cannot be put back)"
    return f"{space.label}.{name}"
