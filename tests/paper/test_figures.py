"""Figures: drawn from stored data alone, the same bytes each time, with the rows behind them."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from harness.cli.main import main
from harness.paper import protocol
from harness.paper.figures import draw, images
from harness.paper.figures.data import FOLDER, RankData, Ranks
from harness.paper.measured import Results
from harness.report import page
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.types import HarnessError
from tests.helpers.fabricated import features, fill, grey

ROOT = Path(__file__).parents[2]
SMOKE = protocol.profile("smoke")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def ranks() -> RankData:
    each = Ranks(
        dataset="digits", split="test", count=10, height=28, width=28, images_of_rank=(0, 2, 5, 3)
    )
    return RankData(basis="b", datasets=(each, each), missing=("svhn: not here",))


def test_every_figure_of_the_paper_without_torch(tmp_path: Path) -> None:
    names = [name for name in protocol.names() if "figure" in name]
    tables = [protocol.load(name) for name in names]
    fill(tmp_path, tables, SMOKE, leave_out=5)
    store = Store(tmp_path)
    store.write_json(FOLDER, "figure1", ranks())
    for name in ("figure4", "figure5"):
        store.write_json(FOLDER, name, features())
    results = Results(store)
    first = {
        path: path.read_bytes() for table in tables for path in draw.write(table, SMOKE, results)
    }
    assert len(first) == 3 * len(names)
    for path, content in first.items():
        assert content, path
        if path.suffix == ".svg":
            assert b"dc:date" not in content and b"<script" not in content
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.paper import protocol, render as drawing\n"
        "from harness.storage.store import Store\n"
        "tables = [protocol.load(name) for name in protocol.names() if 'figure' in name]\n"
        f"drawing.render(tables, protocol.profile('smoke'), Store(Path({str(tmp_path)!r})))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert {path: path.read_bytes() for path in first} == first


def test_what_is_missing_says_so(tmp_path: Path) -> None:
    Store(tmp_path).prepare()
    results = Results(Store(tmp_path))
    draw.write(protocol.load("figure4"), SMOKE, results)
    assert "not made yet" in rows(tmp_path / "figures" / "figure4.csv")[0]["reason"]
    draw.write(protocol.load("figure6"), SMOKE, results)
    found = rows(tmp_path / "figures" / "figure6.csv")
    assert all(row["measured"] == "" for row in found)  # the paper's curve alone
    assert "not measured" in (tmp_path / "figures" / "figure6.svg").read_text()


def test_figure_6_shows_the_trace_beside_the_papers_curve(tmp_path: Path) -> None:
    table, laptop = protocol.load("figure6"), protocol.profile("laptop")
    made = fill(tmp_path, [table], laptop)
    draw.write(table, laptop, Results(Store(tmp_path)))
    found = rows(tmp_path / "figures" / "figure6.csv")
    claimed = [row for row in found if row["claimed"]]
    assert len(claimed) == 54
    cifar = [r for r in found if r["Dataset"] == "CIFAR-10" and r["Method"] == "ME-Net (pure)"]
    assert [(r["steps"], r["claimed"]) for r in cifar][:2] == [("7", "58.9"), ("20", "50.6")]
    assert [r["steps"] for r in cifar if r["measured"]] == ["7", "20", "100"]
    keys = {each.key for each in made}
    assert {key for row in found if row["measured"] for key in row["key"].split()} == keys


def test_ranks_count_every_image(tmp_path: Path) -> None:
    drawing = draw.draw_ranks(protocol.load("figure1"), ranks())
    assert [row[2] for row in drawing.rows[:4]] == [0, 2, 5, 3]
    assert drawing.rows[3][4] == pytest.approx(1.0)


def test_approximate_rank_is_that_of_its_singular_values() -> None:
    from harness.datasets.data import load

    dataset = load("digits", "test").first(20)
    found = images.ranks(dataset, 20, Silent(), images.ranking("menet-usvt"))
    energy = np.linalg.svd(dataset.batch(slice(0, 20)).images[:, 0].double().numpy())[1] ** 2
    share = energy.cumsum(1) / energy.sum(1, keepdims=True)
    wanted = (share < 0.9).sum(1) + 1
    assert list(found.images_of_rank) == np.bincount(wanted).tolist()


def test_masks_keep_the_share_that_they_say() -> None:
    found = images.mask_data("digits", ["menet-usvt"], [0.3, 1.0], data_dir=None, report=Silent())
    masked, whole = (np.frombuffer(each.octets, np.uint8) for each in found.rows[0][1])
    original = np.frombuffer(found.original.octets, np.uint8)
    assert (whole == original).all()
    kept = (masked[original > 0] > 0).mean()
    assert 0.15 < kept < 0.45
    assert found.errors[0][1][0] > found.errors[0][1][1]
    with pytest.raises(HarnessError, match="test images 0 to"):
        images.mask_data("digits", [], [0.5], position=9999, data_dir=None, report=Silent())


def test_rank_and_reconstruct_on_the_command_line(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    done = CliRunner().invoke(
        main, ["rank", "--dataset", "digits", "--images", "30", "--output", folder]
    )
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(
        main, ["reconstruct", "--image", "3", "--defense", "menet-usvt", "--output", folder]
    )
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{n}.{s}" for n in ("rank", "reconstruct") for s in ("csv", "png", "svg")]
    assert sum(int(row["images"]) for row in rows(tmp_path / "out" / "rank.csv")) == 30


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_pixels(channels: int) -> None:
    picture = grey(channels=channels)
    head, _, encoded = page.data_uri(picture).partition(",")
    assert head == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    wanted = np.frombuffer(picture.octets, np.uint8).reshape(picture.shape)
    assert (shown.reshape(*shown.shape[:2], channels) == wanted.transpose(1, 2, 0)).all()


def test_pictures_round_to_eight_bits() -> None:
    image = torch.tensor([[[0.0, 0.5, 1.2, -1.0]]])
    assert list(images.to_picture(image).octets) == [0, 128, 255, 0]


def test_a_dollar_in_a_title_is_a_dollar(tmp_path: Path) -> None:
    r"""Not the beginning of a formula: `$\frac{$` is none, and would end the command."""
    for name in ("figure6", "figure-epsilon"):
        table = protocol.load(name)
        table.title = r"a $\frac{$ b"
        table.rows[0].labels[0] = r"$x_1$"
        fill(tmp_path / name, [table], SMOKE)
        draw.write(table, SMOKE, Results(Store(tmp_path / name)))
        assert r"a $\frac{$ b" in (tmp_path / name / "figures" / f"{name}.svg").read_text()


def test_a_trace_is_the_mean_over_the_seeds(tmp_path: Path) -> None:
    table = protocol.load("figure6")
    profile = msgspec.structs.replace(protocol.profile("laptop"), seeds=[0, 1])
    made = fill(tmp_path, [table], profile)
    store = Store(tmp_path)
    for each in made:
        if each.cell.target.seed == 1:
            trace = tuple(dataclasses.replace(p, accuracy=p.accuracy - 0.2) for p in each.trace)
            store.write_json("records", each.key, dataclasses.replace(each, trace=trace))
    draw.write(table, profile, Results(store))
    first = made[0].trace[0]
    found = [r for r in rows(tmp_path / "figures" / "figure6.csv") if r["steps"] == str(first.step)]
    measured = [float(row["measured"]) for row in found if row["measured"]]
    assert measured and measured == pytest.approx([first.accuracy - 0.1] * len(measured))
    assert {len(row["key"].split()) for row in found if row["measured"]} == {2}  # a record a seed


def test_a_defense_without_the_hook_ranks_nothing() -> None:
    with pytest.raises(HarnessError, match="approximate_rank"):
        images.ranking("vanilla")
