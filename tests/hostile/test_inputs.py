"""Input that is wrong and could pass: too large balls, ranges that no model was trained on, unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor, nn

import harness
from harness.cells import defaults
from harness.cli.main import main
from harness.datasets.data import load
from harness.paper import expansion, protocol
from harness.registry import load_file
from harness.targets import own_models
from harness.types import Dataset, HarnessError, ThreatModel

own = load_file(Path(__file__).parents[1] / "helpers" / "own_models.py")
QUICK = ("--limit", "8", "--epochs", "1", "-T", "limit=60", "--quiet", "--device", "cpu")


def run(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["run", *words, *QUICK, "--results", str(folder / "results")])


def nothing_stored(folder: Path) -> bool:
    kept = folder / "results"
    return not any(list(kept.glob(f"{name}/*")) for name in ("failures", "records", "matrices"))


# --- balls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", ["8", "1.5", "256/255", "255"])
def test_an_epsilon_in_steps_of_255_is_refused(epsilon: str, tmp_path: Path) -> None:
    refused = run(tmp_path, "--attack", "fgsm", "--epsilon", epsilon)
    assert refused.exit_code == 2 and "/255?" in refused.output, refused.output
    assert nothing_stored(tmp_path)


def test_the_suggestion_is_what_was_meant() -> None:
    with pytest.raises(HarnessError, match="Did you mean --epsilon 8/255"):
        ThreatModel(epsilon=8)


@pytest.mark.parametrize("epsilon", [0.0, 8 / 255, 0.3, 1.0])
def test_honest_balls_pass(epsilon: float) -> None:
    assert ThreatModel(epsilon=epsilon).doubt((1, 2, 2)) == ""


def test_python_refuses_the_same(digits_test: Dataset) -> None:
    batch = digits_test.batch(slice(0, 8))
    with pytest.raises(HarnessError, match="8/255"):
        harness.evaluate(own.trained(), batch.images, batch.labels, attack="fgsm", epsilon=8)


def test_training_refuses_the_same(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="8/255"):
        defaults.plan("digits", "adversarial", {"epsilon": 8.0})
    words = ["--attack", "fgsm", "--training", "adversarial", "-T", "epsilon=8"]
    refused = run(tmp_path, *words)
    assert refused.exit_code == 2 and "8/255" in refused.output and nothing_stored(tmp_path)


def test_a_protocol_refuses_the_same(tmp_path: Path) -> None:
    text = (Path(protocol.__file__).parent / "protocols" / "figure-epsilon.toml").read_text()
    assert "epsilon_times = 0.5" in text
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("epsilon_times = 0.5", "epsilon_times = 255"))
    table = protocol.load(str(mine))
    with pytest.raises(HarnessError, match="/255"):
        expansion.expand(table, protocol.profile("smoke"))


@pytest.mark.parametrize(("epsilon", "says"), [(27.9, False), (28.0, True), (1e6, True)])
def test_an_l2_ball_that_holds_every_image_is_said(epsilon: float, says: bool) -> None:
    line = ThreatModel(epsilon=epsilon, norm="l2").doubt((1, 28, 28))
    assert bool(line) == says and ("28" in line or not says)


def test_the_run_says_it_of_an_l2_ball(tmp_path: Path) -> None:
    words = ["run", "--attack", "noise", "--norm", "l2", "--epsilon", "40", *QUICK]
    words.remove("--quiet")
    done = CliRunner().invoke(main, [*words, "--results", str(tmp_path / "results")])
    assert "holds every image" in done.output, done.output


# --- ranges ---------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Right on an image of mean m where m, as handed, is near what it was trained on."""

    def __init__(self, mean: float, std: float, width: float) -> None:
        super().__init__()
        self.mean, self.std, self.width = mean, std, width

    def forward(self, images: Tensor) -> Tensor:
        # Pixel (0, 0) is the label / 10, pixel (0, 1) is 1, both as the model was handed them.
        label = images[:, 0, 0, 0] * self.std + self.mean
        one = images[:, 0, 0, 1] * self.std + self.mean
        far = (one - 1).abs() > self.width
        return -(label[:, None] * 10 + far[:, None] * 3 - torch.arange(10.0)).abs()


def marked(count: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 10
    images = torch.zeros(count, 1, 4, 4)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels / 10, 1.0
    return images, labels


@pytest.mark.parametrize(
    ("word", "mean", "std"),
    [("mnist", 0.1307, 0.3081), ("half", 0.5, 0.5), ("bytes", 0.0, 1 / 255)],
)
def test_a_usual_range_that_was_left_out_is_named(word: str, mean: float, std: float) -> None:
    images, labels = marked(256)
    assert own_models.probe(Linear(mean, std, 0.1), images, labels).better == word


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.25), (0.0, 0.5), (0.0, 2.0), (0.5, 1.0)])
def test_a_scale_or_shift_of_the_given_range_is_said(mean: float, std: float) -> None:
    images, labels = marked(256)
    found = own_models.probe(Linear(mean, std, 0.1), images, labels)
    assert found.hint == f"{mean:.4g}/{std:.4g}" and not found.better
    assert found.hint in own_models.doubt(found, 10) or found.accuracy < 0.2


def test_a_scale_around_a_declared_normalisation_is_said() -> None:
    images, labels = marked(256)
    model = own_models.behind(Linear(0.25, 0.1, 0.1), 1, "0.25/0.2")
    assert own_models.probe(model, images, labels).hint == "0.25/0.1"


class Mostly(nn.Module):
    """Right on all images in one range, on most of them in another."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, images: Tensor) -> Tensor:
        plain = (images[:, 0, 0, 1] - 1).abs() < 1e-3
        pixel = torch.where(plain, images[:, 0, 0, 0], images[:, 0, 0, 0] * 0.3081 + 0.1307)
        number = images[:, 0, 0, 2]  # a sample's number where it is handed as it is
        spoilt = plain & (number * 1024 % self.wrong < 0.5)
        return -(pixel[:, None] * 10 + spoilt[:, None] - torch.arange(10.0)).abs()


def test_a_model_that_looks_fine_is_looked_at_again() -> None:
    """3 % are lost without the normalisation: too few of 256 images to be sure, enough of 1,024."""
    images, labels = marked(1024)
    images[:, 0, 0, 2] = torch.arange(1024) / 1024
    model = Mostly(40)
    first = own_models.probe(model, images[:256], labels[:256])
    assert not first.better and first.suspect and first.accuracy > 0.9
    assert own_models.probe(model, images, labels).better == "mnist"


def test_an_honest_model_is_not_accused(digits_test: Dataset) -> None:
    batch = digits_test.batch(slice(0, 512))
    found = own_models.probe(own.trained(), batch.images, batch.labels)
    assert not found.better and not found.hint


def test_a_published_model_without_its_normalisation_is_refused(mnist_folder: Path) -> None:
    """96 % right as handed, 99.8 % behind the normalisation that it was trained with."""
    from importlib.resources import files

    published = pytest.importorskip(
        "ccexam.models", reason="pip install 'robustness-harness[test]'"
    )
    network = published.MNISTNet(28)
    weights = files("ccexam").joinpath("weights/mnist.pth")
    network.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
    batch = load("mnist", "train", data_dir=mnist_folder).batch(slice(0, 1024))
    words = {"attack": "clean", "quiet": True}
    with pytest.raises(HarnessError, match="--normalisation mnist"):
        harness.evaluate(network, batch.images, batch.labels, **words)
    harness.evaluate(network, batch.images[:64], batch.labels[:64], normalisation="mnist", **words)


# --- names of nothing -----------------------------------------------------------------------------

NAMES = {
    "attack": ["--attack", "pgdd"],
    "inner attack": ["--attack", "transfer(pgdd)"],
    "attack of a file": ["--attack", "{folder}/my.py:Nope"],
    "file": ["--attack", "{folder}/absent.py:Attack"],
    "defense": ["--attack", "fgsm", "--defense", "menett"],
    "source": ["--attack", "transfer(pgd,defense=menett)"],
    "model": ["--attack", "fgsm", "--model", "lenett"],
    "model of a file": ["--attack", "fgsm", "--model", "{folder}/my.py:nope"],
    "weights of a file": [
        *("--attack", "fgsm", "--model", "{folder}/my.py:nope"),
        *("--weights", "{folder}/w.safetensors"),
    ],
    "weights": [
        *("--attack", "fgsm", "--model", "{folder}/my.py:build"),
        *("--weights", "{folder}/absent.safetensors"),
    ],
    "program": ["--attack", "fgsm", "--model", "{folder}/absent.pt2"],
    "dataset": ["--attack", "fgsm", "--dataset", "mnistt"],
    "training attack": [
        *("--attack", "fgsm", "--training", "adversarial", "-T", "inner=pgdd"),
    ],
    "parameter": ["--attack", "fgsm", "-A", "stepz=3"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_of_nothing_is_refused_before_anything_is_stored(kind: str, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(own.SOURCE)
    save_file(own.trained().state_dict(), tmp_path / "w.safetensors")
    refused = run(tmp_path, *(word.format(folder=tmp_path) for word in NAMES[kind]))
    assert refused.exit_code == 2 and "error: " in refused.output, refused.output
    assert nothing_stored(tmp_path)


@pytest.mark.parametrize(
    "more", [[], ["--weights", "pretrained"], ["--weights", "{folder}/w.safetensors"]]
)
def test_a_model_that_timm_does_not_have_is_refused(more: list[str], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    save_file(own.trained().state_dict(), tmp_path / "w.safetensors")
    words = ["--attack", "fgsm", "--model", "timm:resnet1888"]
    refused = run(tmp_path, *words, *(word.format(folder=tmp_path) for word in more))
    assert refused.exit_code == 2 and "did you mean" in refused.output
    assert nothing_stored(tmp_path)
