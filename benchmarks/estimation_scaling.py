"""Cost of matrix estimation against image side, keep probability and batch size.

    OMP_NUM_THREADS=1 python -m benchmarks.estimation_scaling --out docs/figures

Sides 28 to 224 on luminance crops of scikit-learn's two sample photographs, each crop scaled to its
side; p from 0.1 to 1 on sides 28 and 64. Seconds an image, medians of interleaved rounds, one thread.
Peak memory: one fresh process for each batch size, resident memory above that of the loaded input.
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from harness.defenses.estimation import nuclear_norm, soft_impute, usvt
from harness.results import style

ESTIMATORS = {
    "nuclear_norm": functools.partial(nuclear_norm, gap=1e-3),
    "soft_impute": functools.partial(soft_impute, gap=1e-3),
    "usvt": usvt,
}
SIDES = (28, 32, 64, 96, 224)
PROBABILITIES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def crops(count: int, side: int) -> Tensor:
    """Return crops (count, side, side) in [-1, 1] of real photographs, 427 x 640."""
    from sklearn.datasets import load_sample_images

    photos = [
        torch.from_numpy(x.copy()).float().mean(2) / 127.5 - 1 for x in load_sample_images().images
    ]
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for index in range(count):
        photo = photos[index % len(photos)]
        size = int(torch.randint(max(side, 224), 428, (), generator=generator))
        top = int(torch.randint(0, photo.shape[0] - size + 1, (), generator=generator))
        left = int(torch.randint(0, photo.shape[1] - size + 1, (), generator=generator))
        piece = photo[None, None, top : top + size, left : left + size]
        pieces.append(
            torch.nn.functional.interpolate(
                piece, size=(side, side), mode="bilinear", antialias=True, align_corners=False
            )[0, 0]
        )
    return torch.stack(pieces)


def masks(like: Tensor, p: float) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(1)) < p


def cost(observed: Tensor, mask: Tensor, rounds: int) -> dict[str, tuple[float, float]]:
    """Return median milliseconds an image, and mean iterations, of each estimator."""
    times: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    steps = {}
    for turn in range(rounds + 1):
        for name, estimator in ESTIMATORS.items():
            start = time.perf_counter()
            estimate = estimator(observed, mask)
            if turn:
                times[name].append((time.perf_counter() - start) / len(observed) * 1e3)
            steps[name] = float(estimate.iterations.double().mean())
            assert estimate.converged.all()
    return {name: (statistics.median(times[name]), steps[name]) for name in ESTIMATORS}


def peak(name: str, count: int, height: int, width: int) -> float:
    """Return the peak of resident memory above the loaded input, MiB, in this process (Linux)."""
    torch.set_num_threads(1)
    # Smooth low-rank images: what is measured is memory, not convergence.
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(count, height, 4, generator=generator)
    right = torch.rand(count, 4, width, generator=generator) / 2
    observed = left @ right - 1
    mask = torch.rand(observed.shape, generator=generator) < 0.5
    ESTIMATORS[name](observed[:8], mask[:8])
    before = high_water()
    ESTIMATORS[name](observed, mask)
    return high_water() - before


def high_water() -> float:
    """Return the peak of resident memory, MiB; `getrusage` would count the parent's share too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


@style.styled
def picture(lines: list[list[str]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.4))
    axes = figure.subplots(1, 2, sharey=True)
    for name in ESTIMATORS:
        for axis, kind, column in ((axes[0], "side", 1), (axes[1], "p", 2)):
            points = [
                (float(line[column]), float(line[4]))
                for line in lines
                if line[0] == kind and line[3] == name and (kind == "side" or line[1] == "28")
            ]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
    axes[0].set(xscale="log", yscale="log", xlabel="side (p = 0.5)", ylabel="ms an image, 1 thread")
    axes[0].set_xticks(SIDES, [str(side) for side in SIDES])
    axes[0].minorticks_off()
    axes[1].set(xlabel="keep probability p (side 28)", yscale="log")
    axes[0].legend()
    path.write_bytes(style.encoded(figure, "svg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        name, *numbers = options.peak
        print(peak(name, *map(int, numbers)))
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[list[str]] = []
    for side in SIDES:
        observed = crops(128 if side < 64 else 48 if side < 224 else 8, side)
        for name, (took, steps) in cost(observed, masks(observed, 0.5), options.rounds).items():
            lines.append(["side", f"{side}", "0.5", name, f"{took:.3g}", f"{steps:.1f}"])
            print(*lines[-1], flush=True)
    for side in (28, 64):
        observed = crops(128 if side == 28 else 48, side)
        for p in PROBABILITIES:
            for name, (took, steps) in cost(observed, masks(observed, p), options.rounds).items():
                lines.append(["p", f"{side}", f"{p}", name, f"{took:.3g}", f"{steps:.1f}"])
                print(*lines[-1], flush=True)
    with (options.out / "estimation-cost.csv").open("w", newline="") as file:
        header = ["sweep", "side", "p", "estimator", "ms an image", "mean iterations"]
        csv.writer(file).writerows([header, *lines])
    picture(lines, options.out / "estimation-cost.svg")
    memory = [["estimator", "images", "height", "width", "peak MiB above input"]]
    for height, width in ((28, 28), (32, 96)):
        for count in (1000, 10000):
            for name in ESTIMATORS:
                case = [name, str(count), str(height), str(width)]
                command = [sys.executable, "-m", "benchmarks.estimation_scaling", "--peak", *case]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                memory.append([*case, f"{float(out):.0f}"])
                print(*memory[-1], flush=True)
    with (options.out / "estimation-memory.csv").open("w", newline="") as file:
        csv.writer(file).writerows(memory)


if __name__ == "__main__":
    main()
