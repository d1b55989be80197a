"""Results folders with hostile content: named and left out, never awaited or believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import harness
from harness.cells.cells import Target, TrainingPlan
from harness.cli.main import main
from harness.registry import load_file
from harness.results import summaries
from harness.results.records import Failure, Record
from harness.storage.store import Store, render_json, write_atomic
from harness.storage.text import printable
from harness.types import HarnessError, Spec

zoo = load_file(Path(__file__).parents[1] / "helpers" / "zoo.py")

EVIL = "E\x1b[31m\u202e<b>|`@x\u2066\x07\x9b2J\u2028"
STEERING = "\x1b\u202e\u2066\x07\x9b\u2028"


def steers(text: str) -> bool:
    return any(each in text for each in STEERING)


def command(*words: object) -> Any:
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder of two records and one failure."""
    store = Store(tmp_path / "runs")
    store.prepare()
    for attack in ("pgd", "fgsm"):
        made = zoo.record([[True] * 5 + [False] * 7], attack)
        store.write_json("records", made.key, made)
        failed = Failure(key=f"{attack}-failed", cell=made.cell, reason=EVIL, kind="failed")
    store.write_json("failures", failed.key, failed)
    return store.results


def edit(folder: Path, change: Callable[[Any], object]) -> Path:
    """Change the first record, with a right checksum."""
    path = sorted((folder / "records").glob("*.json"))[0]
    value = json.loads(path.read_bytes())["value"]
    change(value)
    write_atomic(path, render_json(value))
    return path


def test_printable_keeps_what_is_text() -> None:
    assert printable("épsilon ‖x‖ ≤ 8/255 – 数\tx\n") == "épsilon ‖x‖ ≤ 8/255 – 数\tx\n"
    assert printable("\x1b[2J\u202e\udcff") == "\\x1b[2J\\u202e\\udcff"


def test_names_and_reasons_do_not_steer_the_terminal(folder: Path, tmp_path: Path) -> None:
    def change(value: Any) -> None:
        value["cell"]["attack"]["name"] = EVIL
        value["notes"] = [EVIL]
        value["flags"] = {"model-changed": EVIL}
        value["made"] = {"device": EVIL, "commit": EVIL}

    edit(folder, change)
    for words in (
        ("table", "--results", folder),
        ("table", "--results", folder, "--format", "csv"),
        ("verify", folder),
        ("verify", folder, EVIL),
    ):
        assert not steers(command(*words).output), words
    page = tmp_path / "page.html"
    command("report", "--results", folder, "--output", page)
    assert not steers(page.read_text()) and "<b>|" not in page.read_text()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", EVIL, "\udcff"])
def test_a_key_is_no_path(folder: Path, name: str) -> None:
    done = command("verify", folder, name)
    assert done.exit_code == 1 and "cannot name a file" in done.output


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["robust"].update(mean=7.0),
        lambda value: value["robust"].update(count=13),
        lambda value: value.update(count=-5),
        lambda value: value.update(count=10**15),
        lambda value: value.update(classes=0),
        lambda value: value.update(robust_outcomes=["AA=="]),
        lambda value: value.update(robust_outcomes=["@@@"]),
        lambda value: value.update(robust_outcomes=[]),
        lambda value: value.update(robust_votes="AAAAAAAA"),
    ],
)
def test_a_record_of_impossible_numbers_is_damaged(
    folder: Path, change: Callable[[Any], object]
) -> None:
    path = edit(folder, change)
    done = command("table", "--results", folder)
    assert done.exit_code == 1 and path.name in done.output and "fgsm" in done.output + str(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_what_is_no_file_is_named(folder: Path, kind: str) -> None:
    path = sorted((folder / "records").glob("*.json"))[0]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    done = command("table", "--results", folder)
    assert done.exit_code == 1 and path.name in done.output


# --- input ----------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Three classes by the mean of the image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat((1 - level, level, 0 * level), dim=1) * 50


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"epsilon": "8/255"}, "must be a number"),
        ({"epsilon": True}, "must be a number"),
        ({"epsilon": [0.1]}, "must be a number"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": 2**64}, "repeat the draws"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"attack": None}, "no attack is named"),
    ],
)
def test_wrong_words_are_one_line(words: dict[str, Any], says: str) -> None:
    images = torch.cat((torch.full((4, 1, 4, 4), 0.1), torch.full((4, 1, 4, 4), 0.9)))
    labels = torch.tensor([0] * 4 + [1] * 4)
    with pytest.raises(HarnessError, match=says):
        harness.evaluate(Tiny(), images, labels, **{"attack": "fgsm", "epsilon": 0.1, **words})


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, True])
def test_a_seed_is_of_64_bits(seed: int) -> None:
    with pytest.raises(HarnessError, match="seed"):
        Target(
            dataset="digits",
            model=Spec("small-cnn"),
            defense=Spec("vanilla"),
            training=TrainingPlan(epochs=1),
            seed=seed,
        )


# --- attacks without a ball -----------------------------------------------------------------------


def test_the_median_distance_is_of_the_images_as_returned(tmp_path: Path) -> None:
    """An attack without a ball leaves it: what it fools lies far away."""
    (found,) = zoo.measured(tmp_path, "vanilla", [zoo.named("Distant")], epsilon=0.1, limit=24)
    images = zoo.load("digits", "test").batch(slice(0, 24)).images
    assert found.returned.mean < 0.5 < found.robust.mean
    assert found.distances["median_linf"] == 1.0
    far = (1 - 2 * images).flatten(1).norm(dim=1)
    assert far.min() <= found.distances["median_l2"] <= far.max()


def test_the_worst_case_leaves_out_what_left_the_ball() -> None:
    inside: list[Record] = [zoo.record([[True, False]], name) for name in ("pgd", "fgsm")]
    outside = zoo.record([[False, False]], "approximate-input", flags={"mostly-outside": "far"})
    (line,) = summaries.worst_lines([*inside, outside])
    assert "worst of 2 attacks: 50.0%" in line
    assert outside.key not in summaries.worst_cases([*inside, outside])
