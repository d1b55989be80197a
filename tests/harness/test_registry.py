"""Plugins are found by name, in packages at any depth, and an unknown name is answered with near ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.registry import Registry, attacks, defenses, imported, nearest
from harness.storage import keys
from harness.types import HarnessError


@pytest.mark.parametrize(
    ("word", "allowed", "said"),
    [
        ("menet-nic", ["menet-nuc", "vanilla"], "did you mean menet-nuc?"),
        ("PGD", ["pgd", "square"], "did you mean pgd?"),
        ("cor", ["thermometer", "JpegCorrection"], "did you mean JpegCorrection?"),
        ("xyz", ["pgd", "square"], "known: pgd, square"),
        ("xyz", [], "known: none"),
        ("", ["pgd"], "known: pgd"),
    ],
)
def test_the_nearest_names(word: str, allowed: list[str], said: str) -> None:
    assert nearest(word, allowed) == said


def test_the_hint_takes_a_prefix_and_another_ending() -> None:
    assert nearest("pdg", ["PGD"], prefix="foolbox:") == "did you mean foolbox:PGD?"
    assert nearest("xyz", ["PGD"], otherwise="there are many") == "there are many"


def test_at_most_three_names_are_proposed() -> None:
    assert nearest("pgd", [f"pgd{k}" for k in range(9)]).count(" or ") == 2


def test_a_missing_library_is_named_with_its_package() -> None:
    with pytest.raises(HarnessError, match="pip install no-such-thing"):
        imported("no_such_module", "no-such-thing")


def test_plugins_are_found_in_packages_at_any_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "zoo_of_attacks" / "one" / "two"
    deep.mkdir(parents=True)
    for folder in (deep, deep.parent, deep.parent.parent):
        (folder / "__init__.py").touch()
    (deep / "plugin.py").write_text(
        "from zoo_of_attacks import kind\nkind.register('deep')(dict)\n"
    )
    (tmp_path / "zoo_of_attacks" / "__init__.py").write_text(
        "from harness.registry import Registry\nkind = Registry('attack', 'zoo_of_attacks', 'none')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from zoo_of_attacks import kind  # type: ignore[import-not-found]

    assert isinstance(kind, Registry)
    assert kind.names() == ["deep"]


def test_a_package_of_attacks_does_not_hide_the_library_of_its_name() -> None:
    for name in ("foolbox", "torchattacks", "art"):
        attacks.names()
        module = imported(name, name)
        assert not module.__name__.startswith("harness")


@pytest.mark.parametrize("name", ["foolbox:LinfPGD", "boundary", "torchattacks:PGD", "art:SimBA"])
def test_the_digest_of_a_library_attack_covers_what_it_shares(name: str) -> None:
    make = attacks.get(name)
    origin = sys.modules[make.__module__].__file__
    assert origin is not None
    read = {path.name for path in keys._closure(Path(origin))}
    assert {"library_attack.py", "guarded.py", "parameters.py"} <= read


def test_an_alias_is_known_before_a_plugin_is_imported() -> None:
    code = (
        "import sys\nfrom harness.registry import attacks, defenses\n"
        "alias = defenses.aliases['madry']\n"
        "assert (alias.plugin, alias.training) == ('vanilla', 'adversarial')\n"
        "assert (defenses.default, attacks.default) == ('vanilla', 'bpda')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_alias_that_cannot_serve_says_what_it_means() -> None:
    with pytest.raises(
        HarnessError, match="madry is the defense vanilla with adversarial training"
    ):
        defenses.get("madry")
    with pytest.raises(HarnessError, match="did you mean madry"):
        defenses.get("madri")


def test_defaults_and_aliases_name_plugins_that_exist() -> None:
    for kind in (attacks, defenses):
        assert {kind.default, *(alias.plugin for alias in kind.aliases.values())} <= {*kind.names()}
        assert not kind.aliases.keys() & {*kind.names()}
