"""Cost of the guards around guests: PGD-40 with and without them, batch by batch in turn, in one process.

    python -m benchmarks.guards [--dataset mnist] [--images 1024] [--batch-size 128] [--steps 40]

The model is trained for one short epoch; what is timed is the attack on each batch, the trace and the copy of
its images included. Without the guards nothing is compared and nothing put back.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from harness.cells import defaults, plugins
from harness.cells.cells import Target
from harness.evaluation.generation import Generation
from harness.spec import parse
from harness.storage.progress import Silent
from harness.storage.store import Store
from harness.targets.model_store import ModelStore
from harness.targets.training import Stop
from harness.types import ThreatModel


class Unguarded(Generation):
    """The same attack without the guards."""

    @contextlib.contextmanager
    def _watched(
        self, changed: list[str], process: list[str], rows: slice | None
    ) -> Iterator[None]:
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.prepare()
        models = ModelStore(
            store=store,
            device=torch.device("cpu"),
            reporter=Silent(),
            stop=Stop(),
            data_dir=words.data_dir,
        )
        target = Target(
            dataset=words.dataset,
            model=parse(defaults.of(words.dataset)["model"]),
            defense=parse("vanilla"),
            training=defaults.plan(words.dataset, "pure", {"epochs": 1, "limit": 2000}),
        )
        source, test = models.obtain(target), models.dataset(words.dataset, "test")
        attack = plugins.attack(parse(f"pgd(steps={words.steps},step_size=0.01)"))
        runs = [
            kind(
                title="pgd",
                attack=attack,
                threat=ThreatModel(epsilon=defaults.epsilon(words.dataset)),
                max_queries=None,
                seed=0,
                source=source,
                test=test.first(words.images),
                device=models.device,
                batch_size=words.batch_size,
                folder=Path(folder),
                reporter=models.reporter,
                stop=models.stop,
                mend=models.mend,
            )
            for kind in (Generation, Unguarded)
        ]
        blocks = torch.arange(words.images).split(words.batch_size)
        for run in runs:  # what is made once
            run._perturb(blocks[0], lambda amount: None)
        ratios = []
        for turn, block in enumerate(blocks):
            seconds = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                started = time.perf_counter()
                runs[which]._perturb(block, lambda amount: None)
                seconds[which] = time.perf_counter() - started
            ratios.append(seconds[0] / seconds[1])
            print(f"batch {turn}: {seconds[0]:.3f} s with guards, {seconds[1]:.3f} s without")
    print(f"median ratio {statistics.median(ratios):.4f} over {len(ratios)} batches")


if __name__ == "__main__":
    main()
