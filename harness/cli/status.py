"""`harness status`: show how far runs are."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import RESULTS


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="As the run had it.")
@RESULTS
def status(results: Path, cache: Path | None) -> None:
    """Show how far runs are: cells done, running, failed with the reason, or left, and an estimate.

    \b
    harness status --results results/runs
    """
    from harness.results import status as status_
    from harness.storage.store import Store

    for line in status_.lines(Store(results, cache)):
        click.echo(line)
