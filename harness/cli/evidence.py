"""Commands that doubt a number: `harness audit`, `harness verify`, `harness convergence`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import ASSIGNMENT, DATA, NUMBER, RESULTS, STRICT, target_options


@click.command()
@target_options
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Test images. Default: as the budget allows.")
@click.option("--budget", default="10m", show_default=True, help="Time: 90s, 10m, 2h.")
@click.option("--budget-scale", type=NUMBER, help="Of the adaptive suite. Default: as time allows.")
@STRICT
@RESULTS
@DATA
def audit(**words: Any) -> None:
    """Try everything that may break one defense, and print a verdict.

    The same command again goes on with what the budget left out.

    \b
    harness audit --defense menet-usvt --dataset mnist --budget 30m
    """
    from harness.cli import commands

    sys.exit(commands.audit(**words))


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("keys", nargs=-1)
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True, help="New draws.")
@click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of weights and estimates.")
@click.option("--quiet", is_flag=True, help="No progress.")
@DATA
def verify(**words: Any) -> None:
    """Check records against the attacked images on disk: threat model, new draws, every number.

    Exit status 1 where something is contradicted, or cannot be verified.

    \b
    harness verify results/runs
    """
    from harness.cli import commands

    sys.exit(commands.check(**words))


@click.command()
@target_options
@click.option("--attack", default="bpda", show_default=True)
@click.option("--steps", "steps_values", help="Gradient steps, such as 10,20,40,80.")
@click.option("--eot", "eot_values", help="Draws a step, such as 1,4,16.")
@click.option("--restarts", "restarts_values", help="Restarts, such as 1,2,4.")
@click.option("--epsilons", "epsilon_values", help="Such as 2/255,8/255,1.")
@click.option("--equal-budget", is_flag=True, help="Steps against draws at equal passes.")
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many test images.")
@click.option("-A", "attack_options", type=ASSIGNMENT, multiple=True, help="Attack's field.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@STRICT
@RESULTS
@DATA
def convergence(**words: Any) -> None:
    """Robust accuracy against steps, draws, restarts and epsilon: convergence.csv and .svg.

    \b
    harness convergence --defense menet-usvt --steps 10,40,160 --eot 1,8 --epsilons 0.1,0.3,1
    """
    from harness.cli import commands

    sys.exit(commands.curves(**words))
