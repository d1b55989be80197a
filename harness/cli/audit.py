"""`harness audit`: try everything that may break one defense, and give a verdict."""

from __future__ import annotations

import sys
from typing import Any

import click

from harness.cli.options import DATA, ISOLATE, NUMBER, RESULTS, STRICT, target_options, typed


@click.command()
@target_options
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Test images. Default: as the budget allows.")
@click.option("--budget", default="10m", show_default=True, help="Time: 90s, 10m, 2h.")
@click.option("--budget-scale", type=NUMBER, help="Of the adaptive suite. Default: as time allows.")
@STRICT
@ISOLATE
@RESULTS
@DATA
def audit(
    defense: str,
    seed: int,
    draws: int,
    limit: int | None,
    budget: str,
    budget_scale: float | None,
    strict: bool,
    isolate: bool,
    **words: Any,
) -> None:
    """Try everything that may break one defense, and print a verdict.

    The same command again goes on with what the budget left out.

    \b
    harness audit --defense menet-usvt --dataset mnist --budget 30m
    """
    from harness.audit import battery
    from harness.audit.budget import seconds
    from harness.conformance.check import probes
    from harness.evaluation import planning
    from harness.evaluation.runner import Runner
    from harness.executors import session
    from harness.executors.shield import shielded
    from harness.results import flags

    def whole() -> int:
        asked, where = typed(words, planning.TargetOptions, session.SessionOptions)
        target, allowed = planning.target_of(defense, asked, seed=seed), seconds(budget)

        def work(runner: Runner) -> int:
            found, page = battery.Battery(
                target=target,
                threat=asked.threat,
                model_store=runner.model_store,
                budget=allowed,
                draws=draws,
                limit=limit,
                scale=budget_scale,
                promises=probes,
                elsewhere=runner.elsewhere,
                isolate=isolate,
            ).run()
            click.echo(page)
            click.echo(f"verdict: {runner.store.results / 'audits' / found.key}.md and .json")
            raised = {flag for each in found.flags.values() for flag in each}
            return flags.strict_status(raised) if strict else 0

        return session.run(where, work)

    # The audit trains, and looks at logits, itself: none of a user's code in this process.
    apart = isolate or _from_file(defense, words["model"])
    sys.exit(shielded("the audit", whole) if apart else whole())


def _from_file(*names: str | None) -> bool:
    """Return whether any of the plugins is code in a user's file."""
    return any(".py:" in name for name in names if name)
