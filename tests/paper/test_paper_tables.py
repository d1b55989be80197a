"""Tables from records: the paper's order, no number without its record, the same bytes each time."""

from __future__ import annotations

import csv
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from harness.cells.cells import Cell
from harness.paper import expansion, protocol, sheets, tables
from harness.paper.measured import Results, cell_name, percent, verdict
from harness.paper.protocol import Protocol, Row
from harness.results import worst_case
from harness.results.records import Failure
from harness.storage.store import Store
from tests.helpers.fabricated import fill, record

ROOT = Path(__file__).parents[2]
SMOKE = protocol.profile("smoke")


def made(folder: Path, name: str, **options: int) -> tuple[Protocol, Results]:
    table = protocol.load(name)
    fill(folder, [table], SMOKE, **options)
    return table, Results(Store(folder))


def body(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_papers_order_of_rows_and_columns(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table4")
    sheet = tables.sheet(table, SMOKE, results.numbers(table, SMOKE))
    assert sheet.header == [
        *("Network", "Method", "Type", "Steps"),
        *("claimed", "measured", "after the adaptive suite", "flags"),
    ]
    assert [row[1] for row in sheet.body] == ["Madry", "ME-Net", "Madry", "Thermometer", "ME-Net"]
    assert [row[4] for row in sheet.body] == ["45.0", "52.8", "46.8", "12.3", "55.1"]


def test_a_record_from_before_precision_was_said_still_answers_its_cell() -> None:
    cell = expansion.expand(protocol.load("table2"), SMOKE)[0].cells[0]
    said = msgspec.to_builtins(cell)
    assert said["target"].pop("precision") == "auto"
    assert cell_name(msgspec.convert(said, Cell)) == cell_name(cell)
    half = dataclasses.replace(cell, target=dataclasses.replace(cell.target, precision="bfloat16"))
    assert cell_name(half) != cell_name(cell)


def test_every_number_is_that_of_a_record_and_says_its_interval(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table2")
    numbers = results.numbers(table, SMOKE)
    assert all(number.measured for number in numbers)
    for number in numbers:
        (found,) = number.records
        assert number.measured is not None
        assert number.measured.mean == found.robust.mean
        low, high = found.robust.interval
        assert percent(number.measured) == (
            f"{100 * found.robust.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        )


def test_missing_cells_are_dashes_and_failed_ones_say_why(tmp_path: Path) -> None:
    table = protocol.load("table3")
    store = Store(tmp_path)
    store.prepare()
    places = expansion.expand(table, SMOKE)
    for place, kind in ((places[0], "refused"), (places[1], "failed")):
        cell = place.cells[0]
        failure = Failure(key=f"f{place.row}", cell=cell, reason="it | broke", kind=kind)
        store.write_json("failures", failure.key, failure)
    sheet = tables.sheet(table, SMOKE, Results(store).numbers(table, SMOKE))
    assert [row[4] for row in sheet.body] == ["refused: it | broke", "failed: it | broke", "–", "–"]
    assert [row[-1] for row in sheet.body] == ["–"] * 4
    assert "Nothing is measured yet." in sheet.caption
    assert "refused: it \\| broke" in sheets.markdown(sheet)


def test_unknown_claims_are_dashes(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table1")
    rows = body(sheets.markdown(tables.sheet(table, SMOKE, results.numbers(table, SMOKE))))
    vanilla = rows[2]
    assert vanilla[2:12:2] == ["–", "–", "–", "–", "0.0"]


def test_the_worst_case_over_all_attacks_on_one_model(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table5")
    number = results.numbers(table, SMOKE)[0]
    group = [
        found
        for found in results.loaded.records
        if found.cell.target == number.records[0].cell.target
    ]
    assert number.after is not None and len(group) == 3
    expected = worst_case.worst_case(sorted(group, key=lambda found: found.key))
    alone = min(found.robust.mean for found in group)
    assert number.after.share.mean == min(expected.mean, alone)
    assert number.measured is not None and number.after.share.mean <= number.measured.mean
    single, other = made(tmp_path / "other", "table4")
    assert all(each.after is None for each in other.numbers(single, SMOKE))


def test_table_6_has_one_model_in_a_row(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table6")
    for row in range(len(table.rows)):
        found = [n for n in results.numbers(table, SMOKE) if n.place.row == row]
        assert len({repr(number.records[0].cell.target) for number in found}) == 1
    claimed = [n.place.claim.value for n in results.numbers(table, SMOKE) if n.place.claim]
    assert claimed == [93.4, 0.0, 0.0, 94.8, 89.4, 51.9, 94.9, 91.3, 52.3, 94.8, 91.0, 52.8]


def test_caption_says_what_was_scaled_down(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table4")
    text = " ".join(tables.caption(table, SMOKE, results.numbers(table, SMOKE)))
    for part in (
        "Profile smoke",
        "mnist in place of cifar10",
        "small-cnn in place of resnet18",
        "of 39,200 updates",
        "of 1,000 attack steps",
        "40 test images",
        "scoring draws",
        "seeds 0",
        "commit 0123456789ab",
        "No number here tests a claim",
    ):
        assert part in text, part


def test_the_same_bytes_each_time_and_without_torch(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table6", leave_out=4)
    first = {path: path.read_bytes() for path in tables.write(table, SMOKE, results)}
    assert {path.suffix for path in first} == {".md", ".csv", ".tex"}
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.paper import protocol, tables as paper_tables\n"
        "from harness.paper.measured import Results\nfrom harness.storage.store import Store\n"
        f"results = Results(Store(Path({str(tmp_path)!r})))\n"
        "table, profile = protocol.load('table6'), protocol.profile('smoke')\n"
        "paper_tables.write(table, profile, results)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert {path: path.read_bytes() for path in first} == first


def test_names_cannot_break_a_format(tmp_path: Path) -> None:
    table = protocol.load("table2")
    table.rows[0] = Row(labels=["=1+1 | <script>", "50 % \\ $_{x}#~^&"], defense="vanilla")
    fill(tmp_path, [table], SMOKE)
    results = Results(Store(tmp_path))
    numbers = results.numbers(table, SMOKE)
    sheet = tables.sheet(table, SMOKE, numbers)
    markdown = sheets.markdown(sheet)
    assert "=1+1 \\| &lt;script>" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(sheet.header) + 1}
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(table, numbers))))
    assert rows[0]["Method"] == "'=1+1 | <script>"
    latex = sheets.latex(sheet)
    assert r"50 \% \textbackslash{} \$\_\{x\}\#\textasciitilde{}\textasciicircum{}\&" in latex
    assert latex.count(r"\begin{tabular}") == 1


def test_csv_holds_every_number_in_full(tmp_path: Path) -> None:
    table, results = made(tmp_path, "table5")
    numbers = results.numbers(table, SMOKE)
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(table, numbers))))
    assert len(rows) == len(numbers) == 6
    for row, number in zip(rows, numbers, strict=True):
        assert float(row["measured"]) == number.records[0].robust.mean
        assert row["keys"] == number.records[0].key
        assert row["verdict"] in ("untested", "")


# --- what becomes of a claim ------------------------------------------------------------------------


@pytest.mark.parametrize(("robust", "state"), [(0.0, "fell"), (0.95, "holds")])
def test_only_the_papers_scale_decides(tmp_path: Path, robust: float, state: str) -> None:
    table, paper = protocol.load("table4"), protocol.profile("paper")
    store = Store(tmp_path)
    store.prepare()
    for place in expansion.expand(table, paper):
        found = record(place.cells[0], robust=robust)
        store.write_json("records", found.key, found)
    judged = [verdict(number) for number in Results(store).numbers(table, paper)]
    assert [each.state for each in judged if each] == [state] * 5
    smaller, results = made(tmp_path / "small", "table4")
    hints = [verdict(number) for number in results.numbers(smaller, SMOKE)]
    assert all(each and each.scaled_down for each in hints)
    assert [each.state for each in hints if each].count("holds") == 0


def test_what_others_refuted_has_fallen(tmp_path: Path) -> None:
    """Tramer et al. 2020 on the authors' own checkpoint."""
    store = Store(tmp_path)
    store.prepare()
    numbers = Results(store).numbers(protocol.load("table6"), SMOKE)
    judged = {n.place.row: verdict(n) for n in numbers if n.place.column == 2}
    usvt, nuclear = judged[2], judged[6]
    assert usvt is not None and usvt.state == "fell" and "Tramer et al. 2020" in usvt.says
    assert nuclear is not None and nuclear.state == "untested"


def test_a_published_refutation_stands_beside_the_claims_own_attack(tmp_path: Path) -> None:
    """The same attack at full scale does not lift what another attack has broken."""
    table, paper = protocol.load("table6"), protocol.profile("paper")
    store = Store(tmp_path)
    store.prepare()
    place = next(p for p in expansion.expand(table, paper) if p.row == 2 and p.column == 2)
    found = record(place.cells[0], robust=0.95)
    store.write_json("records", found.key, found)
    judged = verdict(Results(store).number(place))
    assert judged is not None and judged.state == "fell" and not judged.scaled_down
    assert (
        "Tramer et al. 2020" in judged.says
        and percent(
            Results(store).number(place).measured  # type: ignore[arg-type]
        )
        in judged.says
    )


def test_white_box_attacks_refute_no_black_box_claim(tmp_path: Path) -> None:
    """Table 6, black-box column: 91.0 under PGD-40 on an independently trained copy."""
    table, paper = protocol.load("table6"), protocol.profile("paper")
    store = Store(tmp_path)
    store.prepare()
    row = [place for place in expansion.expand(table, paper) if place.row == 5]
    for place in row:
        black = place.claim is not None and place.claim.black_box
        found = record(place.cells[0], robust=1.0 if black else 0.0)
        store.write_json("records", found.key, found)
    numbers = [Results(store).number(place) for place in row]
    judged = {n.place.column: verdict(n) for n in numbers}
    black = next(n for n in numbers if n.place.claim and n.place.claim.black_box)
    assert black.after is not None and black.after.share.mean < 0.1
    said = judged[black.place.column]
    assert said is not None and said.state == "holds"


def test_a_table_without_heads_keeps_its_rows_apart(tmp_path: Path) -> None:
    table = protocol.load("table2")
    table.heads = []
    fill(tmp_path, [table], SMOKE)
    numbers = Results(Store(tmp_path)).numbers(table, SMOKE)
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(table, numbers))))
    assert [(row["label 1"], row["label 2"]) for row in rows][::2] == [
        tuple(row.labels) for row in table.rows
    ]
    sheet = tables.sheet(table, SMOKE, numbers)
    assert {len(row) for row in sheet.body} == {len(sheet.header)}


@pytest.mark.parametrize("label", ["[2em] x", "* x"])
def test_a_row_is_not_read_as_an_argument_of_latex(tmp_path: Path, label: str) -> None:
    table = protocol.load("table2")
    table.heads[0] = table.rows[0].labels[0] = label
    numbers = Results(Store(tmp_path)).numbers(table, SMOKE)
    latex = sheets.latex(tables.sheet(table, SMOKE, numbers))
    assert latex.count("{}" + label) == 2


def test_stand_ins_are_those_of_the_tables_own_records(tmp_path: Path) -> None:
    """Records of another dataset in the folder do not hide the table's."""
    table = protocol.load("table3")
    store = Store(tmp_path)
    store.prepare()
    for place in expansion.expand(table, SMOKE, {"cifar10": "digits"}):
        found = record(place.cells[0])
        store.write_json("records", found.key, found)
    other = expansion.expand(protocol.load("table5"), SMOKE)[0].cells[0]
    assert other.target.dataset == "mnist"
    found = record(other)
    store.write_json("records", found.key, found)
    numbers = Results(store).numbers(table, SMOKE)
    assert numbers and all(n.measured for n in numbers if n.place.cells)


def test_several_seeds_are_said_in_the_caption(tmp_path: Path) -> None:
    table = protocol.load("table4")
    for seeds, says in (([0], False), ([0, 1], True)):
        profile = msgspec.structs.replace(SMOKE, seeds=seeds)
        folder = tmp_path / str(len(seeds))
        fill(folder, [table], profile)
        numbers = Results(Store(folder)).numbers(table, profile)
        text = " ".join(tables.caption(table, profile, numbers))
        assert ("and the seeds" in text) is says
