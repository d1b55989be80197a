"""The training loop against closed forms: schedule, augmentation, optimisers, loss, resuming, explosions."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from harness.cells.cells import TrainingPlan
from harness.datasets.data import Samples, assemble
from harness.random import Draws, Role
from harness.storage import store
from harness.storage.progress import Silent
from harness.targets import training
from harness.types import Batch, Dataset, HarnessError, Spec

COUNT = 12


def toy(count: int = COUNT) -> Dataset:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    samples = Samples(
        images=(images * 255).to(torch.uint8),
        labels=torch.arange(count) % 2,
        classes=("zero", "one"),
        ids=torch.arange(count),
    )
    return assemble("toy", "train", samples)


class Scalar(nn.Module):
    """One weight; the loss is its product with a slope, so that the gradient is the slope."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))


def constant(slope: float) -> training.Loss:
    def loss(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        weight = module.get_parameter("weight")
        return slope * weight * torch.ones(len(batch), dtype=torch.float64)

    return loss


def job(
    folder: Path, module: nn.Module, plan: TrainingPlan, loss: training.Loss, seed: int = 0
) -> training.Job:
    def refuse(error: store.DamagedFile) -> None:
        raise error

    return training.Job(
        title="toy",
        module=module,
        dataset=toy(),
        plan=plan,
        loss=loss,
        seed=seed,
        device=torch.device("cpu"),
        state_path=folder / "toy.state",
        identity="toy",
        mend=refuse,
    )


def fit(work: training.Job, stop: training.Stop | None = None) -> training.Report:
    return training.fit(work, reporter=Silent(), stop=stop or training.Stop())


# --- schedule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "milestones", "drops"),
    [(200, (0.5, 0.75), (100, 150)), (4, (0.5, 0.75), (2, 3)), (10, (), ()), (3, (0.5,), (2,))],
)
def test_the_learning_rate_falls_by_ten_at_each_milestone(
    epochs: int, milestones: tuple[float, ...], drops: tuple[int, ...]
) -> None:
    plan = TrainingPlan(epochs=epochs, learning_rate=0.2, milestones=milestones)
    for epoch in range(epochs):
        passed = sum(epoch >= drop for drop in drops)
        assert training.learning_rate(plan, epoch) == pytest.approx(0.2 / 10**passed, rel=1e-12)


def test_the_loop_steps_at_the_schedule(tmp_path: Path) -> None:
    """With a gradient of 1 and neither momentum nor decay, each step moves the weight by the rate."""
    plan = TrainingPlan(epochs=4, batch_size=5, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    module = Scalar()
    report = fit(job(tmp_path, module, plan, constant(1.0)))
    steps = 3  # 12 images in batches of 5
    moved = steps * (0.1 + 0.1 + 0.01 + 0.001)
    assert float(module.weight) == pytest.approx(1 - moved, abs=1e-12)
    first = [1 - 0.1 * step for step in range(steps)]
    assert report.losses[0] == pytest.approx(sum(first) / steps, abs=1e-12)
    assert len(report.losses) == 4 and not module.training


def test_every_sample_is_seen_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    seen: list[int] = []

    def loss(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        assert torch.equal(draws.ids, batch.ids)
        seen.extend(batch.ids.tolist())
        return constant(1.0)(module, batch, draws)

    fit(job(tmp_path, Scalar(), TrainingPlan(epochs=2, batch_size=5), loss))
    first, second = seen[:COUNT], seen[COUNT:]
    assert sorted(first) == sorted(second) == sorted(toy().ids.tolist())
    assert first != second


@pytest.mark.parametrize(
    ("warmup", "epoch", "share"),
    [(0.0, 0.0, 1.0), (0.5, 0.0, 0.0), (0.5, 2.5, 0.5), (0.5, 5.0, 1.0), (0.5, 9.9, 1.0)],
)
def test_the_inner_radius_grows_linearly_to_its_full_size(
    warmup: float, epoch: float, share: float
) -> None:
    inner = Spec("pgd")
    plan = TrainingPlan(kind="adversarial", epochs=10, inner=inner, epsilon=0.3, warmup=warmup)
    assert training.inner_epsilon(plan, epoch) == pytest.approx(0.3 * share, abs=1e-12)


# --- augmentation ---------------------------------------------------------------------------------


def place(ids: Tensor, step: int = 0) -> Draws:
    return Draws(7, ids, Role.TRAIN, step)


def crops(image: Tensor) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of one (1, H, W) image out of its zero-padded self, as bytes, flipped or not."""
    height, width = image.shape[1:]
    padded = torch.zeros(height + 8, width + 8)
    padded[4:-4, 4:-4] = image[0]
    found = {}
    for row in range(9):
        for column in range(9):
            cut = padded[row : row + height, column : column + width]
            found[cut.contiguous().numpy().tobytes()] = (row, column, False)
            found[cut.flip(1).contiguous().numpy().tobytes()] = (row, column, True)
    return found


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_augmented_images_are_crops_and_each_one_comes_up(kind: str) -> None:
    """5 x 5 pixels, all different: of 81 crops the one is known from its pixels. Every crop shows some."""
    image = torch.arange(1.0, 26).reshape(1, 5, 5)
    count = 20_000
    found = training.augment(image.expand(count, 1, 5, 5), place(torch.arange(count)), kind)
    known = crops(image)
    seen = [known[each.contiguous().numpy().tobytes()] for each in found[:, 0]]
    places = [(row, column) for row, column, _ in seen]
    assert len(set(places)) == 81
    rare = min(places.count(each) for each in set(places))
    assert rare > count / 81 * 0.6  # five standard deviations below the mean
    flips = sum(flip for *_, flip in seen) / count
    assert flips == 0 if kind == "crop" else abs(flips - 0.5) < 5 * 0.5 / math.sqrt(count)


def test_no_augmentation_is_the_image_itself() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert training.augment(images, place(torch.arange(3)), "none") is images


def test_a_sample_is_cut_the_same_in_any_batch_and_its_channels_alike() -> None:
    images = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 2 * images[:, 0]
    ids = torch.arange(100, 108)
    whole = training.augment(images, place(ids), "crop-flip")
    assert whole.shape == images.shape
    torch.testing.assert_close(whole[:, 2], 2 * whole[:, 0], rtol=0, atol=0)
    order = torch.tensor([5, 0, 7])
    assert torch.equal(
        training.augment(images[order], place(ids[order]), "crop-flip"), whole[order]
    )
    assert not torch.equal(training.augment(images, place(ids, step=1), "crop-flip"), whole)


# --- optimisers and loss --------------------------------------------------------------------------


def test_two_steps_of_momentum_with_weight_decay(tmp_path: Path) -> None:
    """v <- m v + (g + d w); w <- w - lr v."""
    plan = TrainingPlan(
        epochs=1,
        batch_size=6,
        learning_rate=0.5,
        momentum=0.9,
        weight_decay=0.1,
        milestones=(),
    )
    module = Scalar(2.0)
    fit(job(tmp_path, module, plan, constant(3.0)))
    velocity = 3.0 + 0.1 * 2.0
    weight = 2.0 - 0.5 * velocity
    velocity = 0.9 * velocity + (3.0 + 0.1 * weight)
    weight -= 0.5 * velocity
    assert float(module.weight) == pytest.approx(weight, abs=1e-12)


def test_two_steps_of_adam(tmp_path: Path) -> None:
    """Kingma and Ba 2015, algorithm 1, with gradients 3 and -1."""
    slopes = iter((3.0, -1.0))

    def loss(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        return constant(next(slopes))(module, batch, draws)

    plan = TrainingPlan(epochs=1, batch_size=6, optimiser="adam", learning_rate=0.01, milestones=())
    module = Scalar(2.0)
    fit(job(tmp_path, module, plan, loss))
    weight, first, second = 2.0, 0.0, 0.0
    for step, slope in enumerate((3.0, -1.0), start=1):
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
        weight -= 0.01 * mean / (math.sqrt(square) + 1e-8)
    assert float(module.weight) == pytest.approx(weight, abs=1e-9)


def test_cross_entropy_of_each_sample() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(3.0), 0.0, 0.0], [100.0, 0.0, 0.0]])
    found = training.cross_entropy(logits, torch.tensor([1, 0, 2]))
    torch.testing.assert_close(found, torch.tensor([math.log(3), math.log(5 / 3), 100.0]))
    half = training.cross_entropy(logits[:1].bfloat16(), torch.tensor([1]))
    assert half.dtype == torch.float32


# --- resuming, explosions, the process ------------------------------------------------------------


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2)
        )


def classify(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
    images = training.augment(batch.images, draws, "crop-flip")
    return training.cross_entropy(module(images), batch.labels)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_training_that_was_stopped_gives_the_same_weights_to_the_bit(
    tmp_path: Path, optimiser: str, cut: int
) -> None:
    """Stopped in the middle of an epoch (1, 4) and at its end (6): 3 steps an epoch."""
    plan = TrainingPlan(epochs=4, batch_size=5, learning_rate=0.01)
    plan = dataclasses.replace(plan, optimiser=optimiser)
    whole = network()
    report = fit(job(tmp_path / "whole", whole, plan, classify))

    stop, calls = training.Stop(), 0

    def until(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        nonlocal calls
        calls += 1
        stop.asked = calls == cut
        return classify(module, batch, draws)

    folder = tmp_path / "parts"
    folder.mkdir()
    with pytest.raises(training.Interrupted):
        fit(job(folder, network(), plan, until), stop)
    rest = network()
    torch.manual_seed(99)  # the state of the process is no part of a training
    again = fit(job(folder, rest, plan, classify))
    for (name, one), two in zip(
        whole.state_dict().items(), rest.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    assert again.losses == report.losses


def test_the_state_of_another_training_is_not_taken_over(tmp_path: Path) -> None:
    stop = training.Stop(asked=True)
    plan = TrainingPlan(epochs=2, batch_size=5)
    with pytest.raises(training.Interrupted):
        fit(job(tmp_path, Scalar(), plan, constant(1.0)), stop)
    other = dataclasses.replace(job(tmp_path, Scalar(), plan, constant(1.0)), identity="other")
    with pytest.raises(store.DamagedFile, match="another training"):
        fit(other)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_training_before_it_spoils_the_weights(
    tmp_path: Path, value: float
) -> None:
    calls = 0

    def loss(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        nonlocal calls
        calls += 1
        return constant(1.0 if calls < 5 else value)(module, batch, draws)

    module = Scalar()
    plan = TrainingPlan(
        epochs=3, batch_size=5, learning_rate=0.2, momentum=0.0, weight_decay=0.0, milestones=()
    )
    with pytest.raises(HarnessError, match=r"step 4 \(epoch 1, samples .*learning_rate=0.02"):
        fit(job(tmp_path, module, plan, loss))
    assert float(module.weight) == pytest.approx(1 - 4 * 0.2)


@pytest.mark.parametrize("ends", ["done", "stopped", "exploded"])
def test_training_leaves_the_generators_of_the_process_alone(tmp_path: Path, ends: str) -> None:
    def states() -> tuple[object, ...]:
        numbers = numpy.random.get_state(legacy=True)
        return torch.get_rng_state().tolist(), random.getstate(), numbers[1].tobytes()  # type: ignore[index]

    def loss(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        losses = classify(module, batch, draws)  # dropout draws
        return losses * math.nan if ends == "exploded" else losses

    before = states()
    work = job(tmp_path, network(), TrainingPlan(epochs=1, batch_size=5), loss)
    try:
        fit(work, training.Stop(asked=ends == "stopped"))
    except (training.Interrupted, HarnessError):
        assert ends != "done"
    else:
        assert ends == "done"
    assert states() == before
