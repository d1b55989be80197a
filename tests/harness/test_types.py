"""One property of a defense decides if two calls on one image may differ."""

from __future__ import annotations

import pytest

from harness.registry import defenses
from harness.spec import build, parse
from harness.targets.defended import Defended


@pytest.mark.parametrize(
    ("text", "random"),
    [
        ("vanilla", False),
        ("vanilla(randomness=fixed)", False),
        ("menet-usvt", True),
        ("menet-usvt(randomness=per-input)", False),
        ("menet-usvt(randomness=fixed)", False),
        ("menet-usvt(p_low=1,p_high=1)", False),
        ("tvm", True),
        ("tvm(keep=1)", False),
    ],
)
def test_a_defense_is_random(text: str, random: bool) -> None:
    defense = build(parse(text), defenses)
    assert defense.is_random is random
    assert Defended(None, defense, 10).randomised is random  # type: ignore[arg-type]
