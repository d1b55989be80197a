"""Imports point one way: each room to the rooms below it, plugins to the plugin API, no room to a plugin."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry

ROOT = Path(__file__).parent.parent
PLUGINS = ("attacks", "defenses", "models")

API = {"types", "registry", "random", "geometry", "spec"}
"""Modules that lie flat in `harness/`: what a plugin may import."""

ARROWS = {
    "storage": set(),
    "cells": {"storage"},
    "datasets": {"storage", "cells"},
    "results": {"storage", "cells"},
    "targets": {"storage", "cells", "datasets", "results"},
    "evaluation": {"storage", "cells", "datasets", "results", "targets"},
    "executors": {"storage", "cells", "datasets", "results", "targets", "evaluation"},
    "conformance": {"storage", "cells", "datasets", "results", "targets", "evaluation"},
    "audit": {"storage", "cells", "datasets", "results", "targets", "evaluation"},
    "paper": {"storage", "cells", "datasets", "results", "targets", "evaluation"},
    "report": {"storage", "cells", "results", "paper"},
    "api": {"storage", "cells", "datasets", "results", "targets", "evaluation"},
    "cli": {
        "storage",
        "cells",
        "datasets",
        "results",
        "targets",
        "evaluation",
        "executors",
        "conformance",
        "audit",
        "paper",
        "report",
    },
}
"""By room: the rooms that its files may import, anywhere in the file. Every room may import the plugin
API and itself."""

STRINGS = {Path("harness/registry.py"), Path("harness/__init__.py")}
"""Files that may import a module by its name as text: the registry, and the lazy names of the package."""


def files(folder: str) -> list[Path]:
    found = sorted(path for path in (ROOT / folder).rglob("*.py"))
    assert found
    return found


def module_name(path: Path) -> str:
    """The dotted name of a file: `attacks/pgd.py` is imported as `harness.attacks.pgd`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "harness" else ("harness", *parts))


def is_package(name: str) -> bool:
    parts = name.split(".")
    if len(parts) > 1 and parts[1] in PLUGINS:
        parts = parts[1:]
    return (ROOT / Path(*parts)).is_dir()


def imported(path: Path) -> set[str]:
    """Absolute names of the project's modules that a file imports, inside functions too."""
    names: set[str] = set()
    here = module_name(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            whole = is_package(module)  # else the names are a module's own
            names |= {f"{module}.{alias.name}" if whole else module for alias in node.names}
    return {name for name in names if name.split(".")[0] == "harness"}


def room(name: str) -> str:
    """`harness.storage.keys` -> `storage`; of the plugin API and of `harness` itself ``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (parts[1] in ARROWS or parts[1] in PLUGINS) else ""


def rooms() -> list[str]:
    return sorted(p.name for p in (ROOT / "harness").iterdir() if p.is_dir() and p.name[0] != "_")


def test_the_table_has_every_room_and_no_circle() -> None:
    assert set(rooms()) == set(ARROWS) | set(PLUGINS)
    done: set[str] = set()
    for name, below in ARROWS.items():
        assert below <= done, f"{name} may import {below - done}, which stands above it"
        done.add(name)


def test_only_the_plugin_api_lies_flat() -> None:
    flat = {path.stem for path in (ROOT / "harness").glob("*.py")}
    assert flat == API | {"__init__", "__main__"}


@pytest.mark.parametrize("name", ARROWS)
def test_rooms_import_only_rooms_below_them(name: str) -> None:
    for path in files(f"harness/{name}"):
        for other in imported(path):
            assert room(other) in {"", name} | ARROWS[name], f"{path} imports {other}"


def test_the_plugin_api_imports_no_room() -> None:
    for path in (ROOT / "harness").glob("*.py"):
        if path.stem in API:
            for other in imported(path):
                assert room(other) == "", f"{path} imports {other}"


@pytest.mark.parametrize("package", PLUGINS)
def test_plugins_import_only_their_own_package_and_the_plugin_api(package: str) -> None:
    for path in files(package):
        for name in imported(path):
            if room(name) == "models" and package == "defenses":
                continue  # a density model is a model
            flat = name == "harness" or name.split(".")[1] in API
            assert room(name) == package or flat, f"{path} imports {name}"


def registered(path: Path) -> bool:
    """Whether a file registers a plugin."""
    text = path.read_text(encoding="utf-8")
    return ".register(" in text or ".bridge(" in text


@pytest.mark.parametrize("package", PLUGINS)
def test_no_plugin_imports_another(package: str) -> None:
    plugins = {module_name(path) for path in files(package) if registered(path)}
    for path in files(package):
        if registered(path):
            others = imported(path) & plugins - {module_name(path)}
            assert not others, f"{path} imports {others}"


def test_the_engine_imports_no_plugin() -> None:
    for path in files("harness"):
        if path.relative_to(ROOT).parts[1] in PLUGINS:
            continue
        named = {name for name in imported(path) if room(name) in PLUGINS}
        assert not named, f"{path} imports {named}"


def test_only_the_registry_imports_by_string() -> None:
    for path in files("harness"):
        parts = path.relative_to(ROOT).parts
        if parts[1] in PLUGINS or path.relative_to(ROOT) in STRINGS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            assert name not in ("import_module", "__import__"), f"{path} imports by string"


WORDS = {
    "clean": "accuracy without an attack",
    "transfer": "a word of the paper's claims",
    "boundary": "a word of the paper's claims",
    "spsa": "a word of the paper's claims",
    "object": "the prefix of plugins that were handed over in memory",
    "menet": "the method's name in the paper's claims",
    "foolbox": "the library, whose version a record states",
    "torchattacks": "the library, whose version a record states",
}
"""Names of plugins that the engine may quote, since they mean something else there."""


def plugin_names() -> set[str]:
    found: set[str] = set()
    for kind in (registry.attacks, registry.defenses, registry.models):
        found |= {*kind.names(), *kind.bridges(), *kind.aliases}
    return found


def quoted(path: Path) -> set[str]:
    """The texts of a file, without docstrings; of a text such as `pgd(steps=3)` the names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in described else None
        if isinstance(text, str):
            found |= {text, *re.findall(r"([\w-]+)\(", text), *re.findall(r"=([\w-]+)\)", text)}
    return found


def test_the_engine_names_no_plugin() -> None:
    names = plugin_names() - WORDS.keys()
    assert {"pgd", "vanilla", "madry", "timm"} <= names
    for path in files("harness"):
        if path.relative_to(ROOT).parts[1] not in PLUGINS:
            named = quoted(path) & names
            assert not named, f"{path} names {named}: give the plugin a field or a hook"


def test_a_quoted_plugin_is_found(tmp_path: Path) -> None:
    (tmp_path / "room.py").write_text('"""pgd"""\nx = f"run pgd(steps={3})"\ny = "vanilla"\n')
    assert {"pgd", "vanilla"} <= quoted(tmp_path / "room.py")
    (tmp_path / "room.py").write_text('"""pgd"""\nx = "the pgd attack"\n')
    assert "pgd" not in quoted(tmp_path / "room.py")


def test_modules_of_a_room_import_each_other_in_no_circle() -> None:
    arrows = {
        module_name(path): {
            name for name in imported(path) if name != module_name(path) and not is_package(name)
        }
        for path in [*files("harness"), *(p for package in PLUGINS for p in files(package))]
    }
    done: set[str] = set()
    while left := {name for name in arrows if name not in done}:
        ready = {name for name in left if not arrows[name] & left}
        assert ready, f"a circle among {sorted(left)}"
        done |= ready


def test_estimation_imports_only_torch() -> None:
    standard = sys.stdlib_module_names
    for path in files("defenses/estimation"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                own = name.startswith("harness.defenses.estimation")
                assert top in standard or top == "torch" or own, f"{path} imports {name}"


@pytest.mark.parametrize("words", ["['--help']", "['table', '--help']", "['run', '--help']"])
def test_help_imports_no_torch(words: str) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"main({words}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_a_table_of_records_needs_no_torch() -> None:
    """Records name their defense as the registry's aliases do: no plugin is imported for it."""
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"main(['table', '--results', {str(ROOT / 'results' / 'laptop')!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    assert b"madry" in done.stdout


def test_a_table_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"main(['table', '--results', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
