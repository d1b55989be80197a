"""Imports point one way: plugins see types, registry and pure helpers, the engine sees no plugin."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = {"types", "registry", "random", "geometry", "spec"}
"""Modules of the harness that a plugin may import."""
PLUGINS = ("attacks", "defenses", "models")


def imported(path: Path) -> set[str]:
    """Absolute names of the project's modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            if node.module in ("harness", *PLUGINS):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("harness", *PLUGINS)}


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("package", PLUGINS)
def test_plugins_import_only_their_own_package_and_pure_helpers(package: str) -> None:
    for path in files(package):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "harness":
                assert len(parts) == 1 or parts[1] in PURE, f"{path} imports {name}"
            elif parts[0] == "models" and package == "defenses":
                pass  # a density model is a model
            else:
                assert parts[0] == package, f"{path} imports {name}"


def registered(path: Path) -> bool:
    """Whether a file registers a plugin."""
    text = path.read_text(encoding="utf-8")
    return ".register(" in text or ".bridge(" in text


@pytest.mark.parametrize("package", PLUGINS)
def test_no_plugin_imports_another(package: str) -> None:
    plugins = {f"{package}.{path.stem}" for path in files(package) if registered(path)}
    for path in files(package):
        if registered(path):
            others = imported(path) & plugins - {f"{package}.{path.stem}"}
            assert not others, f"{path} imports {others}"


def test_the_engine_imports_no_plugin() -> None:
    for path in files("harness"):
        named = {name for name in imported(path) if name.split(".")[0] in PLUGINS}
        assert not named, f"{path} imports {named}"


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
                own = name.startswith("defenses.estimation")
                assert top in standard or top == "torch" or own, f"{path} imports {name}"


@pytest.mark.parametrize("words", ["['--help']", "['table', '--help']", "['run', '--help']"])
def test_help_imports_no_torch(words: str) -> None:
    code = (
        "import sys\nfrom harness.cli.main import main\n"
        f"main({words}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_a_table_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    code = (
        "import sys\nfrom harness.cli.main import main\n"
        f"main(['table', '--results', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
