"""The command line as a user meets it, on real digits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.cli.main import main
from harness.cli.run import show
from harness.evaluation import planning
from harness.paper import expansion, protocol
from harness.results.records import Failure, Record
from harness.spec import parse
from harness.storage.store import Store
from tests.helpers.fabricated import record

QUICK = ["--epochs", "2", "-T", "limit=200", "--limit", "30", "--quiet", "--device", "cpu"]


def harness(*words: str) -> Result:
    return CliRunner().invoke(main, [*words])


def run(results: Path, *words: str) -> Result:
    return harness("run", *words, *QUICK, "--results", str(results))


def records(results: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((results / "records").iterdir())}


def test_the_main_job(tmp_path: Path) -> None:
    words = ["--defense", "menet-nuc", "--attack", "bpda", "--steps", "5"]
    done = run(tmp_path, *words)
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "records").iterdir()
    assert str(path) in done.stdout
    found = json.loads(path.read_text())["value"]
    assert found["count"] == 30 and found["resolved"]["draws"] == 10
    assert len(found["robust_outcomes"]) == 10
    assert found["passes"]["backwards"] == 5
    for word in ("clean (ε = 0)", "95 % interval", "seconds", "images/s", "menet-nuc"):
        assert word in done.stdout

    before = records(tmp_path)
    checkpoint = next((tmp_path / "checkpoints").glob("*.safetensors"))
    made = checkpoint.stat().st_mtime_ns
    again = run(tmp_path, *words)
    assert again.exit_code == 0 and records(tmp_path) == before
    assert checkpoint.stat().st_mtime_ns == made, "trained twice"


def test_a_matrix_shares_its_models_and_fills_a_table(tmp_path: Path) -> None:
    words = ["--defense", "vanilla", "--defense", "menet-usvt", "--attack", "fgsm", "--attack"]
    done = run(tmp_path, *words, "pgd", "--steps", "4", "-A", "pgd.loss=margin")
    assert done.exit_code == 0, done.output
    assert len(records(tmp_path)) == 4
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 2
    assert done.stdout.count("scaled-down: all 4 cells: ") == 1
    assert done.stdout.count("the first 30 test images") == 1
    table = harness("table", "--results", str(tmp_path))
    assert table.exit_code == 0 and table.stdout.count("menet-usvt") == 1
    assert "loss=margin" in table.stdout and "95 % Wilson interval" in table.stdout
    rows = harness("table", "--results", str(tmp_path), "--format", "csv").stdout.splitlines()
    assert len(rows) == 5 and rows[0].startswith("dataset,defense,training,model,attack")


def test_each_doubt_is_explained_once_with_the_cells_that_it_concerns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = expansion.expand(protocol.load("table3"), protocol.profile("smoke"))[0].cells[0]
    results: list[Record | Failure] = []
    for seed, attack, flags in (
        (0, "fgsm", {"scaled-down": "few", "noise-success": "noise"}),
        (0, "pgd", {"scaled-down": "few", "noise-success": "more noise"}),
        (1, "fgsm", {"scaled-down": "few", "noise-success": "noise"}),
    ):
        target = dataclasses.replace(cell.target, seed=seed)
        each = dataclasses.replace(cell, target=target, attack=parse(attack))
        results.append(record(each, flags=flags))

    def doubts() -> list[str]:
        show(results, {}, tmp_path, "")
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith(("scaled", "noise", "failed"))]

    label = cell.target.label
    assert doubts() == [
        "scaled-down: all 3 cells: few",
        f"noise-success: fgsm on {label} (seed 0), fgsm on {label} (seed 1): noise",
        f"noise-success: pgd on {label} (seed 0): more noise",
    ]
    del results[2]
    failed = dataclasses.replace(cell, attack=parse("bpda"))
    results.append(Failure(key="f", cell=failed, reason="no luck", kind="failed"))
    assert doubts() == [
        f"scaled-down: fgsm on {label}, pgd on {label}: few",
        f"noise-success: fgsm on {label}: noise",
        f"noise-success: pgd on {label}: more noise",
        f"failed: bpda on {label}: no luck",
    ]
    del results[1:]
    assert doubts()[0] == f"scaled-down: fgsm on {label}: few"


def test_adversarial_training_and_madry(tmp_path: Path) -> None:
    words = ["--attack", "fgsm", "-T", "inner=pgd(steps=2)", "--epsilon", "0.05"]
    done = run(tmp_path, "--defense", "madry", "--defense", "menet-usvt", *words)
    assert done.exit_code == 0, done.output
    assert "madry" in done.stdout
    done = run(tmp_path, "--defense", "vanilla", "--training", "adversarial", *words)
    assert done.exit_code == 0 and len(records(tmp_path)) == 2, "madry is vanilla, adversarial"


def test_a_failing_attack_fails_its_own_cell(tmp_path: Path) -> None:
    guest = tmp_path / "guest.py"
    guest.write_text(
        "import dataclasses\n"
        "from harness.types import Attack, Perturbed\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Bad(Attack):\n"
        "    'Raises.'\n"
        "    def perturb(self, victim, batch, threat, draws):\n"
        "        raise RuntimeError('no luck')\n"
    )
    done = run(
        tmp_path / "r", "--defense", "vanilla", "--attack", f"{guest}:Bad", "--attack", "fgsm"
    )
    assert done.exit_code == 2
    assert "no luck" in done.stdout and "Traceback" not in done.output
    assert len(records(tmp_path / "r")) == 1
    table = harness("table", "--results", str(tmp_path / "r"))
    assert "no luck" in table.stdout and "clean --what failures --yes" in table.stderr
    forget = ["clean", "--what", "failures", "--yes", "--results", str(tmp_path / "r")]
    assert harness(*forget).exit_code == 0
    table = harness("table", "--results", str(tmp_path / "r"))
    assert "no luck" not in table.stdout and not table.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--defense", "vanila", "--attack", "pgd"], "vanilla"),
        (["--defense", "vanilla", "--attack", "pdg"], "pgd"),
        (["--defense", "vanilla", "--attack", "pgd", "--epsilon", "-1"], "epsilon"),
        (["--defense", "vanilla", "--attack", "pgd", "--epsilon", "a"], "8/255"),
        (["--defense", "vanilla", "--attack", "pgd", "--steps", "0"], "steps"),
        (["--defense", "vanilla", "--attack", "pgd", "-A", "stepz=3"], "steps"),
        (["--defense", "vanilla", "--attack", "pgd", "-A", "steps"], "key=value"),
        (["--defense", "menet-nuc", "--attack", "pgd", "-D", "p_low=2"], "p_low"),
        (["--defense", "vanilla", "--attack", "pgd", "--dataset", "mnits"], "mnist"),
        (["--defense", "vanilla", "--attack", "pgd", "--model", "lenett"], "lenet"),
        (["--defense", "vanilla", "--attack", "pgd", "-T", "epoch=2"], "epochs"),
        (["--defense", "vanilla", "--attack", "pgd", "--device", "cuda:77"], "cuda:77"),
        (["--defense", "vanilla", "--attack", "nofile.py:Attack"], "nofile.py"),
        (["--defense", "vanilla", "--attack", "pgd(steps=1"], "bracket"),
        (["--defense", "vanilla", "--attack", "pgd(steps=many)"], "steps=many does not fit"),
    ],
)
def test_bad_words_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    done = harness("run", *words, "--results", str(tmp_path / "r"), "--quiet")
    assert done.exit_code == 2, done.output
    assert said in done.output and "Traceback" not in done.output
    assert len(done.stderr.strip().splitlines()) <= 5
    assert not list(tmp_path.rglob("*.json")), "something was written"


def test_a_folder_without_data_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["--defense", "vanilla", "--attack", "pgd", "--dataset", "tiny-imagenet"]
    done = run(tmp_path / "r", *words, "--data-dir", str(tmp_path / "empty"))
    assert done.exit_code == 2
    assert "--data-dir" in done.stderr and "HARNESS_DATA" in done.stderr


def test_a_truncated_idx_file_is_damage(tmp_path: Path, mnist_folder: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist_folder / "MNIST" / "raw").iterdir():
        (raw / file.name).write_bytes(file.read_bytes()[:-10])
    words = ["--defense", "vanilla", "--attack", "pgd", "--dataset", "mnist"]
    done = run(tmp_path / "r", *words, "--data-dir", str(tmp_path))
    assert done.exit_code == 1 and "ubyte" in done.stderr


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "r", "--defense", "vanilla", "--attack", "fgsm")
    assert done.exit_code == 2 and "cannot write" in done.stderr and "--results" in done.stderr


def test_a_table_of_nothing(tmp_path: Path) -> None:
    done = harness("table", "--results", str(tmp_path / "nowhere"))
    assert done.exit_code == 2 and "harness run" in done.stderr


def test_one_damaged_byte_is_found_in_every_file(tmp_path: Path) -> None:
    assert run(tmp_path, "--defense", "vanilla", "--attack", "fgsm").exit_code == 0
    (record,) = (tmp_path / "records").iterdir()
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.safetensors")
    for path in (record, checkpoint):
        whole = path.read_bytes()
        middle = whole.index(b'"clean"') + 25 if path is record else len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        if path is record:
            done = harness("table", "--results", str(tmp_path))
        else:
            done = run(tmp_path, "--defense", "vanilla", "--attack", "noise")
        assert done.exit_code == 1, done.output
        assert path.name in done.output and "damaged" in done.output
        assert "Traceback" not in done.output
        path.write_bytes(whole)


def test_lists_name_everything_with_its_origin() -> None:
    done = harness("list")
    assert done.exit_code == 0
    for word in ("menet-nuc", "bpda", "lenet", "digits", "nuclear-norm", "[harness.attacks.pgd]"):
        assert word in done.stdout
    assert harness("list", "nonsense").exit_code == 2


def test_data_check(tmp_path: Path) -> None:
    done = harness("data", "check", "digits")
    assert done.exit_code == 0
    for word in ("1,438", "359", "1 x 28 x 28", "digest"):
        assert word in done.stdout


def test_the_store_reads_only_what_it_wrote(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_json("records", "a", {"x": 1})
    assert store.read_json("records", "a", dict) == {"x": 1}
    assert store.read_json("records", "b", dict) is None


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"steps": 40}, {}, "pgd(step_size=0.01,steps=40)"),
        ({"steps": 40}, {"step_size": "0.05"}, "pgd(step_size=0.05,steps=40)"),
        ({"steps": 4}, {"steps": "50"}, "pgd(step_size=0.01,steps=50)"),
        ({"steps": 4, "step_size": 0.001}, {}, "pgd(step_size=0.001,steps=4)"),
        ({"steps": 4, "step_size": None}, {}, "pgd(steps=4)"),
    ],
)
def test_what_the_user_says_of_an_attack_is_done(
    settings: dict[str, Any], options: dict[str, str], said: str
) -> None:
    """A default of the dataset never stands in the place of what was asked for."""
    asked = planning.AttackOptions(attacks=["pgd"], attack_options=options, **settings)
    assert str(planning.attack_of("pgd", asked, dataset="mnist", epsilon=0.3)) == said


def test_a_step_size_that_crosses_no_ball_is_still_the_users(tmp_path: Path) -> None:
    words = ["--defense", "vanilla", "--attack", "pgd", "--steps", "2", "--step-size", "0.001"]
    assert run(tmp_path / "r", *words).exit_code == 0
    (content,) = records(tmp_path / "r").values()
    found = json.loads(content)["value"]
    assert found["resolved"]["attack"]["parameters"]["step_size"] == 0.001
