"""Find plugins by name: a decorator, entry points of other packages, or a class in a file.

Nothing is imported before somebody asks, so that the command line stays quick. No other module of the
engine imports by a name that is text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import pkgutil
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.types import HarnessError, Training


def nearest(word: str, allowed: Iterable[str], *, prefix: str = "", otherwise: str = "") -> str:
    """Return the hint of an error about an unknown word: `did you mean menet-nuc or menet?`.

    Names are compared without case; those that contain the word are near too.

    Args:
        prefix: what stands before each name that is proposed.
        otherwise: the hint where no name is near, in place of all that is allowed.
    """
    known = list(dict.fromkeys(allowed))
    folded = {name.lower(): name for name in reversed(known)}
    near = difflib.get_close_matches(word.lower(), list(folded), n=3, cutoff=0.4)
    near += [name for name in folded if word and word.lower() in name and name not in near]
    if near:
        return f"did you mean {' or '.join(prefix + folded[name] for name in near[:3])}?"
    return otherwise or f"known: {', '.join(known) or 'none'}"


def imported(module: str, package: str) -> Any:
    """Import a module of an optional library.

    Args:
        package: the name by which pip installs the library.

    Raises:
        HarnessError: it is not installed (with the line that installs it).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise HarnessError(
            f"{package} does not import ({error}): `pip install {package}` brings it"
        ) from error


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered plugin: its maker, a one-line summary, and the package that it comes from."""

    name: str
    make: Callable[..., Any]
    summary: str
    origin: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alias:
    """A second name that stands for a plugin together with a training."""

    plugin: str
    training: Training


class Registry:
    """All plugins of one kind.

    The built-in plugins are in the modules of `package`, at any depth; `group` is the entry-point group of
    those in other packages. A file `names.toml` in the package may name the kind's `default` and `aliases`;
    reading it imports no plugin.
    """

    def __init__(self, kind: str, package: str | None, group: str) -> None:
        self.kind = kind
        self.package = package
        self.group = group
        self._entries: dict[str, Entry] = {}
        self._bridges: dict[str, Callable[[str], Callable[..., Any]]] = {}
        self._found = False

    def register(self, name: str, **preset: Any) -> Callable[[Any], Any]:
        """Register a class or function under `name`, optionally with preset parameters (a decorator)."""

        def decorate(make: Any) -> Any:
            self._add(name, make, preset, origin=make.__module__)
            return make

        return decorate

    def bridge(self, prefix: str) -> Callable[[Any], Any]:
        """Register `make(rest)` for every name of the form `prefix:rest` (a decorator)."""

        def decorate(make: Any) -> Any:
            self._bridges[prefix] = make
            return make

        return decorate

    def _add(self, name: str, make: Any, preset: dict[str, Any], origin: str) -> None:
        if name in self._entries:
            raise HarnessError(
                f"two {self.kind}s are called {name!r}: {self._entries[name].origin} and {origin}. "
                "Rename one of them"
            )
        summary = (inspect.getdoc(make) or "").strip().split("\n")[0]
        factory = Preset(make, preset) if preset else make
        self._entries[name] = Entry(name, factory, summary, origin)

    def _find(self) -> None:
        if self._found:
            return
        self._found = True
        if self.package is not None:
            package = importlib.import_module(self.package)
            for module in pkgutil.walk_packages(package.__path__, self.package + "."):
                importlib.import_module(module.name)
        for point in importlib.metadata.entry_points(group=self.group):
            if point.name in self._entries:
                continue
            try:
                make = point.load()
            except Exception as error:  # a broken guest must not take the others down
                message = f"{point.value} does not load: {type(error).__name__}: {error}"
                make = _Broken(f"{self.kind} {point.name}: {message}")
            self._add(point.name, make, {}, origin=point.value)

    def __iter__(self) -> Iterator[Entry]:
        self._find()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        """Return the names of all registered plugins, sorted."""
        return [entry.name for entry in self]

    @functools.cached_property
    def _names(self) -> Mapping[str, Any]:
        if self.package is None:
            return {}
        file = importlib.resources.files(self.package).joinpath("names.toml")
        return tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}

    @property
    def default(self) -> str:
        """The name of the plugin that is used where none is named."""
        found: str = self._names["default"]
        return found

    @functools.cached_property
    def aliases(self) -> Mapping[str, Alias]:
        """The names that stand for a plugin and a training together."""
        return {name: Alias(**row) for name, row in self._names.get("aliases", {}).items()}

    def meant(self, name: str) -> tuple[str, Training | None]:
        """Return the plugin that a name means, and the training that an alias asks for (else None)."""
        alias = self.aliases.get(name)
        return (alias.plugin, alias.training) if alias else (name, None)

    def alias_of(self, plugin: str, training: str) -> str | None:
        """Return the alias of a plugin together with a training; None where there is none."""
        known = self.aliases.items()
        return next((n for n, a in known if (a.plugin, a.training) == (plugin, training)), None)

    def bridges(self) -> dict[str, Callable[[str], Callable[..., Any]]]:
        """Return the makers for names of the form `prefix:rest`, by prefix."""
        self._find()
        return dict(sorted(self._bridges.items()))

    def get(self, name: str) -> Callable[..., Any]:
        """Return the class or function that makes the plugin `name`.

        Raises:
            HarnessError: there is no such plugin (with the nearest names), the name is an alias, which
                asks for a training too, or a file does not load.
        """
        self._find()
        if name in self._entries:
            return self._entries[name].make
        prefix, _, rest = name.partition(":")
        if rest and prefix in self._bridges:
            made: Callable[..., Any] = self._bridges[prefix](rest)
            return made
        if rest and prefix.endswith(".py"):
            return self._from_file(Path(prefix), rest)
        plugin, training = self.meant(name)
        if training is not None:
            raise HarnessError(
                f"{name} is the {self.kind} {plugin} with {training} training: name both here",
                page="defenses",
            )
        hint = nearest(name, [*self._entries, *self.aliases])
        raise HarnessError(
            f"no {self.kind} is called {name!r}: {hint}; `harness list {self.kind}s` shows all; "
            f"one of your own is {name if name.endswith('.py') else 'path/to/file.py'}:Class",
            page="datasets" if self.kind == "dataset" else "plugins",
        )

    def _from_file(self, path: Path, attribute: str) -> Callable[..., Any]:
        module = load_file(path)
        make = getattr(module, attribute, None)
        if not callable(make):
            offers = [
                key
                for key, value in vars(module).items()
                if (inspect.isclass(value) or inspect.isfunction(value))
                and value.__module__ == module.__name__
            ]
            hint = nearest(attribute, offers, otherwise="it defines none of that name")
            raise HarnessError(
                f"{path} has no class or function {attribute!r}: {hint}", page="plugins"
            )
        return make  # type: ignore[no-any-return]


class Preset:
    """A maker of plugins with some parameters set in advance; explicit parameters win."""

    def __init__(self, make: Callable[..., Any], preset: dict[str, Any]) -> None:
        self.make = make
        self.preset = preset
        self.__doc__ = make.__doc__

    def __call__(self, *args: Any, **parameters: Any) -> Any:
        return self.make(*args, **{**self.preset, **parameters})


class _Broken:
    def __init__(self, message: str) -> None:
        self.message = message
        self.__doc__ = message

    def __call__(self, *args: Any, **parameters: Any) -> Any:
        raise HarnessError(self.message)


def load_file(path: Path) -> Any:
    """Return the module of a Python file that the user named. The file is executed: it is the user's code."""
    if not path.is_file():
        raise HarnessError(
            f"no file {path}: a plugin of your own is path/to/file.py:Class", page="plugins"
        )
    name = "harness_file_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HarnessError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with around_file():
            spec.loader.exec_module(module)
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:
        del sys.modules[name]
        raise HarnessError(f"{path} does not load: {describe(error)}") from error
    return module


around_file: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
"""Returns the context in which a user's file is executed. The engine sets it to a guard of the process."""
_LONGEST = 390


def describe(error: BaseException) -> str:
    """Return an error as one printable line, even where its own `__str__` fails."""
    try:
        name = str.encode(type(error).__name__, "utf-8", "backslashreplace").decode()
    except BaseException:
        name = "an error without a name"
    try:
        text = str.encode(str(error), "utf-8", "backslashreplace").decode()
    except BaseException:
        text = "its text cannot be read"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = "".join(each if each.isprintable() else " " for each in lines[0]) if lines else ""
    if not first and isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        first = "it tried to end the run"
    whole = f"{name}: {first}" if first else name
    return whole if len(whole) <= _LONGEST else whole[:_LONGEST] + "..."


attacks = Registry("attack", "harness.attacks", "harness.attacks")
defenses = Registry("defense", "harness.defenses", "harness.defenses")
models = Registry("model", "harness.models", "harness.models")
datasets = Registry("dataset", "harness.datasets", "harness.datasets")
estimators = Registry("estimator", None, "harness.estimators")
