"""`harness convergence`: measure robust accuracy against steps, draws, restarts and epsilon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import DATA, RESULTS, STRICT, assignments, target_options, typed
from harness.registry import attacks
from harness.types import HarnessError, number


@click.command()
@target_options
@click.option("--attack", default=attacks.default, show_default=True)
@click.option("--steps", "steps_values", help="Gradient steps, such as 10,20,40,80.")
@click.option("--eot", "eot_values", help="Draws a step, such as 1,4,16.")
@click.option("--restarts", "restarts_values", help="Restarts, such as 1,2,4.")
@click.option("--epsilons", "epsilon_values", help="Such as 2/255,8/255,1.")
@click.option("--equal-budget", is_flag=True, help="Steps against draws at equal passes.")
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many test images.")
@assignments("-A", "attack_options", "Attack's field.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@STRICT
@RESULTS
@DATA
def convergence(
    defense: str,
    seed: int,
    attack: str,
    steps_values: str | None,
    eot_values: str | None,
    restarts_values: str | None,
    epsilon_values: str | None,
    equal_budget: bool,
    output: Path,
    strict: bool,
    **words: Any,
) -> None:
    """Measure robust accuracy against steps, draws, restarts and epsilon.

    The results are written to convergence.csv and convergence.svg.

    \b
    harness convergence --defense menet-usvt --steps 10,40,160 --eot 1,8 --epsilons 0.1,0.3,1
    """
    from harness.audit import convergence
    from harness.evaluation import planning
    from harness.evaluation.runner import Runner
    from harness.executors import session
    from harness.results import flags, summaries
    from harness.storage import store

    asked, attacked, where = typed(
        {**words, "attacks": [attack]},
        planning.TargetOptions,
        planning.AttackOptions,
        session.SessionOptions,
    )
    target = planning.target_of(defense, asked, seed=seed)
    axes = {
        axis: _numbers(text)
        for axis, text in (
            ("steps", steps_values),
            ("eot", eot_values),
            ("restarts", restarts_values),
            ("epsilon", epsilon_values),
        )
        if _numbers(text)
    }
    if not axes and not equal_budget:
        raise HarnessError("no axis: name --steps, --eot, --restarts, --epsilons or --equal-budget")
    (base, *_), _ = planning.cells_on(target, asked.threat, attacked)
    wanted = convergence.points(base, axes, equal_budget=equal_budget)

    def work(runner: Runner) -> int:
        results = summaries.flagged(runner.run([point.cell for point in wanted]))
        found = list(zip(wanted, results, strict=True))
        store.make_folder(output)
        text = convergence.csv(found)
        store.write_atomic(output / "convergence.csv", text.encode())
        title = f"{base.attack} on {target.label}, {target.dataset}"
        store.write_atomic(output / "convergence.svg", convergence.svg(found, title))
        click.echo(text, nl=False)
        click.echo(f"{output / 'convergence.csv'} and {output / 'convergence.svg'}")
        return flags.strict_status(summaries.all_flags(results)) if strict else 0

    sys.exit(session.run(where, work))


def _numbers(text: str | None) -> list[float]:
    """Return the numbers in `10,20,40` or `2/255,8/255`."""
    return [number(part) for part in (text or "").split(",") if part.strip()]
