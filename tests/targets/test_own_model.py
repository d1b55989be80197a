"""A model that came with its weights: from every source, in the right range, never trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from harness.cli.main import main
from harness.registry import load_file, models
from harness.spec import build, parse
from harness.targets.own_models import Probe, doubt, probe, wrong_range
from harness.types import Batch, HarnessError

own = load_file(Path(__file__).parents[1] / "helpers" / "own_models.py")
SOURCE, network, trained = own.SOURCE, own.network, own.trained
SHAPE = (1, 28, 28)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my.py").write_text(SOURCE)
    save_file(trained().state_dict(), tmp_path / "plain.safetensors")
    save_file(trained(255.0).state_dict(), tmp_path / "bytes.safetensors")
    return tmp_path


def run(folder: Path, *words: str) -> Result:
    quick = ["--attack", "fgsm", "--limit", "40", "--quiet", "--device", "cpu", "--epsilon", "0.1"]
    return CliRunner().invoke(main, ["run", *words, *quick, "--results", str(folder / "results")])


def record(folder: Path) -> dict[str, object]:
    (path,) = (folder / "results" / "records").iterdir()
    found: dict[str, object] = json.loads(path.read_text())["value"]
    return found


def test_one_line_gives_a_number_without_training(folder: Path) -> None:
    words = ["--model", f"{folder}/my.py:build", "--weights", f"{folder}/plain.safetensors"]
    done = run(folder, *words)
    assert done.exit_code == 0, done.output
    assert "weights as given" in done.output
    found = record(folder)
    assert found["clean"]["mean"] > 0.8  # type: ignore[index]
    assert not (folder / "results" / "checkpoints").exists() or not any(
        (folder / "results" / "checkpoints").iterdir()
    )


def test_the_key_is_that_of_the_content_not_of_the_place(folder: Path) -> None:
    word = f"{folder}/my.py:build"
    assert run(folder, "--model", word, "--weights", f"{folder}/plain.safetensors").exit_code == 0
    (folder / "moved.safetensors").write_bytes((folder / "plain.safetensors").read_bytes())
    assert run(folder, "--model", word, "--weights", f"{folder}/moved.safetensors").exit_code == 0
    record(folder)  # one alone
    changed = trained()
    with torch.no_grad():
        changed[1].bias.add_(0.01)  # type: ignore[index, union-attr]
    save_file(changed.state_dict(), folder / "moved.safetensors")
    assert run(folder, "--model", word, "--weights", f"{folder}/moved.safetensors").exit_code == 0
    assert len(list((folder / "results" / "records").iterdir())) == 2


def test_the_wrong_range_is_found_and_named(folder: Path) -> None:
    words = ["--model", f"{folder}/my.py:build", "--weights", f"{folder}/bytes.safetensors"]
    refused = run(folder, *words)
    assert refused.exit_code == 2 and "--normalisation bytes" in refused.output
    assert "--dataset" not in refused.output, "it knows these images"
    assert run(folder, *words, "--normalisation", "bytes").exit_code == 0
    plain = ["--model", f"{folder}/my.py:build", "--weights", f"{folder}/plain.safetensors"]
    refused = run(folder, *plain, "--normalisation", "bytes")
    assert refused.exit_code == 0 or "--normalisation inside" in refused.output


def test_a_range_that_helps_little_raises_the_question_of_the_dataset() -> None:
    assert "--dataset" in str(wrong_range(Probe(256, 0.21, "mnist", 0.34)))
    assert "--dataset" not in str(wrong_range(Probe(256, 0.21, "mnist", 0.94)))


def test_a_model_that_is_right_is_not_accused(digits_batch: Batch) -> None:
    found = probe(trained(), digits_batch.images, digits_batch.labels)
    assert not found.better and found.accuracy > 0.5 and not doubt(found, 10)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unknowing = probe(network(), digits_batch.images, digits_batch.labels)
    assert not unknowing.better and "no better than chance" in doubt(unknowing, 10)


def test_exported_programs_run(folder: Path) -> None:
    batch = torch.export.Dim("batch")
    images = (torch.rand(4, *SHAPE),)
    program = torch.export.export(trained().eval(), images, dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "free.pt2")
    assert run(folder, "--model", f"{folder}/free.pt2").exit_code == 0
    fixed = torch.export.export(trained().eval(), images)
    torch.export.save(fixed, folder / "fixed.pt2")
    refused = run(folder, "--model", f"{folder}/fixed.pt2")
    assert refused.exit_code == 2 and "dynamic_shapes" in refused.output


def test_torch_hub_and_timm_load(folder: Path) -> None:
    (folder / "hubconf.py").write_text(SOURCE)
    done = run(folder, "--model", f"hub:{folder}:build", "--weights", f"{folder}/plain.safetensors")
    assert done.exit_code == 0, done.output
    pytest.importorskip("timm")
    made = build(parse("timm:test_resnet"), models, shape=SHAPE, classes=10)
    assert made(torch.rand(2, *SHAPE)).shape == (2, 10)
    save_file(made.state_dict(), folder / "timm.safetensors")
    word = f"own(build=timm:test_resnet,weights={folder}/timm.safetensors)"
    again = build(parse(word), models, shape=SHAPE, classes=10)
    images = torch.rand(2, *SHAPE)
    assert torch.equal(again.eval()(images), made.eval()(images))


def test_a_file_may_have_a_package_called_models_beside_it(folder: Path) -> None:
    package = folder / "models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "lenet.py").write_text(SOURCE)
    (folder / "mine.py").write_text(
        "from models.lenet import build as make\ndef build(): return make()\n"
    )
    words = ["--model", f"{folder}/mine.py:build", "--weights", f"{folder}/plain.safetensors"]
    done = run(folder, *words)
    assert done.exit_code == 0, done.output
    from harness.models.lenet import small_cnn

    assert small_cnn(SHAPE, 10) is not None, "ours is back"


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code from a file of weights was run')",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("code", "without running code"),
        ("other", "does not fit the model"),
        ("noise", "cannot be read as weights"),
    ],
)
def test_weights_are_data(folder: Path, content: str, said: str) -> None:
    path = folder / ("w.pt" if content == "code" else "w.safetensors")
    if content == "code":
        torch.save({"model": _Code()}, path)
    elif content == "other":
        save_file(nn.Linear(3, 3).state_dict(), path)
    else:
        path.write_bytes(b"noise")
    refused = run(folder, "--model", f"{folder}/my.py:build", "--weights", str(path))
    assert refused.exit_code == 2 and said in refused.output
    assert ". ." not in refused.output and ".. " not in refused.output, "two stops"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attack", "transfer(pgd)"], "independently trained copy"),
        (["--training", "adversarial"], "not trained here"),
        (["--defense", "madry"], "not trained here"),
        (["--normalisation", "imagnet"], "imagenet"),
        (["--normalisation", "imagenet"], "1 channels"),
        (["-M", "depth=3"], "depth"),
    ],
)
def test_words_that_do_not_go_together(folder: Path, words: list[str], said: str) -> None:
    given = ["--model", f"{folder}/my.py:build", "--weights", f"{folder}/plain.safetensors"]
    refused = run(folder, *given, *words)
    assert refused.exit_code == 2 and said in refused.output, refused.output


def test_an_audit_makes_no_independent_copy_of_it(folder: Path) -> None:
    given = ["--model", f"{folder}/my.py:build", "--weights", f"{folder}/plain.safetensors"]
    words = [*given, "--defense", "vanilla", "--limit", "20", "--quiet", "--device", "cpu"]
    words += ["--results", str(folder / "results"), "--epsilon", "0.1"]
    done = CliRunner().invoke(main, ["audit", *words, "--budget-scale", "0.01"])
    assert done.exit_code == 0, done.output
    assert re.search("transfer .*independently trained copy", done.stdout)
    assert "| transfer" not in done.stdout
    words += ["--attack", "transfer(pgd)", "--steps", "2,4", "--output", str(folder)]
    refused = CliRunner().invoke(main, ["convergence", *words])
    assert refused.exit_code == 2 and "independently trained copy" in refused.stderr


def test_the_wrong_number_of_classes(folder: Path) -> None:
    (folder / "seven.py").write_text(SOURCE.replace("48, 10)", "48, 7)"))
    save_file(
        nn.Sequential(nn.Flatten(), nn.Linear(784, 48), nn.ReLU(), nn.Linear(48, 7)).state_dict(),
        folder / "7.safetensors",
    )
    refused = run(
        folder, "--model", f"{folder}/seven.py:build", "--weights", f"{folder}/7.safetensors"
    )
    assert refused.exit_code == 2 and "7 classes" in refused.output


def test_the_file_that_was_asked_for(folder: Path) -> None:
    word = f"own(build={folder}/my.py:build,weights={folder}/plain.safetensors,sha256=00)"
    with pytest.raises(HarnessError, match="SHA-256"):
        build(parse(word), models, shape=SHAPE, classes=10)
