"""Protocols as data: what comes with the harness is whole, and what is wrong is refused in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.cli.main import main
from harness.evaluation import suites
from harness.paper import claims, comparison, expansion, protocol
from harness.paper.protocol import Profile
from harness.spec import build, parse
from harness.types import HarnessError, ThreatModel

HEAD = 'kind = "table"\ntitle = "T"\ncaption = "c"\n'
GRID = HEAD + '[[columns]]\ntitle = "Clean"\nattack = "clean"\n[[rows]]\nlabels = ["a"]\n'
ROW = 'dataset = "digits"\nmodel = "small-cnn"\ndefense = "vanilla"\n'


def own(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


# --- what comes with the harness --------------------------------------------------------------------


def test_all_tables_and_figures_of_the_paper_are_there() -> None:
    wanted = [f"table{n}" for n in range(1, 8)] + [f"figure{n}" for n in (1, 2, 4, 5, 6)]
    assert protocol.names()[: len(wanted)] == wanted
    assert "beyond" in protocol.names()
    assert list(protocol.profiles()) == ["smoke", "laptop", "gpu", "paper"]


@pytest.mark.parametrize("profile", list(protocol.profiles()))
def test_every_protocol_expands_under_every_profile(profile: str) -> None:
    chosen = protocol.profile(profile)
    for name in protocol.names():
        table = protocol.load(name)
        places = expansion.expand(table, chosen)
        assert len(places) == len(table.rows) * len(table.columns)
        assert all(place.cells or place.skip for place in places)
        if profile == "paper":
            assert all(place.full_scale for place in places if place.cells)
        if profile == "smoke":
            assert not any(place.full_scale for place in places)


@pytest.mark.parametrize("profile", list(protocol.profiles()))
def test_every_plugin_and_parameter_that_they_name_exists(profile: str) -> None:
    from harness.paper.reproduce import check_plugins

    chosen = protocol.profile(profile)
    for name in protocol.names():
        table = protocol.load(name)
        check_plugins(table, expansion.expand(table, chosen))


def test_every_claim_about_a_table_stands_in_one_place() -> None:
    paper = protocol.profile("paper")
    found: list[tuple[object, ...]] = []
    for name in protocol.names():
        places = expansion.expand(protocol.load(name), paper)
        found += [p.claim.key for p in places if p.claim and p.claim.id != "figure6"]
    wanted = [claim.key for claim in claims.load() if claim.id != "figure6"]
    assert sorted(map(str, found)) == sorted(map(str, wanted))


def test_values_are_the_papers_and_unknown_ones_are_none() -> None:
    place = expansion.expand(protocol.load("table4"), protocol.profile("paper"))[1]
    assert place.claim is not None and place.claim.value == 52.8
    first = expansion.expand(protocol.load("table1"), protocol.profile("paper"))[0]
    assert first.claim is not None and first.claim.value is None


def test_published_settings() -> None:
    """Section 3: epsilon 8/255, steps of 2/255, 1,000 steps, the last iterate of one run."""
    (cell,) = expansion.expand(protocol.load("table4"), protocol.profile("paper"))[1].cells
    assert str(cell.attack) == f"bpda(keep=last,step_size={2 / 255!r},steps=1000)"
    assert cell.threat.epsilon == 8 / 255 and cell.limit is None
    assert cell.target.training.epochs == 200
    assert (
        str(cell.target.training.inner)
        == "pgd(backward=declared,keep=last,step_size=2/255,steps=7)"
    )
    pure = expansion.expand(protocol.load("table1"), protocol.profile("paper"))[-1].cells[0]
    assert str(pure.target.defense) == "menet-nuc(p_high=1.0,p_low=0.8)"


def test_beyond_is_the_adaptive_suite() -> None:
    """The recipes here and `suites/adaptive.toml` name the same attacks, so that their records meet."""
    from harness.registry import attacks, defenses

    defense = build(parse("menet-nuc"), defenses)
    entries = suites.expand("adaptive", defense, ThreatModel(epsilon=8 / 255))
    wanted = {build(entry.attack, attacks) for entry in entries}
    table = protocol.load("beyond")
    places = expansion.expand(table, protocol.profile("paper"))
    row = next(i for i, row in enumerate(table.rows) if row.labels[1] == "ME-Net")
    found = {build(p.cells[0].attack, attacks) for p in places if p.row == row and p.cells}
    assert wanted <= found


def test_cells_that_tables_share_are_one() -> None:
    paper = protocol.profile("paper")
    tables = [protocol.load(name) for name in ("table1", "table6")]
    places = [place for table in tables for place in expansion.expand(table, paper)]
    cells = [cell for place in places for cell in place.cells]
    assert len(expansion.unique(places)) == len(cells) - 2  # vanilla and ME-Net under PGD-40


def test_fewer_steps_still_cross_the_ball() -> None:
    smoke = protocol.profile("smoke")
    for name in protocol.names():
        for place in expansion.expand(protocol.load(name), smoke):
            for cell in place.cells:
                size, steps = (
                    cell.attack.parameters.get("step_size"),
                    comparison.steps_of(cell.attack),
                )
                if size is not None and steps is not None:
                    assert float(size) * steps >= cell.threat.epsilon


def test_a_curve_leaves_out_what_the_profile_would_cut() -> None:
    table = protocol.load("figure-eot")
    places = expansion.expand(table, Profile(summary="", budget="", caps={"eot": 5}))
    drawn = {table.columns[place.column].x for place in places if place.cells}
    assert drawn == {1, 2, 5}
    assert all("at most 5 eot" in place.skip for place in places if not place.cells)


def test_the_last_rule_that_matches_wins() -> None:
    profile = Profile(
        summary="",
        budget="",
        limit=7,
        rules=[
            protocol.Rule(train={"epochs": 3}),
            protocol.Rule(training="adversarial", train={"epochs": 2}, limit=5),
            protocol.Rule(defense="menet-*", skip="no"),
        ],
    )
    places = expansion.expand(protocol.load("table4"), profile)
    madry, menet = places[0], places[1]
    assert madry.cells[0].target.training.epochs == 2 and madry.cells[0].limit == 5
    assert menet.skip == "no" and not menet.cells


def test_needs_no_torch() -> None:
    code = (
        "import sys\nfrom harness.paper import expansion, protocol\n"
        "for name in protocol.names(): "
        "expansion.expand(protocol.load(name), protocol.profile('smoke'))\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --- one's own, and wrong ones ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('kind = "tabel"\n', ["line 1", "kind", "'tabel'", "did you mean table"]),
        (HEAD + 'captoin = "x"\n', ["line 4", "'captoin'", "did you mean caption"]),
        (GRID + "stepps = 3\n", ["line 9", "rows[0]", "'stepps'", "did you mean steps"]),
        (GRID + 'steps = "many"\n', ["line 9", "rows[0].steps", "int"]),
        (GRID + 'training = "advers"\n', ["line 9", "training", "did you mean adversarial"]),
        (GRID + "[rows.cells.Claen]\nsteps = 3\n", ["line 9", "'Claen'", "did you mean Clean"]),
        (GRID + "[rows.cells.Clean]\nstep = 3\n", ["line 10", "'step'", "did you mean steps"]),
        ('kind = "table"\ntitle = "T"\n', ["'caption' is missing"]),
        (HEAD + 'x = "\n', ["line 4"]),
        (HEAD, ["line 1", "kind", "[[rows]]"]),
        (HEAD + 'heads = ["a", "b"]\n' + GRID[len(HEAD) :], ["line 9", "1 labels under 2 heads"]),
        (GRID.replace("table", "curve"), ["line 4", "columns[0]", "needs x"]),
    ],
)
def test_a_wrong_file_names_line_key_and_nearest_word(
    tmp_path: Path, text: str, says: list[str]
) -> None:
    with pytest.raises(HarnessError) as error:
        protocol.load(own(tmp_path, text))
    for part in ["mine.toml", *says]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["my table.toml", "Ünï.toml", "-.toml", "a.b.toml"])
def test_a_name_cannot_leave_the_results_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(HarnessError, match="a-z, 0-9 and -"):
        protocol.load(own(tmp_path, GRID + ROW, name))


def test_names_that_do_not_exist() -> None:
    with pytest.raises(HarnessError, match="did you mean table4"):
        protocol.load("tabel4")
    with pytest.raises(HarnessError, match="did you mean laptop"):
        protocol.profile("labtop")
    with pytest.raises(HarnessError, match="cannot read"):
        protocol.load("nowhere/mine.toml")


def test_a_recipe_that_asks_for_nonsense(tmp_path: Path) -> None:
    text = GRID.replace('attack = "clean"', 'attack = "mine"') + ROW
    text += '[attacks]\nmine = "pgd(steps={stpes})"\n'
    table = protocol.load(own(tmp_path, text))
    with pytest.raises(HarnessError, match=r"column Clean: .*stpes.*did you mean steps"):
        expansion.expand(table, protocol.profile("smoke"))


# --- on the command line ----------------------------------------------------------------------------

PROFILE = """
[tiny]
summary = "a test"
budget = "seconds"
limit = 12
draws = 2
caps = { steps = 3 }
[[tiny.rules]]
train = { epochs = 2, limit = 120 }
[[tiny.rules]]
defense = "tvm"
skip = "not in this profile"
"""
TABLE = """
kind = "table"
title = "Mine"
caption = "Three defenses"
heads = ["Method"]
[defaults]
dataset = "digits"
model = "small-cnn"
steps = 40
[[columns]]
title = "Clean"
attack = "clean"
[[columns]]
title = "Rebuilt"
attack = "approximate-input(steps={steps},step_size={step})"
[[rows]]
labels = ["Vanilla | <b>"]
defense = "vanilla"
[[rows]]
labels = ["Thermometer"]
defense = "thermometer"
[[rows]]
labels = ["TVM"]
defense = "tvm"
"""


def reproduce(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(
        main, ["reproduce", *words, "--results", str(folder / "out"), "--device", "cpu", "--quiet"]
    )


def test_ones_own_table_from_start_to_end(tmp_path: Path) -> None:
    table = own(tmp_path, TABLE)
    profile = own(tmp_path, PROFILE, "profiles.toml") + ":tiny"
    planned = reproduce(tmp_path, table, "--profile", profile, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "0 there, 4 missing" in planned.output and "estimate:" in planned.output
    assert not (tmp_path / "out" / "records").exists()

    done = reproduce(tmp_path, table, "--profile", profile)
    assert done.exit_code == 2, done.output  # one attack cannot serve
    assert "gives images" in done.output
    text = (tmp_path / "out" / "tables" / "mine.md").read_text()
    assert "Vanilla \\| &lt;b>" in text and "not in this profile" in text
    assert "needs a defense that gives images" in text
    assert "Profile tiny: a test" in text and "first 12 test images" in text
    assert len(list((tmp_path / "out" / "records").glob("*.json"))) == 3

    kept = {path: path.read_bytes() for path in (tmp_path / "out" / "tables").iterdir()}
    for path in kept:
        path.unlink()
    again = reproduce(tmp_path, table, "--profile", profile, "--render")
    assert again.exit_code == 0, again.output
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "tables").iterdir()} == kept
    planned = reproduce(tmp_path, table, "--profile", profile, "--dry-run")
    assert "3 there, 1 missing" in planned.output


def test_one_record_answers_cells_that_are_spelled_differently(tmp_path: Path) -> None:
    """`menet-usvt` and `menet-usvt(p_low=0.4)` are one cell with two names."""
    text = GRID + ROW.replace("vanilla", "menet-usvt") + '[[rows]]\nlabels = ["b"]\n'
    text += ROW.replace("vanilla", "menet-usvt(p_low=0.4)")
    profile = own(tmp_path, PROFILE, "profiles.toml") + ":tiny"
    done = reproduce(tmp_path, own(tmp_path, text), "--profile", profile)
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out" / "records").glob("*.json")
    rows = (tmp_path / "out" / "tables" / "mine.csv").read_text().splitlines()[1:]
    assert [row.rpartition(",")[2] for row in rows] == [path.stem, path.stem]


def test_a_plugin_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    text = GRID + ROW.replace("vanilla", "menet-nucc")
    done = reproduce(tmp_path, own(tmp_path, text))
    assert done.exit_code == 2
    assert "row a, column Clean" in done.output and "did you mean menet-nuc" in done.output
    assert not (tmp_path / "out" / "records").exists()


def test_a_dataset_that_is_not_there_costs_its_cells_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    text = GRID + ROW + '[[rows]]\nlabels = ["b"]\n' + ROW.replace("digits", "cifar10-jpeg")
    profile = own(tmp_path, PROFILE, "profiles.toml") + ":tiny"
    done = reproduce(tmp_path, own(tmp_path, text), "--profile", profile)
    assert done.exit_code == 2
    lines = (tmp_path / "out" / "tables" / "mine.md").read_text().splitlines()
    assert any(line.startswith("| b | refused: ") and "cifar10-jpeg" in line for line in lines)
    (failure,) = (tmp_path / "out" / "failures").glob("*.json")
    assert json.loads(failure.read_text())["value"]["kind"] == "refused"


# --- numbers and words that no cell can mean --------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("steps = 0", "rows[0].steps: Expected `int` >= 1"),
        ("epsilon_times = -1.0", "rows[0].epsilon_times: Expected `float` >= 0"),
        ("travel = 0.0", "rows[0].travel: Expected `float` > 0"),
        ("draws = 0", "rows[0].draws: Expected `int` >= 1"),
        ("labels = []", "every row needs labels"),
    ],
)
def test_a_number_out_of_range_is_refused(tmp_path: Path, line: str, says: str) -> None:
    text = GRID.replace('labels = ["a"]\n', "") if "labels" in line else GRID
    with pytest.raises(HarnessError) as error:
        protocol.load(own(tmp_path, f"{text}{line}\n"))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "caps = { stepps = 3 }",
            "line 4, tiny.caps: 'stepps' is not known here: did you mean ste",
        ),
        ("caps = { steps = 0 }", "tiny.caps.steps: Expected `int` >= 1"),
        ("seeds = []", "tiny.seeds"),
        ("datasets = { mnist = [] }", "tiny.datasets.mnist"),
        ("limit = 0", "tiny.limit"),
    ],
)
def test_a_profile_that_would_be_ignored_is_refused(tmp_path: Path, line: str, says: str) -> None:
    text = '[tiny]\nsummary = "a"\nbudget = "b"\n' + line + "\n"
    with pytest.raises(HarnessError) as error:
        protocol.profile(own(tmp_path, text, "profiles.toml") + ":tiny")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("pgd(steps={steps:many})", "must be {steps:NUMBER}"),
        ("pgd(steps=40,step_size={step})", "needs {steps} beside it"),
    ],
)
def test_a_recipe_that_cannot_be_filled(tmp_path: Path, recipe: str, says: str) -> None:
    text = GRID.replace('attack = "clean"', 'attack = "mine"') + ROW
    table = protocol.load(own(tmp_path, text + f'[attacks]\nmine = "{recipe}"\n'))
    with pytest.raises(HarnessError, match=r"column Clean: .*" + re.escape(says)):
        expansion.expand(table, protocol.profile("smoke"))


def test_a_claim_is_not_joined_to_another_ball(tmp_path: Path) -> None:
    text = Path(protocol.__file__).with_name("protocols").joinpath("table4.toml").read_text()
    text = text.replace("[defaults]\n", 'claims = "table4"\n[defaults]\n', 1)
    for change, joined in (("", True), ("epsilon_times = 2.0\n", False), ('norm = "l2"\n', False)):
        changed = text.replace("[[columns]]\n", f"{change}[[columns]]\n", 1)
        places = expansion.expand(protocol.load(own(tmp_path, changed)), protocol.profile("paper"))
        assert [place.claim is not None for place in places] == [joined] * 5


def test_damaged_notes_and_figures_are_made_again(tmp_path: Path) -> None:
    table = own(tmp_path, GRID + ROW)
    figure = own(tmp_path, HEAD.replace("table", "ranks") + 'datasets = ["digits"]\n', "f.toml")
    words = (table, figure, "--profile", own(tmp_path, PROFILE, "profiles.toml") + ":tiny")
    assert reproduce(tmp_path, *words).exit_code == 0
    made = {path: path.read_bytes() for path in (tmp_path / "out" / "tables").iterdir()}
    for folder in ("cells", "figure-data"):
        paths = list((tmp_path / "out" / folder).glob("*.json"))
        assert paths
        for path in paths:
            path.write_bytes(path.read_bytes()[:-9])
    done = reproduce(tmp_path, *words)
    assert done.exit_code == 0, done.output
    assert {path: path.read_bytes() for path in made} == made
    assert list((tmp_path / "out").glob("*/*.damaged-*"))
