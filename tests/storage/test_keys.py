from __future__ import annotations

from pathlib import Path

import pytest

from harness.registry import load_file
from harness.storage import keys

SOURCE = '''
"""A module."""

class Attack:
    """An attack."""

    steps = 3
    """How many."""

    def perturb(self, images):
        return images + self.steps
'''


def version(tmp_path: Path, name: str, source: str) -> str:
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    return keys.code_version(load_file(path).Attack)


@pytest.mark.parametrize(
    "change",
    [
        ("An attack.", "Another text."),
        ("How many.", "Steps."),
        ("+ self.steps", "+  self.steps  # x"),
    ],
)
def test_words_and_layout_do_not_count(tmp_path: Path, change: tuple[str, str]) -> None:
    assert change[0] in SOURCE
    same = version(tmp_path, "a", SOURCE.replace(*change))
    assert same == version(tmp_path, "b", SOURCE)


@pytest.mark.parametrize("change", [("steps = 3", "steps = 4"), ("images +", "images -")])
def test_code_counts(tmp_path: Path, change: tuple[str, str]) -> None:
    assert change[0] in SOURCE
    assert version(tmp_path, "a", SOURCE.replace(*change)) != version(tmp_path, "b", SOURCE)


def test_where_an_import_comes_from_does_not_count(tmp_path: Path) -> None:
    here = version(tmp_path, "a", "from os.path import join\nimport json" + SOURCE)
    assert here == version(tmp_path, "b", "from posixpath import join\nimport ast" + SOURCE)
    other = version(tmp_path, "c", "from os.path import split as join\nimport json" + SOURCE)
    assert here != other


def test_a_plugins_helpers_count() -> None:
    from harness.attacks import pgd
    from harness.attacks.pgd import PGD

    paths = {path.name for path in keys._closure(Path(pgd.__file__))}
    assert {"pgd.py", "projected_gradient.py", "losses.py"} <= paths
    assert "cw.py" not in paths
    assert len(keys.code_version(PGD)) == 12


def test_canonical_json_has_one_form() -> None:
    assert keys.canonical({"b": 1, "a": [1.5, None]}) == keys.canonical({"a": (1.5, None), "b": 1})
    assert keys.key({"a": 1}) != keys.key({"a": 2})


def test_an_installed_package_is_a_library_wherever_it_is_installed(tmp_path: Path) -> None:
    for folder in ("site-packages", "dist-packages"):
        path = tmp_path / folder / "theirs" / "deep" / "module.py"
        assert keys._is_library(path) and keys._installed_top(path) == "theirs"
        assert keys._installed_top(tmp_path / folder / "single.py") == "single"
    assert not keys._is_library(tmp_path / "mine" / "module.py")
    assert keys._installed_top(tmp_path / "mine" / "module.py") == ""
