"""The kit finds each broken promise, and nothing in plugins that keep them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import main
from harness.conformance import check as kit
from harness.types import HarnessError

HEAD = """
import dataclasses
import torch
from harness.geometry import project
from harness.types import Attack, Defense, Perturbed
kept = []
"""
ATTACK = """
@dataclasses.dataclass(frozen=True, kw_only=True)
class Guest(Attack):
    "Does one thing that it must not."
    access = "{access}"
    def perturb(self, victim, batch, threat, draws):
        x = project(batch.images + threat.epsilon, batch.images, threat)
        {line}
        return Perturbed(x)
"""
DEFENSE = """
@dataclasses.dataclass(frozen=True, kw_only=True)
class Guest(Defense):
    "Does one thing that it must not."
    randomised = {randomised}
    backward = "{backward}"
    def transform(self, images, draws, auxiliary=None):
        {line}
"""


def broken(path: Path, source: str, name: str) -> str:
    """Why the first check whose name begins so fails; empty where it passes."""
    path.write_text(HEAD + source)
    check = next(check for check in kit.checks(f"{path}:Guest") if check.name.startswith(name))
    return kit.finding(check).reason


@pytest.mark.parametrize(
    ("line", "check", "said"),
    [
        ("x = batch.images + 2 * threat.epsilon", "ball, box and purity", "leave ball or box"),
        ("x = x + float('nan')", "ball, box and purity", "not finite"),
        ("x = x[:, :, 1:]", "ball, box and purity", "shape"),
        ("batch.images.mul_(0.5)", "ball, box and purity", "in place"),
        ("torch.rand(1)", "ball, box and purity", "random state of torch"),
        ("x = project(x - torch.rand(1) / 20, batch.images, threat)", "deterministic", "differ"),
        ("x = project(x - x.mean() / 9, batch.images, threat)", "batch independent", "rest of its"),
        ("kept.append(x)", "holds no memory", "keep no state"),
        ("x = x if len(x) != 1 else 1 / 0", "one image and none", "ZeroDivision"),
    ],
)
def test_a_broken_attack_is_found(tmp_path: Path, line: str, check: str, said: str) -> None:
    assert said in broken(tmp_path / "guest.py", ATTACK.format(line=line, access="none"), check)


def test_more_access_than_declared_is_found(tmp_path: Path) -> None:
    line = "victim.gradient(x, draws, lambda logits: logits.sum(dim=1))"
    source = ATTACK.format(line=line, access="labels")
    assert "access" in broken(tmp_path / "guest.py", source, "declared access")


@pytest.mark.parametrize(
    ("line", "randomised", "backward", "check", "said"),
    [
        ("return images * draws.uniform(1, 1, 1)", False, "exact", "randomness as", "another"),
        ("return images", True, "exact", "randomness as", "the same"),
        ("return images * torch.rand(1)", True, "exact", "randomness as", "does not hold it"),
        ("return (images * 6).round() / 6 + 0.01 * images", False, "exact", "backward", "exact"),
        ("return 1 - images", False, "identity", "backward", "against finite differences"),
        ("return (images * 6).round() / 6", False, "identity", "backward", "differentiable"),
        ("return images.round()", False, "exact", "gradient where", "zero"),
        ("return images / images.max()", False, "exact", "same in any batch", "rest of its batch"),
        ("return images.mul_(0.5)", False, "exact", "pure", "in place"),
        ("return images + 0 * torch.rand(1)", False, "exact", "pure", "random state"),
        ("return images[:, :, 1:]", False, "exact", "pure", "size"),
        ("return images / 0", False, "exact", "pure", "not finite"),
        ("kept.append(images * 1); return images", False, "exact", "holds no memory", "state"),
    ],
)
def test_a_broken_defense_is_found(
    tmp_path: Path, line: str, randomised: bool, backward: str, check: str, said: str
) -> None:
    source = DEFENSE.format(line=line, randomised=randomised, backward=backward)
    assert said in broken(tmp_path / "guest.py", source, check)


def test_registered_plugins_by_name() -> None:
    word = "menet-usvt(masks=2,estimates=2)"
    assert not [finding for finding in kit.findings(word) if finding.reason]
    assert not [finding for finding in kit.findings("fgsm") if finding.reason]


def test_what_is_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    for word in (f"{tmp_path}/empty.py", "nonsense", f"{tmp_path}/none.py"):
        with pytest.raises(HarnessError):
            kit.checks(word)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "guest.py"
    path.write_text(HEAD + ATTACK.format(line="x = x + 1", access="none"))
    done = CliRunner().invoke(main, ["check", str(path)])
    assert done.exit_code == 1 and "FAILED  Guest: ball, box" in done.output
    assert "docs/plugins.md" in done.output
