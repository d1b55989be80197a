"""The page stands alone, escapes what it shows, and leaves no record out."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from harness.cli.main import main
from harness.paper import expansion, protocol
from harness.paper.figures.data import FOLDER
from harness.paper.measured import Results, percent, verdict
from harness.paper.protocol import Row
from harness.report import page
from harness.results import summaries
from harness.results.records import Failure
from harness.results.statistics import in_percent
from harness.storage.store import Store
from harness.targets import own_models
from harness.types import ThreatModel
from tests.helpers.fabricated import features, fill, gallery, record

EVIL = '"><script>alert(1)</script>'


def results(folder: Path) -> Path:
    tables = [protocol.load(name) for name in ("table1", "table4", "table6", "figure4", "figure6")]
    tables[1].rows[0] = Row(
        labels=[EVIL, "Madry", "a", "b"], defense="madry", attack="pgd", model="resnet18"
    )
    made = fill(folder, tables, protocol.profile("smoke"), leave_out=7)
    gallery(folder, made)
    store = Store(folder)
    store.write_json(FOLDER, "figure4", features())
    store.write_json(
        "failures", "f", Failure(key="f", cell=made[0].cell, reason=EVIL, kind="failed")
    )
    return folder


def test_the_page_stands_alone(tmp_path: Path) -> None:
    text = page.page(Store(results(tmp_path)))
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    assert text.count("<script>") == 1


def test_what_it_shows_is_escaped(tmp_path: Path) -> None:
    text = page.page(Store(results(tmp_path)))
    assert EVIL not in text and "&#34;&gt;&lt;script&gt;alert(1)" in text


def test_every_record_has_its_provenance_and_every_number_a_link_to_one(tmp_path: Path) -> None:
    folder = results(tmp_path)
    text = page.page(Store(folder))
    ids = set(re.findall(r'id="record-(\w+)"', text))
    assert ids == {path.stem for path in (folder / "records").glob("*.json")}
    links = re.findall(r'href="#record-(\w+)"', text)
    assert links and set(links) <= ids
    targets = {
        link for link in re.findall(r'href="#([\w-]+)"', text) if not link.startswith("record-")
    }
    assert all(f'id="{target}"' in text for target in targets)


def test_the_mean_over_seeds_leads_to_the_record_of_every_seed(tmp_path: Path) -> None:
    table = protocol.load("table4")
    profile = msgspec.structs.replace(protocol.profile("smoke"), seeds=[0, 3])
    fill(tmp_path, [table], profile)
    text = page.page(Store(tmp_path))
    part = text[text.index('id="part-table4"') :]
    part, claims = part[: part.index("</table>")], text[: text.index('id="part-table4"')]
    numbers = Results(Store(tmp_path)).numbers(table, profile)
    assert {len(number.records) for number in numbers if number.records} == {2}
    for number in numbers:
        for each in number.records:
            said = f"seed {each.cell.target.seed}: {100 * each.robust.mean:.1f} ["
            assert re.search(rf'href="#record-{each.key}"[^>]*>{re.escape(said)}', part)
        if number.measured and verdict(number):
            assert f'<summary class="number">{percent(number.measured)}</summary>' in part
            for each in number.records:
                said = f"record of seed {each.cell.target.seed}"
                assert f'href="#record-{each.key}">{said}</a>' in claims


def test_unique_ids(tmp_path: Path) -> None:
    found = re.findall(r'\sid="([^"]+)"', page.page(Store(results(tmp_path))))
    assert len(found) == len(set(found))


def test_for_a_screen_reader(tmp_path: Path) -> None:
    text = page.page(Store(results(tmp_path)))
    assert '<html lang="en">' in text and 'class="skip"' in text
    for image in re.findall(r"<img[^>]*>", text):
        assert re.search(r'alt="[^"]+"', image)
    for table in re.findall(r"<table.*?</table>", text, re.S):
        assert "<caption" in table and 'scope="col"' in table and 'scope="row"' in table


def test_the_same_page_each_time_without_torch(tmp_path: Path) -> None:
    folder = results(tmp_path)
    first = page.page(Store(folder))
    code = (
        "import sys\nfrom harness.cli.main import main\n"
        f"main(['report', '--results', {str(folder)!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert (folder / "report.html").read_text() == first


def test_records_alone_make_a_page(tmp_path: Path) -> None:
    """Of `harness run`, with no table of the paper in sight."""
    table = protocol.load("table3")
    made = fill(tmp_path, [table], protocol.profile("smoke"))
    for path in (tmp_path / "protocols").iterdir():
        path.unlink()
    text = page.page(Store(tmp_path))
    assert "No claims of the paper" in text and f"record-{made[0].key}" in text


def test_no_records(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", "--results", str(tmp_path)])
    assert done.exit_code == 2 and "no records in" in done.output


def test_a_record_without_distances_or_passes_does_not_break_it(tmp_path: Path) -> None:
    place = expansion.expand(protocol.load("table3"), protocol.profile("smoke"))[0]
    store = Store(tmp_path)
    store.prepare()
    found = dataclasses.replace(record(place.cells[0]), distances={}, passes={}, made={})
    store.write_json("records", found.key, found)
    assert found.key in page.page(store)


@pytest.mark.parametrize("state", list(page.STATES))
def test_states_are_told_by_words_and_not_by_colour_alone(tmp_path: Path, state: str) -> None:
    text = page.page(Store(results(tmp_path)))
    tile = re.search(rf'<li class="tile {state}">.*?</li>', text, re.S)
    assert tile and state in re.sub("<[^>]+>", " ", tile.group(0))


@pytest.mark.parametrize("name", ["records", "claims", "gallery", "overview", "main", "dialog"])
def test_a_table_of_ones_own_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Its anchor is not taken for a part of the page."""
    table = protocol.load("table3")
    table.name = name
    made = fill(tmp_path, [table], protocol.profile("smoke"))
    gallery(tmp_path, made)
    text = page.page(Store(tmp_path))
    found = re.findall(r'\sid="([^"]+)"', text)
    assert len(found) == len(set(found)) and f'href="#part-{name}"' in text


def test_a_table_without_heads_has_as_many_headings_as_cells(tmp_path: Path) -> None:
    table = protocol.load("table2")
    table.heads = []
    fill(tmp_path, [table], protocol.profile("smoke"))
    text = page.page(Store(tmp_path))
    part = text[text.index('id="part-table2"') :]
    rows = re.findall(r"<tr>(.*?)</tr>", part[: part.index("</table>")], re.S)
    counts = {len(re.findall(r"<t[hd][ >]", row)) for row in rows}
    assert len(counts) == 1, counts


def test_records_that_differ_in_ball_or_seed_can_be_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    place = expansion.expand(protocol.load("table3"), protocol.profile("smoke"))[0]
    cell = place.cells[0]
    for seed, threat in (
        (0, cell.threat),
        (1, cell.threat),
        (0, ThreatModel(epsilon=0.3, norm="l2")),
    ):
        target = dataclasses.replace(cell.target, seed=seed)
        made = record(dataclasses.replace(cell, target=target, threat=threat))
        store.write_json("records", made.key, made)
    body = re.search(r'<table id="all-records".*?</table>', page.page(store), re.S)
    assert body is not None
    rows = re.findall(r"<tr data-flags.*?</tr>", body.group(), re.S)
    seen = {tuple(re.findall(r"<td[^>]*>([^<]*)</td>", row)[:5]) for row in rows}
    assert len(seen) == len(rows) == 3


def test_the_worst_case_stands_beside_every_attack(tmp_path: Path) -> None:
    fill(tmp_path, [protocol.load("table5")], protocol.profile("smoke"))
    results = Results(Store(tmp_path))
    worst = summaries.worst_cases(results.loaded.records)
    assert worst
    text = page.page(Store(tmp_path))
    for case, group in ((worst[r.key], r) for r in results.loaded.records if r.key in worst):
        assert f">{in_percent(case.mean, case.interval)}</td>" in text
        assert case.mean <= group.robust.mean + 0.0005


def test_given_weights_were_not_trained_here(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    cell = expansion.expand(protocol.load("table3"), protocol.profile("smoke"))[0].cells[0]
    target = dataclasses.replace(cell.target, training=own_models.GIVEN)
    made = record(dataclasses.replace(cell, target=target))
    store.write_json("records", made.key, made)
    text = page.page(store)
    assert "came with its weights" in text and "0 epochs" not in text
