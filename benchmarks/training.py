"""Cost of a defense in training: images a second of every defense next to vanilla, in one process.

    python -m benchmarks.training [--dataset mnist] [--images 4000] [--data-dir FOLDER] [--csv FILE]

Each training is one epoch over the first `--images` images by the harness's own loop, model and inner attack;
the defenses take turns, three rounds, medians. What is made once before (fixed estimates, PixelDefend's
density model, which trains as many epochs) is timed apart, in the first round. PixelDefend is left out unless
named.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from harness.cells import defaults
from harness.cells.cells import Target
from harness.spec import parse
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.targets.model_store import ModelStore
from harness.targets.training import Stop

DEFENSES = (
    "vanilla",
    "thermometer",
    "tvm",
    "menet-usvt",
    "menet-softimpute",
    "menet-nuc",
    "madry",
    "menet-usvt adversarial",
)
HEADER = ("defense", "images/s", "times vanilla's cost", "made once, s per 1,000 images")


def target(words: str, dataset: str, images: int, turn: int) -> Target:
    """Return a target of one epoch; its learning rate differs by turn, so that each turn trains anew."""
    name, _, kind = words.partition(" ")
    kind = "adversarial" if name == "madry" else kind or "pure"
    rate = 0.01 + turn * 1e-6
    plan = defaults.plan(dataset, kind, {"epochs": 1, "limit": images, "learning_rate": rate})
    defense = parse("vanilla" if name == "madry" else name)
    model = parse(defaults.of(dataset)["model"])
    return Target(dataset=dataset, model=model, defense=defense, training=plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--defense", action="append", help=f"default: {', '.join(DEFENSES)}")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = options.defense or DEFENSES
    trained: dict[str, list[float]] = {words: [] for words in chosen}
    before: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        shop = ModelStore(
            store=Store(Path(folder), Path(folder)),
            device=torch.device("cpu"),
            reporter=Silent(),
            stop=Stop(),
            data_dir=options.data_dir,
        )
        shop.dataset(options.dataset, "train")
        for turn in range(options.rounds):
            for words in chosen:
                wanted = target(words, options.dataset, options.images, turn)
                begin = time.monotonic()
                shop.obtain(wanted)
                took = time.monotonic() - begin
                log = shop.store.checkpoint_path(shop.key(wanted)).with_suffix(".training.json")
                trained[words].append(json.loads(log.read_bytes())["seconds"])
                before.setdefault(words, took - trained[words][0])
    reference = statistics.median(trained[chosen[0]])
    table = [HEADER]
    for words in chosen:
        seconds = statistics.median(trained[words])
        made = before[words] / options.images * 1000
        row = (
            words,
            f"{options.images / seconds:,.0f}",
            f"{seconds / reference:.2f}",
            f"{made:.1f}" if made > 0.1 else "–",
        )
        table.append(row)
    for row in [table[0], ("---",) * len(HEADER), *table[1:]]:
        print("| " + " | ".join(row) + " |")
    print(
        f"\n{options.dataset}, {options.images} images, medians of {options.rounds}, "
        f"{options.threads} thread(s), torch {torch.__version__}"
    )
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
