"""`harness run`: run a matrix of attacks and defenses, and print it as a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import (
    CACHE,
    CELL_LIMIT,
    DATA,
    DEVICE,
    ISOLATE,
    NORMALISATION,
    NUMBER,
    PRECISION,
    QUIET,
    RESULTS,
    STRICT,
    WEIGHTS,
    assignments,
    scale_options,
    typed,
)
from harness.registry import defenses

if TYPE_CHECKING:
    from harness.cells.cells import Cell
    from harness.evaluation.runner import Runner
    from harness.results.records import Failure, Record, Timing


@click.command()
@click.option("--dataset", default="digits", show_default=True)
@click.option(
    "--defense",
    "defenses",
    multiple=True,
    default=[defenses.default],
    help=f"Repeat. Default: {defenses.default}.",
)
@click.option("--attack", "attacks", multiple=True, required=True, help="Repeat for a matrix.")
@click.option(
    "--model", help="Classifier. Default: the dataset's. Your own: my.py:build, timm:NAME."
)
@WEIGHTS
@NORMALISATION
@click.option("--training", type=click.Choice(["pure", "adversarial"]), default="pure")
@click.option(
    "--epochs", type=click.IntRange(1), help="Training epochs; fewer compress the schedule."
)
@click.option("--epsilon", type=NUMBER, help="Radius of the ball: 0.3, 8/255.")
@click.option("--norm", type=click.Choice(["linf", "l2"]), default="linf", show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Attack steps.")
@click.option(
    "--step-size", type=NUMBER, help="Default: the dataset's (0.01, 2/255), or the ball's."
)
@click.option("--eot", type=click.IntRange(1), help="Draws averaged for the gradient of a step.")
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=[0], show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many test images.")
@click.option("--max-queries", type=click.IntRange(1), help="The most forwards for an image.")
@click.option("--budget-scale", type=NUMBER, help="Share of the adaptive suite's budget: 0.1.")
@STRICT
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@DEVICE
@PRECISION
@assignments("-A", "attack_options", "Attack's field.")
@assignments("-D", "defense_options", "Defense's field.")
@assignments("-M", "model_options", "Model's field.")
@assignments("-T", "training_options", "Training's field.")
@CACHE
@QUIET
@ISOLATE
@CELL_LIMIT
@scale_options
@RESULTS
@DATA
def run(defenses: tuple[str, ...], seeds: tuple[int, ...], strict: bool, **words: Any) -> None:
    """Train or load each defense, run each attack, print a table.

    The same command again runs only the cells that are missing.

    \b
    harness run --dataset mnist --defense madry --attack pgd --steps 40 --limit 1000
    """
    from harness.evaluation import planning
    from harness.executors import session

    target, attack, where = typed(
        words, planning.TargetOptions, planning.AttackOptions, session.SessionOptions
    )
    asked = planning.RunOptions(target=target, attack=attack, defenses=defenses, seeds=seeds)
    cells, notes = planning.cells(asked)
    sys.exit(session.run(where, lambda runner: _run(cells, notes, runner, strict=strict)))


def _run(cells: Sequence[Cell], notes: Sequence[str], runner: Runner, *, strict: bool) -> int:
    """Run cells, print the table and the folder of the records, and return the exit status."""
    from harness.results import flags, summaries
    from harness.results.records import Failure, Timing

    store, model_store = runner.store, runner.model_store
    results = summaries.flagged(runner.run(cells))
    timings = {result.key: store.read_json("timings", result.key, Timing) for result in results}
    note = model_store.dataset(cells[0].target.dataset, "test").note
    show(results, timings, store.results, note)
    for line in [*summaries.worst_lines(results), *notes, *summaries.spread_lines(results)]:
        click.echo(line)
    failed = [result for result in results if isinstance(result, Failure)]
    for line in model_store.damage:
        if not any(line in failure.reason for failure in failed):
            click.echo(f"damaged: {line}, and made again", err=True)
    if model_store.damage or any(failure.kind == "damaged" for failure in failed):
        return 1
    if failed:
        return 2
    return flags.strict_status(summaries.all_flags(results)) if strict else 0


def show(
    results: Sequence[Record | Failure],
    timings: Mapping[str, Timing | None],
    folder: Path,
    note: str,
) -> None:
    """Print the table of a run, with the doubts about its numbers below."""
    from harness.results import tables
    from harness.results.records import Failure

    cell = results[0].cell
    target = cell.target
    click.echo(
        f"\n{target.dataset}, {target.model}, {target.schooling}, "
        f"{cell.threat.norm} epsilon {cell.threat.epsilon:.4g}" + (f"; {note}" if note else "")
    )
    click.echo(tables.summary(results, timings))
    click.echo(
        "Accuracies in percent: mean over the scoring draws, beside the paper's one draw and the vote."
    )
    for line in _doubts(results):
        click.echo(line)
    for result in results:
        kind = "failures" if isinstance(result, Failure) else "records"
        click.echo(f"{kind[:-1]}: {folder / kind / result.key}.json")


def _doubts(results: Sequence[Record | Failure]) -> list[str]:
    """Return a line for each reason of a flag or a failure, with the cells that it concerns."""
    from harness.results.records import Failure

    count = len({result.key for result in results})
    several = len({result.cell.target.seed for result in results}) > 1
    concerned: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        target = result.cell.target
        name = f"{result.cell.attack} on {target.label}"
        name += f" (seed {target.seed})" if several else ""
        found = {result.kind: result.reason} if isinstance(result, Failure) else result.flags
        for kind, reason in found.items():
            concerned.setdefault((kind, reason), {})[result.key] = name
    return [
        f"{kind}: "
        + (f"all {count} cells" if len(cells) == count > 1 else ", ".join(cells.values()))
        + f": {reason}"
        for (kind, reason), cells in concerned.items()
    ]
