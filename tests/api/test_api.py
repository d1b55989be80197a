"""`harness.evaluate`: a number with its doubts for a model in memory, which comes back as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import Tensor, nn

import harness
from harness.api.evaluate import evaluate, load_defended, load_images
from harness.evaluation.judge import check_images
from harness.random import Draws, OpaqueDraws, Role
from harness.registry import load_file
from harness.targets import given
from harness.types import Attack, Batch, Defense, HarnessError, Perturbed, ThreatModel, Victim

own = load_file(Path(__file__).parents[1] / "helpers" / "own_models.py")
EPSILON = 0.1


@pytest.fixture(scope="module")
def model() -> nn.Module:
    trained: nn.Module = own.trained()
    return trained


@pytest.fixture(scope="module")
def some() -> tuple[Tensor, Tensor]:
    return load_images("digits", "test", 40)


def measure(model: Any, some: tuple[Tensor, Tensor], **words: Any) -> Any:
    return evaluate(model, *some, **{"epsilon": EPSILON, "quiet": True, "device": "cpu", **words})


def test_one_attack(model: nn.Module, some: tuple[Tensor, Tensor]) -> None:
    result = measure(model, some, attack="pgd(steps=10)")
    logits = model(some[0])
    assert result.clean == pytest.approx(float((logits.argmax(dim=1) == some[1]).float().mean()))
    again = (model(result.images).argmax(dim=1) == some[1]).float().mean()
    assert result.robust == pytest.approx(float(again)) and result.robust < result.clean
    codes = check_images(result.images, some[0], ThreatModel(epsilon=EPSILON))
    assert not codes.any()
    low, high = result.interval
    assert low < result.robust < high and result.count == 40
    assert f"{result.robust:.1%}" in str(result) and "pgd(steps=10)" in repr(result)


def test_the_adaptive_suite_and_how_it_shows_itself(
    model: nn.Module, some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    result = measure(model, some, scale=0.005, defense="menet-usvt", draws=4)
    assert len(result.records) >= 3 and not result.failures
    assert result.robust <= min(record.robust.mean for record in result.records)
    assert "scaled-down" in result.flags
    assert any("transfer" in note for note in result.notes)
    frame = result.to_pandas()
    assert len(frame) == len(result.records) and {"robust", "flags", "attack"} <= set(frame)
    per_image = result.per_image()
    assert len(per_image) == 40 and per_image["label"].tolist() == some[1].tolist()
    html = result._repr_html_()
    assert "data:image/png;base64," in html and "<table>" in html
    assert result.plot().axes
    assert len(pandas.read_csv(result.save(tmp_path / "r.csv"))) == len(frame)
    # The newest pyarrow refuses the oldest numpy.
    pytest.importorskip("pyarrow", exc_type=ImportError)
    assert len(pandas.read_parquet(result.save(tmp_path / "r.parquet"))) == len(frame)
    with pytest.raises(HarnessError, match="parquet"):
        result.save(tmp_path / "r.xyz")


def test_the_model_comes_back_as_it_was(some: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), own.trained())
    model.train()
    model[0].eval()
    some_parameter = next(model.parameters())
    some_parameter.grad = torch.ones_like(some_parameter)
    next(iter(model[1].parameters())).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    measure(model, some, attack=["fgsm", "noise"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert some_parameter.grad is not None and bool((some_parameter.grad == 1).all())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corner(Attack):
    """One corner of the ball."""

    sign: float = 1.0

    def perturb(self, victim: Victim, batch: Batch, threat: ThreatModel, draws: Draws) -> Perturbed:
        return Perturbed((batch.images + self.sign * threat.epsilon).clamp(0, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dim(Defense):
    """Half the light."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return images / 2


def test_plugins_as_objects(model: nn.Module, some: tuple[Tensor, Tensor]) -> None:
    result = measure(model, some, attack=[Corner(), Corner(sign=-1.0)], defense=Dim(), check=False)
    names = [str(record.cell.attack) for record in result.records]
    assert names == ["object:Corner", "object:Corner(sign=-1.0)"]
    assert not torch.equal(result.images, some[0])


def test_a_folder_of_results_is_kept_and_gone_on_with(
    model: nn.Module, some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    first = measure(model, some, attack="fgsm", results=tmp_path)
    (path,) = (tmp_path / "records").iterdir()
    made = path.stat().st_mtime_ns
    assert measure(model, some, attack="fgsm", results=tmp_path).robust == first.robust
    assert path.stat().st_mtime_ns == made
    assert len(harness.load_records(tmp_path)) == 1
    changed = own.trained()
    with torch.no_grad():
        changed[1].bias.add_(0.5)
    measure(changed, some, attack="fgsm", results=tmp_path)
    assert len(harness.load_records(tmp_path)) == 2, "another model, another record"


def test_arrays_and_bytes_are_images_too(model: nn.Module, some: tuple[Tensor, Tensor]) -> None:
    pixels = (some[0] * 255).round().to(torch.uint8).numpy()
    assert measure(model, (pixels, some[1].numpy()), attack="fgsm").clean > 0.8
    lists = (pixels[:20] / 255).tolist(), some[1][:20].tolist()
    assert measure(model, lists, attack="fgsm").clean > 0.7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: ((x - 0.13) / 0.31, y), "normalised"),
        (lambda x, y: (x * 255, y), "255"),
        (lambda x, y: (x[0], y), r"\(N, C, H, W\)"),
        (lambda x, y: (x[:0], y[:0]), r"\(N, C, H, W\)"),
        (lambda x, y: (x, y[:3]), "one integer for each"),
        (lambda x, y: (x, y.float()), "one integer for each"),
        (lambda x, y: (x, y + 5), "10 outputs"),
        (lambda x, y: (x[..., :20], y), "does not take images"),
        (lambda x, y: (x * float("nan"), y), "NaN"),
        (lambda x, y: (y, y), r"\(N, C, H, W\)"),
        (lambda x, y: ("images", y), "no tensor can be made"),
        (lambda x, y: (x, [None]), "no tensor can be made"),
    ],
)
def test_images_and_labels_are_checked(
    model: nn.Module, some: tuple[Tensor, Tensor], change: Any, said: str
) -> None:
    with pytest.raises(HarnessError, match=said):
        measure(model, change(*some), attack="fgsm")


def test_the_wrong_range_is_found(some: tuple[Tensor, Tensor]) -> None:
    eager = own.trained(255.0)
    with pytest.raises(HarnessError, match="normalisation='bytes'"):
        measure(eager, load_images("digits", "test", 200), attack="fgsm")
    assert measure(eager, some, attack="fgsm", normalisation="bytes").clean > 0.7


def test_what_cannot_be_done_is_said(model: nn.Module, some: tuple[Tensor, Tensor]) -> None:
    for words, said in (
        ({"attack": "transfer(pgd)"}, "independent copy"),
        ({"attack": "pdg"}, "did you mean pgd"),
        ({"attack": []}, "no attack"),
        ({"attack": "fgsm", "defense": "pixeldefend"}, "load_defended"),
        ({"attack": "fgsm", "epsilon": -1.0}, "epsilon"),
    ):
        with pytest.raises(HarnessError, match=said):
            measure(model, some, **words)
    with pytest.raises(HarnessError, match="torch module"):
        measure(lambda x: x, some, attack="fgsm")


def test_load_defended_is_what_the_command_line_trains(
    some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    words: dict[str, Any] = {"epochs": 6, "limit": 600, "results": tmp_path, "quiet": True}
    defended = load_defended("menet-usvt", **words)
    result = measure(defended, some, attack="bpda(steps=3)", draws=3)
    assert len(result.records[0].robust_outcomes) == 3
    draws = Draws(0, torch.arange(40), Role.SCORE)
    again = load_defended("menet-usvt", **words)
    assert torch.equal(defended.logits(some[0], draws), again.logits(some[0], draws))
    with pytest.raises(HarnessError, match="defense already"):
        measure(defended, some, defense="menet-nuc")


def test_the_package_offers_it_lazily() -> None:
    import subprocess
    import sys

    code = "import sys, harness; assert 'torch' not in sys.modules and harness.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert harness.evaluate is evaluate
    with pytest.raises(AttributeError, match="evaluat"):
        harness.__getattr__("evaluat")


def test_a_given_model_is_hashed_once_a_call(
    model: nn.Module, some: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    digest = given._digest
    monkeypatch.setattr(given, "_digest", lambda values: hashed.append(1) or digest(values))
    assert len(measure(model, some, attack=["fgsm", "noise", "clean"]).records) == 3
    assert len(hashed) == 1


def test_nothing_in_the_process_is_reseeded(
    model: nn.Module, some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """Training, attacks and random defenses draw from generators of their own."""

    def states() -> list[Tensor]:
        cards = range(torch.cuda.device_count())
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(card) for card in cards)]

    torch.manual_seed(123)
    before = states()
    small = "pixeldefend(features=4,layers=1,mixtures=1)"
    load_defended(small, limit=20, epochs=1, results=tmp_path, device="cpu", quiet=True)
    measure(model, some, attack=["pgd(steps=2)", "square"], defense="menet-usvt", draws=2)
    assert all(map(torch.equal, before, states()))
