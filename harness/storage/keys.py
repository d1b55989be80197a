"""What a result depends on, as one hash: specs, data, and the code that computes."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

ENGINE_VERSION = 2
"""Raised by hand when a change to `harness` can change a number. Plugins are hashed by their code."""

_PLUGIN_PACKAGES = ("harness.attacks", "harness.defenses", "harness.models")


def canonical(value: Any) -> bytes:
    """JSON with sorted keys: the same bytes for the same value, whatever made it."""
    return msgspec.json.encode(msgspec.to_builtins(value), order="sorted")


def key(value: Any) -> str:
    """The first 20 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()[:20]


def code_version(make: Callable[..., Any]) -> str:
    """A digest of the module that defines a plugin and of the plugin modules that it imports.

    Comments, docstrings and layout do not count: the syntax tree is what is hashed. Nor does where a
    module lies: of an import only the other names that it gives count. A third-party plugin's digest
    covers its own module.
    """
    target = getattr(make, "make", make)
    module = getattr(target, "__module__", type(target).__module__)
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if origin is None:
        return "none"
    digest = hashlib.sha256()
    for tree in sorted(map(_tree, _closure(Path(origin)))):
        digest.update(tree.encode())
    return digest.hexdigest()[:12]


@functools.cache
def _tree(path: Path) -> str:
    tree = _WithoutPlaces().visit(ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None  # docstrings, of attributes too
    return ast.dump(tree)


class _WithoutPlaces(ast.NodeTransformer):
    """Leaves of an import only `name as other`: moving a module is no change of what it computes."""

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
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    paths = []
    for name in sorted(names):
        if not name.startswith(_PLUGIN_PACKAGES):
            continue
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            paths.append(Path(spec.origin))
    return paths
