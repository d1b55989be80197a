"""A run that is stopped, overtaken by another run, and continued: it uses the results that exist."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.random import OpaqueDraws
from harness.storage import log
from harness.storage.progress import Silent
from harness.storage.store import DamagedFile
from harness.targets import estimates
from harness.targets.defended import Defended
from harness.targets.training import Stop
from harness.types import Dataset, Defense

COUNT, CHUNK = 24, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow(Defense):
    """Darkens each image at random; `during` is called before each chunk."""

    randomised = True
    estimates: int = 2
    during: Callable[[int], object] = lambda call: None
    calls: list[int] = dataclasses.field(default_factory=list)

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        self.calls.append(len(self.calls))
        self.during(len(self.calls))
        return images * draws.uniform(1, 1, 1)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_CHUNK", CHUNK)
    monkeypatch.setattr(estimates, "SAVE_EVERY", 0.0)


def make(path: Path, dataset: Dataset, defense: Slow, mended: list[Any]) -> estimates.Estimates:
    def mend(error: DamagedFile) -> None:
        mended.append(error)
        error.path.unlink()

    return estimates.obtain(
        path,
        Defended(nn.Identity(), defense, 10),
        dataset.first(COUNT),
        seed=0,
        device=torch.device("cpu"),
        reporter=Silent(),
        stop=Stop(),
        mend=mend,
    )


@pytest.mark.parametrize("call", [1, 2, 4, 6])
def test_estimates_that_another_run_finished_meanwhile_are_taken(
    call: int, digits_test: Dataset, tmp_path: Path
) -> None:
    mended: list[Any] = []
    alone = make(tmp_path / "alone.bytes", digits_test, Slow(), mended)
    path = tmp_path / "shared.bytes"
    content: list[bytes] = []

    def overtaken(now: int) -> None:
        if now == call:
            make(path, digits_test, Slow(), mended)
            content.append(path.read_bytes())

    slow = Slow(during=overtaken)
    found = make(path, digits_test, slow, mended)
    assert (found.values == alone.values).all() and not mended
    assert path.read_bytes() == content[0] == (tmp_path / "alone.bytes").read_bytes()
    assert len(slow.calls) == call, "it makes nothing any more"
    assert {each.name for each in tmp_path.iterdir()} == {
        *("alone.bytes", "alone.json", "shared.bytes", "shared.json")
    }


def test_damaged_estimates_of_another_run_are_made_anew(
    digits_test: Dataset, tmp_path: Path
) -> None:
    mended: list[Any] = []
    path = tmp_path / "shared.bytes"

    def spoilt(now: int) -> None:
        if now == 2:
            make(path, digits_test, Slow(), mended)
            path.write_bytes(b"x" * path.stat().st_size)

    found = make(path, digits_test, Slow(during=spoilt), mended)
    assert len(mended) == 1
    expected = make(tmp_path / "alone.bytes", digits_test, Slow(), mended)
    assert (found.values == expected.values).all()


def test_waiting_is_noted_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines: list[str] = []
    with log.to(lines):
        for cell in ("a", "b"):
            with log.about(cell):
                for _ in range(240):  # two minutes, twice a second
                    log.now_and_then("cell waits", "for another")
                    now[0] += 0.5
    told = [json.loads(line)["cell"] for line in lines]
    assert told == ["a", "a", "b", "b"]
    with log.to(again := []), log.about("a"):
        log.now_and_then("cell waits", "for another")
    assert len(again) == 1, "another log starts anew"
