"""Speed on a GPU of the parts that the cost of a cell consists of, each beside its bound.

    python -m benchmarks.gpu estimation step race same --data-dir FOLDER [--csv FILE] [--device cuda]

estimation  images a second of each estimator on CIFAR-10 matrices, and of the plain products and passes that
            a step consists of; the certificate is checked in float64 on the CPU.
step        a BPDA step through the view against the classifier's own forward and backward, ResNet-18, and
            what that makes of 10,000 images x 1,000 steps.
race        PGD-40 against torchattacks and foolbox on the same GPU and model, in turns.
same        one attacked batch twice from one seed: how many images differ.

Times are between synchronised points, medians of seven, after two calls to warm up. `--device cpu
--images 64` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from harness.attacks.bpda import BPDA
from harness.attacks.losses import against
from harness.attacks.pgd import PGD
from harness.datasets import data
from harness.defenses.estimation import nuclear_norm, soft_impute, usvt
from harness.defenses.estimation.certificate import relative_gap
from harness.defenses.estimation.images import to_matrix
from harness.random import Draws, Role
from harness.registry import defenses, models
from harness.spec import build, parse
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import ThreatModel

EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 40
THREAT = ThreatModel(epsilon=EPSILON)
ROUNDS = 7
Row = tuple[str, str, str]
"""A measurement: its name, the figure, and the bound to compare it with."""


class Bench:
    """The device, the images, and a clock that waits for the device."""

    def __init__(self, device: torch.device, images: int, folder: Path | None) -> None:
        self.device = device
        test = data.load("cifar10-jpeg", "test", data_dir=folder)
        self.batch = test.batch(torch.arange(min(images, len(test)))).to(device)

    def seconds(self, call: Callable[[], object]) -> float:
        self._wait()
        begin = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - begin

    def median(self, *calls: Callable[[], object]) -> list[float]:
        """Return the median seconds of each call, taken in turns."""
        for call in calls * 2:
            call()
        turns = [[self.seconds(call) for call in calls] for _ in range(ROUNDS)]
        return [statistics.median(times) for times in zip(*turns, strict=True)]

    def classifier(self) -> torch.nn.Module:
        torch.manual_seed(0)
        model: torch.nn.Module = build(parse("resnet18"), models, shape=(3, 32, 32), classes=10)
        return model.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def estimation(bench: Bench) -> list[Row]:
    matrix = to_matrix(2 * bench.batch.images - 1, "concat")
    rows: list[Row] = []
    for p in (0.9, 0.5):
        generator = torch.Generator().manual_seed(0)
        mask = (torch.rand(matrix.shape, generator=generator) < p).to(bench.device)
        for name, solve, goal in (
            ("nuclear_norm, gap 1e-3", nuclear_norm, "20,000, better 100,000"),
            ("soft_impute, gap 1e-3", soft_impute, ""),
            ("usvt", usvt, "100,000, better 500,000"),
        ):
            (took,) = bench.median(lambda solve=solve, mask=mask: solve(matrix, mask))
            rows.append((f"{name}, p = {p}, images/s", f"{len(matrix) / took:,.0f}", goal))
        found = nuclear_norm(matrix, mask)
        few = slice(0, 64)
        value, a, m = (t[few].double().cpu() for t in (found.value, matrix * mask, mask))
        half = torch.full((len(a),), 0.5, dtype=torch.float64)
        proved = relative_gap(a, a - m * value, half, torch.linalg.svdvals(value).sum(-1))
        rows.append((f"largest gap in float64, p = {p}", f"{proved.max():.2e}", "1.0e-03"))
        steps = found.iterations.double().mean().item()
        rows.append((f"nuclear_norm's steps, p = {p}", f"{steps:.1f}", "mean over the images"))
    left = torch.randn(len(matrix), matrix.shape[1], 16, device=bench.device)
    (product,) = bench.median(lambda: matrix.mT @ left)
    # A step takes five such products and some ten passes over H x W arrays of three operands each.
    flops = 2 * matrix.shape[1] * matrix.shape[2] * 16 * len(matrix)
    rows.append(("batched product 96 x 32 x 16, TFLOP/s", f"{flops / product / 1e12:.2f}", ""))
    (passing,) = bench.median(lambda: matrix.mul(matrix))
    moved = 3 * matrix.numel() * matrix.element_size()
    rows.append(("elementwise pass, GB/s", f"{moved / passing / 1e9:,.0f}", ""))
    bound = len(matrix) / (10 * (5 * product + 10 * passing))
    rows.append(("bound of ten steps at these rates, images/s", f"{bound:,.0f}", "without `eigh`"))
    return rows


def step(bench: Bench) -> list[Row]:
    model, batch = bench.classifier(), bench.batch
    half = bench.device.type == "cuda"

    def bare() -> Tensor:
        pixels = batch.images.detach().requires_grad_(True)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            logits = model(pixels)
        loss = functional.cross_entropy(logits.float(), batch.labels, reduction="sum")
        return torch.autograd.grad(loss, pixels)[0]

    draws = Draws(0, batch.ids, Role.ATTACK)
    calls: list[Callable[[], object]] = [bare]
    names = ("vanilla", "menet-usvt", "menet-nuc(p_low=0.8,p_high=1.0)", "menet-nuc")
    for name in names:
        defended = Defended(model, build(parse(name), defenses), 10).frozen()
        view = View(defended, batch, THREAT, "gradients")
        loss = against("cross-entropy", batch.labels)
        calls.append(lambda view=view, loss=loss: view.gradient(batch.images, draws, loss))
    network, *steps = bench.median(*calls)
    rows: list[Row] = [
        ("network's forward and backward, ms", f"{network * 1e3:.2f}", f"{len(batch)} images")
    ]
    for name, took in zip(names, steps, strict=True):
        rows.append((f"a step on {name}, times the network's", f"{took / network:.2f}", "1.3"))
        minutes = took / len(batch) * 10_000 * 1_000 / 60
        rows.append((f"10,000 images x 1,000 steps on {name}, minutes", f"{minutes:.1f}", "15"))
    return rows


def race(bench: Bench) -> list[Row]:
    import foolbox
    import torchattacks

    model, batch = bench.classifier(), bench.batch
    defended = Defended(model, build(parse("vanilla"), defenses), 10).frozen()
    draws = Draws(0, batch.ids, Role.ATTACK)
    theirs = torchattacks.PGD(model, eps=EPSILON, alpha=STEP_SIZE, steps=STEPS)
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=bench.device)
    linf = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS)

    def native(attack: PGD) -> Callable[[], Tensor]:
        def run() -> Tensor:
            view = View(defended, batch, THREAT, attack.access)
            return attack.perturb(view, batch, THREAT, draws).images

        return run

    def by_foolbox() -> Tensor:
        criterion = foolbox.criteria.Misclassification(batch.labels)
        found: Tensor = linf.run(bounded, batch.images, criterion, epsilon=EPSILON)
        return found

    contestants: dict[str, Callable[[], Tensor]] = {
        "native": native(PGD(steps=STEPS, step_size=STEP_SIZE)),
        "native, nothing leaves": native(PGD(steps=STEPS, step_size=STEP_SIZE, keep="last")),
        "torchattacks": lambda: theirs(batch.images, batch.labels),
        "foolbox": by_foolbox,
    }
    times = bench.median(*contestants.values())
    rows: list[Row] = []
    for (name, call), took in zip(contestants.items(), times, strict=True):
        attacked = call().detach()
        with torch.no_grad():
            accuracy = (model(attacked).argmax(1) == batch.labels).float().mean().item()
        ratio = f"{took / times[0]:.2f} of native's time"
        rows.append((f"PGD-40, {name}, ms", f"{took * 1e3:.1f}", f"{ratio}, {accuracy:.1%} robust"))
    return rows


def same(bench: Bench) -> list[Row]:
    model, batch = bench.classifier(), bench.batch[torch.arange(min(256, len(bench.batch)))]
    defended = Defended(model, build(parse("menet-nuc"), defenses), 10).frozen()
    attack = BPDA(steps=10, step_size=STEP_SIZE)
    found = [
        attack.perturb(
            View(defended, batch, THREAT, attack.access),
            batch,
            THREAT,
            Draws(0, batch.ids, Role.ATTACK),
        ).images
        for _ in range(2)
    ]
    differ = int((found[0] != found[1]).flatten(1).any(1).sum())
    return [("images that differ between two runs of BPDA-10", f"{differ}", f"0 of {len(batch)}")]


STAGES = {"estimation": estimation, "step": step, "race": race, "same": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    bench = Bench(device, options.images, options.data_dir)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table: list[tuple[str, ...]] = [("stage", "what", "measured", "against")]
    print(f"torch {torch.__version__}, {where}, {len(bench.batch)} images\n")
    print("| stage | what | measured | against |\n|---|---|---|---|")
    for name in options.stages:
        for row in STAGES[name](bench):
            table.append((name, *row))
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
