from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from harness.registry import Registry
from harness.spec import build, parse
from harness.types import HarnessError, Spec, number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """A thing."""

    steps: int = 3
    size: float | None = None
    mode: Literal["one", "two"] = "one"
    flag: bool = False
    sides: tuple[int, ...] = ()


@pytest.fixture
def things() -> Registry:
    registry = Registry("thing", None, "harness.things")
    registry.register("thing")(Thing)
    registry.register("preset", steps=9)(Thing)
    return registry


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("pgd", Spec("pgd")),
        ("pgd(steps=40, step-size=2/255)", Spec("pgd", {"steps": "40", "step_size": "2/255"})),
        ("transfer(pgd(steps=40))", Spec("transfer", {}, Spec("pgd", {"steps": "40"}))),
        ("transfer(pgd(),seed=3)", Spec("transfer", {"seed": "3"}, Spec("pgd"))),
        ("my.py:Attack(size=3)", Spec("my.py:Attack", {"size": "3"})),
        ("thing(sides=(1,2))", Spec("thing", {"sides": "(1,2)"})),
    ],
)
def test_parse(text: str, spec: Spec) -> None:
    assert parse(text) == spec


@pytest.mark.parametrize("text", ["", "(", "pgd(", "pgd)", "pgd(steps=1", "pgd(a))(b)", "p(a=1,b)"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(HarnessError):
        parse(text)


def test_a_spec_prints_as_it_is_written() -> None:
    spec = parse("transfer(pgd(steps=40,step_size=0.01),seed_offset=2)")
    assert parse(str(spec)) == spec


def test_build_converts_by_the_fields_types(things: Registry) -> None:
    spec = parse("thing(steps=7,size=8/255,mode=two,flag=true,sides=(1,2))")
    assert build(spec, things) == Thing(steps=7, size=8 / 255, mode="two", flag=True, sides=(1, 2))
    assert build(parse("thing(size=none)"), things).size is None
    assert build(parse("preset"), things).steps == 9
    assert build(parse("preset(steps=2)"), things).steps == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thing(step=3)", ["step", "steps"]),
        ("thing(steps=many)", ["steps=many", "int"]),
        ("thing(mode=three)", ["three", "one, two"]),
        ("thng", ["thng", "thing"]),
        ("thing(thing)", ["takes no other"]),
    ],
)
def test_build_says_what_was_given_and_what_is_allowed(
    things: Registry, text: str, words: list[str]
) -> None:
    with pytest.raises(HarnessError) as raised:
        build(parse(text), things)
    for word in words:
        assert word in str(raised.value)


def test_numbers() -> None:
    assert number("8/255") == 8 / 255
    assert number("0.3") == 0.3
    for text in ("8/0", "a", "1/2/3", ""):
        with pytest.raises(HarnessError):
            number(text)
