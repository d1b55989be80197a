"""A profile on 1, 8 and 64 GPUs, simulated: how long, what bounds it, how many bytes move.

    python -m benchmarks.cluster --profile paper --gpus 1 8 64 --rate 10000 --factor 50

The graph is that of the Ray executor: each training, each attack in at most as many parts as there are GPUs,
each scoring. What a task costs is counted in passes, as `harness reproduce --dry-run` counts them. NO GPU WAS
MEASURED. Assumed, and to be set: `--rate`, images a second of a training step (forward and backward) of
ResNet-18 on CIFAR-10, other networks by their floating-point operations (a forward is a third of a training
step, a gradient of the input two thirds); `--factor`, how many times as fast as one CPU core a GPU
transforms images, on the milliseconds of `TRANSFORM`, which were measured; `--start`, seconds that a task
takes to begin. Failures, early stopping and the driver's own time are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import heapq
import itertools
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.cells import plugins
from harness.cells.cells import Cell, Target
from harness.evaluation.plans import source_of
from harness.executors.ray import parts
from harness.paper import expansion, protocol
from harness.registry import models
from harness.spec import build
from harness.storage import keys
from harness.types import Attack, Defense, Spec

SIZES = {  # training images, test images, shape, classes
    "mnist": (60_000, 10_000, (1, 28, 28), 10),
    "cifar10": (50_000, 10_000, (3, 32, 32), 10),
    "svhn": (73_257, 26_032, (3, 32, 32), 10),
    "tiny-imagenet": (100_000, 10_000, (3, 64, 64), 200),
}
TRANSFORM = {  # milliseconds a CIFAR-10 image, CPU time of one core (AMD EPYC), in batches
    "menet-usvt": 0.12,
    "menet-nuc": 1.7,
    "menet-softimpute": 7.5,
    "tvm": 1.7,
    "pixeldefend": 33.0,
    "thermometer": 0.1,
}
UNKNOWN = 5_000
"""Passes assumed of an attack that does not say: about the most that AutoAttack makes."""
BATCH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumed:
    rate: float
    factor: float
    start: float


@dataclasses.dataclass
class Task:
    """One piece of work on one GPU."""

    kind: str
    title: str
    seconds: float
    after: list[int]
    moved: float
    """Bytes read from and written to the store."""


@functools.cache
def flops(model: str, shape: tuple[int, int, int], classes: int) -> tuple[float, float]:
    """Return (floating-point operations of one image's forward pass, bytes of the weights)."""
    from harness.spec import parse

    with torch.device("meta"):
        network = build(parse(model), models, shape=shape, classes=classes).eval()
        image = torch.empty(1, *shape)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(image)
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return float(counter.get_total_flops()), float(weights)


class Graph:
    """All tasks of some cells, each before those that need it."""

    def __init__(self, cells: Sequence[Cell], gpus: int, assumed: Assumed) -> None:
        self.assumed, self.gpus = assumed, gpus
        self.tasks: list[Task] = []
        self.trained: dict[bytes, int] = {}
        self.estimated: dict[bytes, int] = {}
        attacks = [plugins.attack(cell.attack) for cell in cells]
        sources = [
            source_of(cell.target, attack.source)
            for cell, attack in zip(cells, attacks, strict=True)
        ]
        for cell, source in zip(cells, sources, strict=True):
            self.train(source)
            self.train(cell.target)
        made: dict[bytes, list[int]] = {}
        for cell, attack, source in zip(cells, attacks, sources, strict=True):
            name = keys.canonical([source, cell.attack, cell.threat, cell.limit, cell.max_queries])
            if name not in made:
                made[name] = self.attack(cell, attack, source)
        for cell, source in zip(cells, sources, strict=True):
            name = keys.canonical([source, cell.attack, cell.threat, cell.limit, cell.max_queries])
            self.score(cell, made[name])

    def add(self, kind: str, title: str, seconds: float, after: list[int], moved: float) -> int:
        self.tasks.append(Task(kind, title, seconds + self.assumed.start, after, moved))
        return len(self.tasks) - 1

    def pass_seconds(self, target: Target) -> tuple[float, float, float]:
        """Return (seconds of a forward pass, of a transformation, bytes of the weights) for one image."""
        _, _, shape, classes = SIZES[target.dataset]
        defense = _defense(target)
        seen = (defense.output_channels(shape[0]), *shape[1:])
        operations, weights = flops(str(target.model), seen, classes)
        unit, _ = flops(str(Spec("resnet18")), (3, 32, 32), 10)
        pixels = shape[0] * shape[1] * shape[2] / 3072
        slow = TRANSFORM.get(target.defense.name, 0.0) / 1e3 / self.assumed.factor
        return operations / unit / (3 * self.assumed.rate), slow * pixels, weights

    def train(self, target: Target) -> int:
        name = keys.canonical(target)
        if name in self.trained:
            return self.trained[name]
        forward, transform, weights = self.pass_seconds(target)
        images, _, shape, _ = SIZES[target.dataset]
        plan, defense = target.training, _defense(target)
        images = min(images, plan.limit or images)
        seen = images * plan.epochs
        seconds, moved, after = 3 * forward * seen, weights, []
        if plan.kind == "adversarial" and plan.inner is not None:
            passes = plugins.attack(plan.inner).passes or 1
            seconds += seen * (passes * (2 * forward + transform) + transform)
        elif defense.estimates:
            same = keys.canonical([target.dataset, target.defense, target.seed, plan.limit])
            size = float(defense.estimates * images * shape[0] * shape[1] * shape[2])
            if same not in self.estimated:
                work = defense.estimates * images * transform
                title = f"estimates of {target.label}, {target.dataset}"
                self.estimated[same] = self.add("estimates", title, work, [], size)
            after, moved = [self.estimated[same]], moved + size
        title = f"training {target.label}, {target.model}, {target.dataset}, seed {target.seed}"
        self.trained[name] = self.add("training", title, seconds, after, moved)
        return self.trained[name]

    def attack(self, cell: Cell, attack: Attack, source: Target) -> list[int]:
        forward, transform, weights = self.pass_seconds(source)
        _, images, shape, _ = SIZES[source.dataset]
        images = min(images, cell.limit or images)
        passes = UNKNOWN if attack.passes is None else attack.passes
        one = (2 * forward if attack.access == "gradients" else forward) + transform
        size = 4.0 * shape[0] * shape[1] * shape[2]
        title = f"{cell.attack} on {source.label}, {source.model}, {source.dataset}"
        after = [self.train(source)]
        return [
            self.add(
                "attack",
                title,
                passes * (min(end, images) - first) * one,
                after,
                weights + size * (min(end, images) - first),
            )
            for first, end in parts(images, BATCH, self.gpus)
        ]

    def score(self, cell: Cell, attacked: list[int]) -> None:
        forward, transform, weights = self.pass_seconds(cell.target)
        _, images, shape, _ = SIZES[cell.target.dataset]
        images = min(images, cell.limit or images)
        randomised = _defense(cell.target).randomised
        seconds = 2 * (cell.draws if randomised else 1) * images * (forward + transform)
        moved = weights + 4.0 * images * shape[0] * shape[1] * shape[2]
        after = [*attacked, self.train(cell.target)]
        self.add("scoring", f"scoring {cell.attack} on {cell.target.label}", seconds, after, moved)


def _defense(target: Target) -> Defense:
    return plugins.defense(target.defense)


def longest(tasks: Sequence[Task]) -> tuple[list[float], list[int]]:
    """Return seconds from each task's start to the end of all that waits for it; the longest chain."""
    waiting: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for before in task.after:
            waiting[before].append(index)
    left = [0.0] * len(tasks)
    for index in reversed(range(len(tasks))):
        left[index] = tasks[index].seconds + max((left[n] for n in waiting[index]), default=0.0)
    chain = [max(range(len(tasks)), key=left.__getitem__)]
    while following := waiting[chain[-1]]:
        chain.append(max(following, key=left.__getitem__))
    return left, chain


def schedule(tasks: Sequence[Task], gpus: int, order: Sequence[float]) -> float:
    """Return the seconds until all is done, where a free GPU takes the ready task of the lowest `order`."""
    open_, ready, running = [len(task.after) for task in tasks], [], []
    waiting: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for before in task.after:
            waiting[before].append(index)
        if not task.after:
            heapq.heappush(ready, (order[index], index))
    now, done = 0.0, 0
    while done < len(tasks):
        while ready and len(running) < gpus:
            _, index = heapq.heappop(ready)
            heapq.heappush(running, (now + tasks[index].seconds, index))
        now, index = heapq.heappop(running)
        done += 1
        for following in waiting[index]:
            open_[following] -= 1
            if not open_[following]:
                heapq.heappush(ready, (order[following], following))
    return now


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rate", type=float, default=10_000)
    parser.add_argument("--factor", type=float, default=50)
    parser.add_argument("--start", type=float, default=10)
    words = parser.parse_args()
    assumed = Assumed(rate=words.rate, factor=words.factor, start=words.start)
    profile = protocol.profile(words.profile)
    places = itertools.chain.from_iterable(
        expansion.expand(protocol.load(name), profile) for name in protocol.names()
    )
    cells = expansion.unique(list(places))
    print(f"{profile.name}: {len(cells)} cells; no GPU was measured, assumed: {assumed}\n")
    print("| GPUs | tasks | GPU hours | hours | longest path first | busy | moved |")
    print("|---|---|---|---|---|---|---|")
    for gpus in words.gpus:
        tasks = Graph(cells, gpus, assumed).tasks
        left, chain = longest(tasks)
        total = sum(task.seconds for task in tasks)
        took = schedule(tasks, gpus, range(len(tasks)))
        best = schedule(tasks, gpus, [-value for value in left])
        moved = sum(task.moved for task in tasks)
        print(
            f"| {gpus} | {len(tasks):,} | {total / 3600:,.0f} | {took / 3600:,.1f} | "
            f"{best / 3600:,.1f} | {total / took / gpus:.0%} | {moved / 2**30:,.0f} GB |"
        )
    print(f"\ncritical path: {left[chain[0]] / 3600:.1f} hours")
    for index in chain:
        print(f"- {tasks[index].seconds / 3600:.2f} h {tasks[index].title}")
    print("\nGPU hours by kind, and of the longest single tasks")
    for kind in ("estimates", "training", "attack", "scoring"):
        hours = sum(task.seconds for task in tasks if task.kind == kind) / 3600
        print(f"- {kind}: {hours:,.1f}")
    for task in sorted(tasks, key=lambda task: -task.seconds)[:6]:
        print(f"- {task.seconds / 3600:.1f} {task.title}")


if __name__ == "__main__":
    main()
