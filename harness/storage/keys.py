"""Hash what a result depends on: specifications, data, and the code that computes."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

ENGINE_VERSION = 2
"""Raised by hand when a change to `harness` can change a number. Plugins are hashed by their code."""

_PLUGIN_PACKAGES = ("harness.attacks", "harness.defenses", "harness.models")


def canonical(value: Any) -> bytes:
    """Return JSON with sorted keys: the same bytes for the same value, whatever made it."""
    return msgspec.json.encode(msgspec.to_builtins(value), order="sorted")


def key(value: Any) -> str:
    """Return the first 20 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()[:20]


def code_version(make: Callable[..., Any]) -> str:
    """Return a digest of the code behind a plugin: 12 hex digits, or `none` where it has no file.

    The digest covers the module that defines the plugin, the modules of plugins and of the user that it
    imports, directly or not, and the files that such a module names in `CODE_FILES` (sources in another
    language). Python's own modules, installed packages other than the plugin's own and the engine are
    left out: a record states their versions, and `ENGINE_VERSION` stands for the engine.

    The syntax tree is hashed, so comments, docstrings and layout do not count. Nor does the place of a
    module: an import counts only where it gives a name another name.
    """
    target = getattr(make, "make", make)
    module = getattr(target, "__module__", type(target).__module__)
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if origin is None:
        return "none"
    closure = _closure(Path(origin))
    digest = hashlib.sha256()
    for text in sorted([*map(_tree, closure), *_other_files(closure)]):
        digest.update(text.encode())
    return digest.hexdigest()[:12]


def _other_files(closure: set[Path]) -> list[str]:
    """Return the name and digest of each file that the modules of a closure name in `CODE_FILES`."""
    found = []
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        named = getattr(module, "CODE_FILES", None)
        if named and isinstance(origin, str) and Path(origin) in closure:
            found += [
                f"{Path(path).name} {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
                for path in named
            ]
    return found


@functools.cache
def _tree(path: Path) -> str:
    """Return the syntax tree of a file as text, without docstrings and the places of imported modules."""
    tree = _WithoutPlaces().visit(ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None  # docstrings, of attributes too
    return ast.dump(tree)


class _WithoutPlaces(ast.NodeTransformer):
    """Replaces each import by its `name as other` alone, so that moving a module changes no key."""

    def _renamed(self, node: ast.Import | ast.ImportFrom) -> ast.AST:
        kept = [
            ast.alias(alias.name.rpartition(".")[2], alias.asname)
            for alias in node.names
            if alias.asname and alias.asname != alias.name.rpartition(".")[2]
        ]
        return ast.Import(kept) if kept else ast.Pass()

    visit_Import = _renamed
    visit_ImportFrom = _renamed


def _closure(start: Path) -> set[Path]:
    """Return a file and all files of modules that it imports, directly or not, that count."""
    found, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += _imports(path)
    return found


@functools.cache
def _imports(path: Path) -> list[Path]:
    """Return the files of the plugins' and the user's modules that a file imports."""
    paths: set[Path] = set()
    for name in _imported_names(path):
        paths |= _beside(path, name)
        origin = _origin(name, path)
        if origin is not None and origin.suffix == ".py":
            paths.add(origin)
    return sorted(paths - {path})


def _imported_names(path: Path) -> set[str]:
    """Return the full names of all modules that a file may import, packages above them included.

    `from a import b` may mean the module a.b: both are named.
    """
    package = _package_of(path)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    every = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
    return every - {""}


def _package_of(path: Path) -> str:
    """Return the package that a file's relative imports start from; empty where it is in none."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return getattr(module, "__package__", None) or ""
    parts: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def _beside(path: Path, name: str) -> set[Path]:
    """Return the file that `name` means in the folder of `path`, as for `python path`."""
    if _is_library(path) or name.startswith("harness."):
        return set()
    place = path.parent.joinpath(*name.split("."))
    found = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return {each for each in found if each.is_file()}


def _origin(name: str, importer: Path) -> Path | None:
    """Return the file of a module by its full name; None where it does not count, or is no module.

    These count: the project's plugins, the user's own modules, and, for a plugin from an installed package,
    the modules of that package.
    """
    top = name.partition(".")[0]
    if top == "harness":
        if not name.startswith(_PLUGIN_PACKAGES):
            return None
    else:
        first = _file_of(top)
        if first is None or (
            _is_library(first) and _installed_top(first) != (_installed_top(importer) or None)
        ):
            return None
    return _file_of(name)


def _file_of(name: str) -> Path | None:
    """Return the Python file of a module, loaded or not; None where there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None) or _folder_of(loaded)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # no module but a name in one, or a package that does not load
            return None
        origin = None if spec is None else spec.origin or _folder_of(spec)
    return Path(origin) if isinstance(origin, str) and not origin.endswith(".so") else None


def _folder_of(package: Any) -> str | None:
    """Return the folder of a package without `__init__`, as a stand-in for its file."""
    folders = getattr(package, "__path__", None) or getattr(
        package, "submodule_search_locations", None
    )
    return next(iter(folders), None) if folders else None


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    """Return the folders of Python's own modules and of installed packages, deepest first."""
    folders = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")}
    folders |= {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    folders |= {Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())}
    folders |= {folder.resolve() for folder in folders}
    return tuple(sorted(folders, key=lambda folder: -len(folder.parts)))


def _is_library(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _library_folders())


def _installed_top(path: Path) -> str:
    """Return the first name below the folder of installed packages; empty for any other file."""
    for folder in _library_folders():
        if path.is_relative_to(folder) and folder.name in ("site-packages", "dist-packages"):
            return path.relative_to(folder).parts[0].removesuffix(".py")
    return ""
