"""Strength of backward passes: passes x estimators x training, at one budget of gradients.

    python -m benchmarks.strength run --dataset mnist --limit 200 --results runs/strength
    python -m benchmarks.strength table --results runs/strength --out results/strength

`run` trains what is missing and attacks it, by `harness run`; the same command again goes on. `table` reads
the records: for each model one row a backward pass, with a sign test image by image against the identity.
Passes are compared where all else is equal: model, ball, images, steps, draws and step size.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.defenses.menet import MENet
from harness.registry import defenses
from harness.results.paired import compare
from harness.results.records import Record
from harness.spec import build
from harness.storage import keys
from harness.storage.store import Store

PASSES = ("identity", "mask-aware", "straight", "exact")
BASELINE = "identity"
ESTIMATORS = ("menet-usvt", "menet-softimpute", "menet-nuc")
TRAININGS = ("pure", "adversarial")
TRAVEL = 5.0
"""Multiples of epsilon that the steps go together (Tramer et al. 2020)."""
HEADER = (
    "model", "p", "epochs", "epsilon", "images", "gradients", "backward", "robust", "low", "high",
    "vote", "clean", "against identity", "lower on", "higher on", "p-value", "dead pixels",
)  # fmt: skip


def attack(backward: str, arguments: argparse.Namespace) -> str:
    """Return the attack as text: sign ascent on the margin, the best iterate by fresh draws."""
    size = TRAVEL * arguments.epsilon / arguments.steps
    return (
        f"bpda(steps={arguments.steps},eot={arguments.eot},step_size={size:.6g},loss=margin,"
        f"keep=best,backward={backward})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train and attack every model of the grid; return the first exit status that is not zero."""
    for training in arguments.trainings:
        for estimator in arguments.estimators:
            command = [sys.executable, "-m", "harness", "run", "--dataset", arguments.dataset]
            command += ["--defense", estimator, "--training", training]
            command += ["--epsilon", str(arguments.epsilon), "--limit", str(arguments.limit)]
            command += ["--results", str(arguments.results), "--draws", str(arguments.draws)]
            command += ["-D", f"p_low={arguments.p_low}", "-D", f"p_high={arguments.p_high}"]
            if training == "adversarial":
                command += ["-D", "estimates=0"]
            for backward in arguments.passes:
                command += ["--attack", attack(backward, arguments)]
            status = subprocess.run([*command, *arguments.more], check=False).returncode
            if status:
                return status
    return 0


def records(folder: Path) -> list[Record]:
    """Return all records of a results folder; a damaged one raises an error."""
    store = Store(folder)
    found = (store.read_json("records", name, Record) for name in store.names("records"))
    return [record for record in found if record is not None]


def groups(found: Sequence[Record]) -> Iterator[dict[str, Record]]:
    """Yield groups of records that differ in `backward` alone, by its name; a model's are adjacent."""
    together: dict[str, dict[str, Record]] = {}
    for record in found:
        parameters = dict(record.resolved["attack"].get("parameters", {}))
        backward = parameters.pop("backward", None)
        if backward not in PASSES:
            continue
        same = [
            record.resolved.get("target"), record.ids, str(record.cell.threat),
            record.cell.attack.name, parameters,
        ]  # fmt: skip
        together.setdefault(keys.key(same), {})[backward] = record
    yield from sorted(together.values(), key=lambda group: _model(next(iter(group.values()))))


def _model(record: Record) -> str:
    return record.cell.target.label


def rows(group: dict[str, Record]) -> Iterator[list[str]]:
    """Yield one row for each backward pass, in the order of `PASSES`."""
    for backward in PASSES:
        record = group.get(backward)
        if record is None:
            continue
        parameters = record.resolved["attack"]["parameters"]
        defense = build(record.cell.target.defense, defenses)
        compared = ["", "", "", ""]
        if backward != BASELINE and BASELINE in group:
            paired = compare(record, group[BASELINE])
            compared = [
                f"{100 * paired.difference:+.1f}", str(paired.fewer), str(paired.more),
                f"{paired.p_value:.2g}",
            ]  # fmt: skip
        low, high = record.robust.interval
        numbers = (record.robust.mean, low, high, record.robust.vote, record.clean.mean)
        dead = record.passes.get("dead_pixels", 0.0)
        yield [
            record.cell.target.defense.name + " " + record.cell.target.training.kind,
            f"{defense.p_low} to {defense.p_high}" if isinstance(defense, MENet) else "",
            str(record.cell.target.training.epochs),
            f"{record.cell.threat.epsilon:.4g}",
            str(record.count),
            str(parameters["steps"] * parameters["eot"] * parameters["restarts"]),
            backward,
            *(f"{100 * number:.1f}" for number in numbers),
            *compared,
            f"{100 * dead:.0f}",
        ]


def table(arguments: argparse.Namespace) -> int:
    """Write strength.csv and strength.md; print the latter."""
    body = [row for group in groups(records(arguments.results)) for row in rows(group)]
    if not body:
        print(f"no attack with a backward pass among the records of {arguments.results}")
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "strength.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *body])
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *body)]
    (arguments.out / "strength.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser(
        "run", help="train and attack; what follows -- goes to harness run"
    )
    running.add_argument("--dataset", default="mnist")
    running.add_argument("--epsilon", type=float, default=0.3)
    running.add_argument("--limit", type=int, default=200)
    running.add_argument("--draws", type=int, default=10)
    running.add_argument("--steps", type=int, default=200)
    running.add_argument("--eot", type=int, default=40)
    running.add_argument("--p-low", type=float, default=0.4)
    running.add_argument("--p-high", type=float, default=0.6)
    running.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    running.add_argument("--estimators", nargs="+", default=ESTIMATORS)
    running.add_argument("--trainings", nargs="+", choices=TRAININGS, default=TRAININGS)
    writing = commands.add_parser("table", help="compare what was recorded")
    writing.add_argument("--out", type=Path, default=Path("results/strength"))
    for each in (running, writing):
        each.add_argument("--results", type=Path, default=Path("results/runs"))
    words = sys.argv[1:]
    own, more = words, []
    if "--" in words:
        own, more = words[: words.index("--")], words[words.index("--") + 1 :]
    arguments = parser.parse_args(own)
    arguments.more = more
    return run(arguments) if arguments.command == "run" else table(arguments)


if __name__ == "__main__":
    sys.exit(main())
