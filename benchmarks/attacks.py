"""Native attacks side by side with the libraries': ratios of time in one process, at equal accuracy.

    python -m benchmarks.attacks --output FOLDER [--images 256] [--repeats 7] [--threads 2]

Real MNIST (HARNESS_DATA) and the LeNet of `models`, trained here once without and once with adversarial
training and cached; `--case cifar10`: ResNet-18 after forty batches of CIFAR-10 images, PGD alone.
Contestants take turns, the first one changing from round to round; a ratio is that of the medians. A library
counts as beaten only where its robust accuracy and the native one, means over the rounds, are within a point.
Writes `attacks.md` and `attacks.csv`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.attacks.pgd import PGD
from harness.attacks.spsa import SPSA
from harness.cells.cells import Precision
from harness.datasets import data
from harness.random import Draws, Role, permutation
from harness.registry import defenses, models
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Attack, Batch, Dataset, ThreatModel

STEPS = 40
HALF = "native, bfloat16"
"""The native attack with `--precision bfloat16`, for processors that compute in it."""
Contestant = Callable[[Batch], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its training and the ball in which it is attacked."""

    dataset: str
    model: str
    epsilon: float
    step_size: float
    batches: int
    """Training batches of 64 images."""
    robust: bool
    """True where an adversarially trained model is raced on too."""

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(epsilon=self.epsilon)


CASES = {
    "mnist": Case(
        dataset="mnist", model="lenet", epsilon=0.3, step_size=0.01, batches=200, robust=True
    ),
    "cifar10": Case(
        dataset="cifar10-jpeg",
        model="resnet18",
        epsilon=8 / 255,
        step_size=2 / 255,
        batches=40,
        robust=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant in one race."""

    race: str
    contestant: str
    seconds: float
    accuracy: float
    ratio: float
    """The contestant's time over the native attack's: above 1 the native one is quicker."""
    counts: bool


def bare_loop(model: nn.Module, case: Case) -> Contestant:
    """Return projected gradient descent in the fewest lines, a bound where no image leaves early."""

    def attack(batch: Batch) -> Tensor:
        images, labels = batch.images, batch.labels
        x = images + (torch.rand_like(images) * 2 - 1) * case.epsilon
        x = x.clamp(0, 1)
        for _ in range(STEPS):
            x.requires_grad_(True)
            loss = functional.cross_entropy(model(x), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() + case.step_size * gradient.sign()
            x = torch.minimum(torch.maximum(x, images - case.epsilon), images + case.epsilon)
            x = x.clamp(0, 1)
        return x

    return attack


def native(
    attack: Attack, model: nn.Module, case: Case, search: Precision = "float32"
) -> Contestant:
    """Return the attack run through the view, as in an evaluation, with a new start at each call."""
    defended = Defended(model, defenses.get("vanilla")(), 10, search=search).frozen()
    seeds = itertools.count()

    def run(batch: Batch) -> Tensor:
        view = View(defended, batch, case.threat, attack.access)
        draws = Draws(next(seeds), batch.ids, Role.ATTACK)
        return attack.perturb(view, batch, case.threat, draws).images

    return run


def torchattacks_pgd(model: nn.Module, case: Case) -> Contestant:
    import torchattacks

    attack = torchattacks.PGD(
        model, eps=case.epsilon, alpha=case.step_size, steps=STEPS, random_start=True
    )
    return lambda batch: attack(batch.images, batch.labels)


def foolbox_pgd(model: nn.Module, case: Case) -> Contestant:
    import foolbox

    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=case.step_size, steps=STEPS, random_start=True)

    def run(batch: Batch) -> Tensor:
        criterion = foolbox.criteria.Misclassification(batch.labels)
        return attack.run(bounded, batch.images, criterion, epsilon=case.epsilon)

    return run


def art_pgd(model: nn.Module, batch: Batch, case: Case) -> Contestant:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(batch.images.shape[1:]),
        10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=case.epsilon,
        eps_step=case.step_size,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=len(batch),
        verbose=False,
    )
    return lambda batch: torch.from_numpy(
        attack.generate(batch.images.numpy(), batch.labels.numpy())
    )


def torchattacks_spsa(model: nn.Module, attack: SPSA, case: Case) -> Contestant:
    import torchattacks

    pairs = attack.samples // 2
    theirs = torchattacks.SPSA(
        model,
        eps=case.epsilon,
        delta=attack.delta,
        lr=attack.learning_rate,
        nb_iter=attack.steps,
        nb_sample=pairs,
        max_batch_size=min(pairs, 64),
    )
    return lambda batch: theirs(batch.images, batch.labels)


def race(
    name: str,
    contestants: dict[str, Contestant],
    model: nn.Module,
    batch: Batch,
    case: Case,
    repeats: int,
    clock: Callable[[], float],
) -> list[Row]:
    """Run the contestants in turns; the first one is native, and the others are compared with it."""
    times: dict[str, list[float]] = {key: [] for key in contestants}
    found: dict[str, list[float]] = {key: [] for key in contestants}
    order = list(contestants)
    for key in order:  # warm up; first calls allocate and choose kernels
        contestants[key](batch)
    for turn in range(repeats):
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            begin = clock()
            images = contestants[key](batch)
            times[key].append(clock() - begin)
            found[key].append(accuracy(model, images.detach(), batch, case))
    rows = []
    reference = statistics.median(times[order[0]])
    # One random start is worth a point or two on a few hundred images: the mean over all rounds.
    means = {key: statistics.mean(found[key]) for key in order}
    for key in order:
        seconds = statistics.median(times[key])
        equal = abs(means[key] - means[order[0]]) <= 0.01
        rows.append(Row(name, key, seconds, means[key], seconds / reference, equal))
        print(f"{name:28} {key:20} {seconds:8.3f} s  {means[key]:6.1%}  {rows[-1].ratio:5.2f}x")
    return rows


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, batch: Batch, case: Case) -> float:
    """Return the robust accuracy after checking that the images keep to the ball and the box."""
    assert (images - batch.images).abs().max() <= case.epsilon + 2e-5, "left the ball"
    assert images.min() >= -2e-5 and images.max() <= 1 + 2e-5, "left the box"
    return (model(images).argmax(1) == batch.labels).float().mean().item()


def trained(case: Case, dataset: Dataset, cache: Path, *, adversarial: bool) -> nn.Module:
    """Return the model after `batches` of 64; `adversarial`: after 600 more on weakly attacked images."""
    torch.manual_seed(0)
    model: nn.Module = models.get(case.model)(tuple(dataset.shape), 10)
    model = model.to(memory_format=torch.channels_last)  # as in every run of the harness
    file = cache / f"{case.model}-{'robust' if adversarial else 'vanilla'}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval().requires_grad_(False)
    if adversarial:
        model = trained(case, dataset, cache, adversarial=False).requires_grad_(True)
    batches = 600 if adversarial else case.batches
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=batches)
    order = permutation(0, len(dataset), role=Role.SHUFFLE, step=int(adversarial))
    for number, index in enumerate(order.split(64)[:batches]):
        batch = dataset.batch(index)
        images = batch.images
        if adversarial:  # epsilon grows: LeNet does not learn from 0.3 at the outset
            images = two_steps(model, batch, case.epsilon * min(1.0, number / 250))
        loss = functional.cross_entropy(model(images), batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval().requires_grad_(False)


def two_steps(model: nn.Module, batch: Batch, epsilon: float) -> Tensor:
    """Return the images after two signed steps of 0.7 epsilon from a random start."""
    delta = (torch.rand_like(batch.images) * 2 - 1) * epsilon
    for _ in range(2):
        x = (batch.images + delta).clamp(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(x), batch.labels), x)
        delta = x.detach() + 0.7 * epsilon * gradient.sign() - batch.images
        delta = delta.clamp(-epsilon, epsilon)
    return (batch.images + delta).clamp(0, 1)


def write(rows: list[Row], folder: Path, settings: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "attacks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        writer.writerows(dataclasses.astuple(row) for row in rows)
    lines = [
        "# Attacks: time against the libraries",
        "",
        settings,
        "",
        "| race | contestant | seconds | robust accuracy | times the native attack's | counts |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        counts = "yes" if row.counts else "no: accuracies differ"
        lines.append(
            f"| {row.race} | {row.contestant} | {row.seconds:.3f} | {row.accuracy:.1%} "
            f"| {row.ratio:.2f} | {counts} |"
        )
    (folder / "attacks.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--case", choices=list(CASES), default="mnist")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "harness-benchmark-lenet"
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="races whose name contains this")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: of the processor, where others use the machine too (with --threads 1)",
    )
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    torch.set_num_threads(options.threads)

    case = CASES[options.case]
    train, test = data.load(case.dataset, "train"), data.load(case.dataset, "test")
    batch = test.batch(slice(0, options.images))
    few = test.batch(slice(0, max(1, options.images // 32)))
    pgd = PGD(steps=STEPS, step_size=case.step_size)
    whole = PGD(steps=STEPS, step_size=case.step_size, keep="last", snapshot_steps=())
    spsa = SPSA(steps=80, samples=128)
    rows: list[Row] = []
    for kind in ("vanilla", "robust") if case.robust else ("vanilla",):
        model = trained(case, train, options.cache, adversarial=kind == "robust")
        races: dict[str, tuple[dict[str, Contestant], Batch]] = {
            f"PGD-40, {kind} {case.model}": (
                {
                    "native": native(pgd, model, case),
                    HALF: native(pgd, model, case, "bfloat16"),
                    "torchattacks": torchattacks_pgd(model, case),
                    "foolbox": foolbox_pgd(model, case),
                    "ART": art_pgd(model, batch, case),
                },
                batch,
            ),
            f"nothing leaves, {kind} {case.model}": (
                {
                    "native, keep=last": native(whole, model, case),
                    "bare loop": bare_loop(model, case),
                },
                batch,
            ),
        }
        if case.dataset == "mnist":
            races[f"SPSA, {kind} {case.model}"] = (
                {
                    "native": native(spsa, model, case),
                    "torchattacks": torchattacks_spsa(model, spsa, case),
                },
                few,
            )
        for name, (contestants, images) in races.items():
            if options.only in name:
                rows += race(name, contestants, model, images, case, options.repeats, clock)
    write(
        rows,
        options.output,
        f"{case.dataset}, {options.images} images (SPSA: {len(few)}, {spsa.steps} steps of "
        f"{spsa.samples} samples), epsilon {case.epsilon:.4g}, step {case.step_size:.4g}, {STEPS} "
        f"steps; median of {options.repeats}, {options.clock} clock; "
        f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}.",
    )


if __name__ == "__main__":
    main()
