"""Total-variation minimisation, side by side: ours in batches, the toolbox's and cvxpy's per image.

    python -m benchmarks.total_variation [mnist] [folder:path/to/images] ...

The toolbox minimises `norm(kept * (z - x)) + lamb * TV(z)`, the error unsquared; with its `norm=1`
the variation is anisotropic. A minimiser of ours is one of theirs where lamb = weight / (2 *
norm(kept * (z - x))), channel by channel: so each channel goes to the toolbox by itself, with that
lamb and the same mask, and both results are valued by the toolbox's own objective.

For each iteration limit of the toolbox (10 is its default), ours runs at the loosest tolerance of a
grid at which its mean objective is no worse. One process, one thread, processor time (so that other
work on the machine counts for little); the contestants take turns in every round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.datasets import data
from harness.defenses.total_variation import minimise, objective

WEIGHT = 0.03
TOLERANCES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


class Toolbox:
    """TotalVarMin on some channels of single images, with masks and lambdas given."""

    def __init__(self, images: Tensor, kept: Tensor, lambdas: Tensor, iterations: int) -> None:
        from art.defences.preprocessor import TotalVarMin

        count, channels = lambdas.shape
        kept = kept.expand_as(images)
        self.jobs = []
        for n in range(count):
            for c in range(channels):
                solver = TotalVarMin(
                    norm=1, lamb=lambdas[n, c].item(), max_iter=iterations, prob=0.5
                )
                image = images[n, c].double().numpy()[..., None]
                mask = kept[n, c].numpy().astype("int")[..., None]
                self.jobs.append((solver, image, mask))
        self.shape = images.shape

    def run(self) -> Tensor:
        found = [solver._minimize(image, mask) for solver, image, mask in self.jobs]
        return torch.from_numpy(np.stack(found)).reshape(self.shape)

    def values(self, candidate: Tensor) -> np.ndarray:
        """Return the toolbox's objective at a candidate (N, C, H, W), one for each channel."""
        planes = candidate.double().reshape(-1, *self.shape[2:]).numpy()
        return np.array(
            [
                solver._loss_func(plane.ravel(), image[..., 0], mask[..., 0], 1, solver.lamb)
                for plane, (solver, image, mask) in zip(planes, self.jobs, strict=True)
            ]
        )


def exact(image: Tensor, kept: Tensor) -> np.ndarray:
    """Solve one channel (H, W) by cvxpy's interior-point solver."""
    import cvxpy

    x, mask = image.double().numpy(), kept.numpy().astype(float)
    z = cvxpy.Variable(x.shape)
    variation = cvxpy.norm1(z[1:] - z[:-1]) + cvxpy.norm1(z[:, 1:] - z[:, :-1])
    error = cvxpy.sum_squares(cvxpy.multiply(mask, z - x))
    cvxpy.Problem(cvxpy.Minimize(error + WEIGHT * variation)).solve(solver=cvxpy.CLARABEL)
    return np.asarray(z.value)


def compare(name: str, images: Tensor, *, single: int, rounds: int) -> None:
    count, channels, height, width = images.shape
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(count, 1, height, width, generator=generator) < 0.5
    few, few_kept = images[:single], kept[:single]

    def ours(tolerance: float) -> Tensor:
        return minimise(images, kept, weight=WEIGHT, isotropic=False, tolerance=tolerance).images

    best = minimise(few.double(), few_kept, weight=WEIGHT, isotropic=False, tolerance=1e-6)
    error = torch.where(few_kept, (best.images - few) ** 2, 0.0).sum((-2, -1)).sqrt()
    lambdas = WEIGHT / (2.0 * error)
    budgets = (10, 100, 1000)
    toolboxes = {budget: Toolbox(few, few_kept, lambdas, budget) for budget in budgets}
    optimum = toolboxes[10].values(best.images).mean()
    level = {tol: toolboxes[10].values(ours(tol)[:single]).mean() for tol in TOLERANCES}

    equal: dict[int, float] = {}
    reached: dict[int, float] = {}
    for budget, toolbox in toolboxes.items():
        reached[budget] = toolbox.values(toolbox.run()).mean()
        enough = [tol for tol in TOLERANCES if level[tol] <= reached[budget]]
        equal[budget] = enough[0] if enough else TOLERANCES[-1]
    contestants: dict[str, tuple[Callable[[], object], int]] = {
        f"ours {tol:g}": (lambda tol=tol: ours(tol), count)  # type: ignore[misc]
        for tol in sorted({*equal.values(), 1e-3, 1e-5}, reverse=True)
    }
    for budget, toolbox in toolboxes.items():
        contestants[f"toolbox {budget}"] = (toolbox.run, single)

    def cvxpy() -> Tensor:
        planes = [exact(few[0, c], few_kept[0, 0]) for c in range(channels)]
        return torch.from_numpy(np.stack(planes))[None]

    contestants["cvxpy"] = (cvxpy, 1)
    times: dict[str, list[float]] = {key: [] for key in contestants}
    for _ in range(rounds):
        for key, (call, size) in contestants.items():
            times[key].append(seconds(call) / size)
    medians = {key: statistics.median(values) for key, values in times.items()}

    first = (few[:1], few_kept[:1])
    mine, theirs = (
        objective(z, *first, weight=WEIGHT, isotropic=False).sum().item()
        for z in (ours(1e-5)[:1], cvxpy())
    )
    print(
        f"\n{name} ({channels} x {height} x {width}): {count} images for ours, {single} for the "
        f"toolbox, 1 for cvxpy; medians of {rounds} rounds\n"
    )
    print("| contestant | ms an image | above optimum | ours, no worse, is | ours at 1e-3 is |")
    print("|---|---|---|---|---|")
    for key, value in medians.items():
        kind, _, setting = key.partition(" ")
        times_ours = f"{value / medians['ours 0.001']:.0f} x as fast"
        if kind == "ours":
            cells = ["ours, gap " + setting, f"{level[float(setting)] / optimum - 1:.2%}", "", ""]
        elif kind == "toolbox":
            partner = f"{equal[int(setting)]:g}"
            speed = f"{value / medians['ours ' + partner]:.0f} x as fast (gap {partner})"
            excess = f"{reached[int(setting)] / optimum - 1:.2%}"
            cells = ["TotalVarMin, max_iter " + setting, excess, speed, times_ours]
        else:
            speed = f"{value / medians['ours 1e-05']:.0f} x as fast (gap 1e-05)"
            excess = f"ours, gap 1e-05: {mine / theirs - 1:+.1e}"
            cells = ["cvxpy, Clarabel", excess, speed, times_ours]
        print(f"| {cells[0]} | {value * 1e3:.2f} | {' | '.join(cells[1:])} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datasets", nargs="*", default=["mnist"])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--count", type=int, default=192, help="images for the batched solver")
    parser.add_argument("--single", type=int, default=4, help="images for the per-image solver")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in options.datasets:
        samples = data.load(name, "test", data_dir=options.data_dir)
        spread = torch.linspace(0, len(samples) - 1, options.count).long()
        images = samples.batch(spread).images
        compare(name, images, single=options.single, rounds=options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
