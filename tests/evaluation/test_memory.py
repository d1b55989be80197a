"""Out of memory halves the batch and goes on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from harness.cli.main import main
from harness.results.records import Record
from harness.storage.store import Store
from harness.targets import memory
from harness.types import HarnessError

Ask = Callable[..., dict[str, Any]]
GUEST = '''
import dataclasses
import torch
from harness.types import Attack, Perturbed

@dataclasses.dataclass(frozen=True, kw_only=True)
class Hungry(Attack):
    """Takes so many megabytes an image."""

    megabytes: int = 0
    most: int = 1000

    def perturb(self, victim, batch, threat, draws):
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken = torch.ones(len(batch), self.megabytes, 2**18)
        noise = draws.uniform(*batch.images.shape[1:]) * 0.01
        return Perturbed((batch.images + noise + 0 * taken.sum()).clamp(0, 1))
'''
RUN = shlex.split(
    "run --dataset digits --defense vanilla --limit 32 --draws 1 --epochs 1 -T limit=40 "
    "--batch-size 32"
)


@pytest.fixture
def guest(tmp_path: Path) -> str:
    path = tmp_path / "hungry.py"
    path.write_text(GUEST)
    return f"{path}:Hungry"


def records(folder: Path) -> list[Record]:
    stored = Store(folder)
    found = [stored.read_json("records", name, Record) for name in stored.names("records")]
    return [record for record in found if record is not None]


def test_out_of_memory_halves_the_batch_and_keeps_every_draw(guest: str, tmp_path: Path) -> None:
    for name, most in (("plenty", 1000), ("little", 5)):
        attack = ["--attack", guest, "-A", f"most={most}", "--results", str(tmp_path / name)]
        done = CliRunner().invoke(main, [*RUN, *attack])
        assert done.exit_code == 0, done.output
        if name == "little":
            assert "out of memory: batches of 16 from here on" in done.output
            assert "out of memory: batches of 4 from here on" in done.output
    (plenty,), (little,) = records(tmp_path / "plenty"), records(tmp_path / "little")
    assert little.robust_outcomes == plenty.robust_outcomes
    assert little.images == plenty.images  # the attacked images, bit for bit
    assert len(list((tmp_path / "little").glob("progress/*/*-4.safetensors"))) == 8


def test_one_image_that_does_not_fit_is_one_cells_failure(guest: str, tmp_path: Path) -> None:
    words = ["--attack", guest, "-A", "most=0", "--results", str(tmp_path / "store")]
    done = CliRunner().invoke(main, [*RUN, *words])
    assert done.exit_code == 2
    assert "OutOfMemoryError" in done.output and "Traceback" not in done.output


def test_a_stated_limit_is_met_with_smaller_batches(ask: Ask, guest: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [*RUN, "--attack", guest, "-A", "megabytes=64", "--results", str(tmp_path / "store")]
    assert ask(arguments=[*words, "--memory", "1MB"], log=log)["status"] == 2
    used = re.search(r"before any work: (\d+) MB", log.read_text())
    assert used is not None
    limit = int(used[1]) + 64 * 20  # a batch of 32 takes 2 GB, one of 16 half of it
    assert ask(arguments=[*words, "--memory", f"{limit}MB"], log=log)["status"] == 0
    text = log.read_text()
    assert "out of memory: batches of 16 from here on" in text
    assert "batches of 4 " not in text


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("4GB", 4 << 30), ("512M", 512 << 20), ("1.5 g", 3 << 29), ("100", 100), ("2TiB", 2 << 40)],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert memory.size(text) == bytes_


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "4 apples", "1e9", "1,5GB"])
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="not a size of memory"):
        memory.size(text)


def test_what_says_that_memory_ran_out() -> None:
    assert memory.exhausted(torch.OutOfMemoryError("x"))
    assert memory.exhausted(MemoryError())
    assert memory.exhausted(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not memory.exhausted(RuntimeError("shapes do not fit"))
    assert not memory.exhausted(ValueError("can't allocate memory"))
