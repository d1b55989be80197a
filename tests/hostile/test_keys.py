"""Everything that changes a number changes the key: a plugin's helpers, inner attacks, compiled code."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.defenses.estimation import native
from harness.registry import attacks, defenses, load_file
from harness.spec import build, parse
from harness.storage import keys
from harness.targets.source import resolve

ATTACKS = '''
import dataclasses
from harness.types import Attack, Perturbed

@dataclasses.dataclass(frozen=True, kw_only=True)
class One(Attack):
    """One."""
    steps: int = 3
    def perturb(self, victim, batch, threat, draws):
        return Perturbed(batch.images)

@dataclasses.dataclass(frozen=True, kw_only=True)
class Two(Attack):
    """Two."""
    steps: int = 3
    def perturb(self, victim, batch, threat, draws):
        return Perturbed(batch.images + 0.01)
'''


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget what was read of files, and the modules that a test loads."""
    keys._imports.cache_clear()
    keys._tree.cache_clear()
    yield
    for name in [name for name in sys.modules if name.startswith(("hostile_", "harness_file_"))]:
        del sys.modules[name]


def version(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The code version of `plugin.py:Plugin` beside some files, in a process that can import them."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name, module in sys.modules.items() if _lies_in(module, folder.parent)]:
        del sys.modules[name]
    found = keys.code_version(load_file(folder / "plugin.py").Plugin)
    monkeypatch.undo()
    return found


def _lies_in(module: Any, folder: Path) -> bool:
    origin = getattr(module, "__file__", None)
    return isinstance(origin, str) and Path(origin).is_relative_to(folder)


HELPED = {
    "from the folder": (
        "from hostile_helper import size\nclass Plugin: value = size()",
        "hostile_helper.py",
    ),
    "as a module": (
        "import hostile_helper as h\nclass Plugin: value = h.size()",
        "hostile_helper.py",
    ),
    "in a package": (
        "from hostile_lib.sizes import size\nclass Plugin: value = size()",
        "hostile_lib/sizes.py",
    ),
    "of a package": (
        "from hostile_lib import sizes\nclass Plugin: value = sizes.size()",
        "hostile_lib/sizes.py",
    ),
    "inside a function": (
        "class Plugin:\n  def perturb(self):\n    from hostile_helper import size\n    return size()",
        "hostile_helper.py",
    ),
}


@pytest.mark.parametrize("how", HELPED)
def test_an_edited_helper_changes_the_version(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, helper = HELPED[how]
    text = "def size():\n    return 3\n"
    base = {"plugin.py": plugin, "hostile_lib/__init__.py": "", helper: text}
    first = version(tmp_path / "a", base, monkeypatch)
    assert first == version(tmp_path / "b", base, monkeypatch), "where it lies does not count"
    assert first == version(tmp_path / "c", {**base, helper: "# x\n" + text}, monkeypatch)
    changed = {**base, helper: text.replace("3", "4")}
    assert first != version(tmp_path / "d", changed, monkeypatch)


@pytest.mark.parametrize("importing", ["import hostile_far", "from . import hostile_far"])
def test_the_helper_of_a_helper_counts(
    importing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = "hostile_far.py" if importing.startswith("import") else "hostile_lib/hostile_far.py"
    base = {
        "plugin.py": "import hostile_lib.near\nclass Plugin: pass",
        "hostile_lib/__init__.py": "",
        "hostile_lib/near.py": importing,
        far: "SIZE = 1",
    }
    first = version(tmp_path / "a", base, monkeypatch)
    assert first != version(tmp_path / "b", {**base, far: "SIZE = 2"}, monkeypatch)


def test_the_packages_own_code_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {
        "plugin.py": "import hostile_lib.near\nclass Plugin: pass",
        "hostile_lib/__init__.py": "SIZE = 1",
        "hostile_lib/near.py": "",
    }
    first = version(tmp_path / "a", base, monkeypatch)
    changed = {**base, "hostile_lib/__init__.py": "SIZE = 2"}
    assert first != version(tmp_path / "b", changed, monkeypatch)


def test_modules_that_import_each_other_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"plugin.py": "import hostile_a\nclass Plugin: pass"}
    files |= {"hostile_a.py": "import hostile_b", "hostile_b.py": "import hostile_a"}
    assert len(version(tmp_path, files, monkeypatch)) == 12


def test_a_module_that_does_not_exist_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "try:\n  import hostile_absent.part\nexcept ImportError: pass\nclass Plugin: pass"
    assert len(version(tmp_path, {"plugin.py": text}, monkeypatch)) == 12


def test_libraries_and_the_engine_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(
        "import json, os.path, torch, click.testing\nfrom harness import types\n"
        "from harness.storage import store\nfrom harness.types import Attack\n"
    )
    load_file(tmp_path / "plugin.py")
    assert keys._closure(tmp_path / "plugin.py") == {tmp_path / "plugin.py"}


def test_an_installed_package_counts_only_itself() -> None:
    import click.testing

    paths = keys._closure(Path(click.testing.__file__))
    assert {"testing.py", "core.py", "__init__.py"} <= {path.name for path in paths}
    assert {path.parent.name for path in paths} == {"click"}


def test_a_file_in_another_language_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = "from pathlib import Path\nCODE_FILES = [Path(__file__).with_name('fast.c')]\n"
    base = {"plugin.py": plugin + "class Plugin: pass", "fast.c": "int one(){return 1;}"}
    first = version(tmp_path / "a", base, monkeypatch)
    assert first == version(tmp_path / "b", base, monkeypatch)
    changed = {**base, "fast.c": "int one(){return 2;}"}
    assert first != version(tmp_path / "c", changed, monkeypatch)


@pytest.mark.parametrize("name", [path.name for path in native.CODE_FILES])
def test_an_edited_lane_changes_the_key_of_its_defenses_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("menet-nuc", "menet-usvt", "vanilla")
    specs = [parse(each) for each in names]
    before = [resolve(build(spec, defenses), spec).code for spec in specs]
    edited = tmp_path / name
    (original,) = (path for path in native.CODE_FILES if path.name == name)
    edited.write_bytes(original.read_bytes() + b"\nint one;")
    others = tuple(edited if path.name == name else path for path in native.CODE_FILES)
    monkeypatch.setattr(native, "CODE_FILES", others)
    after = [resolve(build(spec, defenses), spec).code for spec in specs]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, True, False]


# --- attacks inside attacks -----------------------------------------------------------------------


def facts(text: str) -> dict[str, Any]:
    spec = parse(text)
    found: dict[str, Any] = msgspec.to_builtins(resolve(build(spec, attacks), spec))
    return found


@pytest.mark.parametrize("form", ["{}", "transfer({})", "transfer(transfer({}))"])
def test_two_attacks_of_one_file_never_share_a_key(form: str, tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(ATTACKS)
    one, two = (facts(form.format(f"{tmp_path}/both.py:{name}")) for name in ("One", "Two"))
    assert keys.key(one) != keys.key(two)
    assert keys.key(one) == keys.key(facts(form.format(f"{tmp_path}/both.py:One")))


def test_an_edit_of_the_inner_attack_changes_the_key(tmp_path: Path) -> None:
    found = []
    for folder, text in (("a", ATTACKS), ("b", ATTACKS.replace("0.01", "0.02"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "both.py").write_text(text)
        inner = build(parse(f"{tmp_path}/{folder}/both.py:Two"), attacks)
        outer = build(parse("transfer(pgd)"), attacks)
        changed = dataclasses.replace(outer, inner=inner)
        found.append(keys.key(resolve(changed, parse("transfer(pgd)"))))
    assert found[0] != found[1]


def test_inner_parameters_defaults_included_are_in_the_key() -> None:
    plain = facts("transfer(pgd)")
    inner = plain["parameters"]["inner"]
    steps = inner["parameters"]["steps"]
    assert (inner["name"], inner["kind"]) == ("pgd", "PGD")
    assert keys.key(plain) == keys.key(facts(f"transfer(pgd(steps={steps}))"))
    assert keys.key(plain) != keys.key(facts(f"transfer(pgd(steps={steps + 1}))"))
