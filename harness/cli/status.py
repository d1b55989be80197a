"""`harness status`: show how far runs are."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import RESULTS
from harness.cli.terminal import echo


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="The --cache of the run.")
@RESULTS
def status(results: Path, cache: Path | None) -> None:
    """Show how far runs are, with an estimate of the time left.

    Each cell is done, running, failed (with the reason) or left.

    \b
    harness status --results results/runs
    """
    from harness.results import status as status_
    from harness.storage.store import Store

    for line in status_.lines(Store(results, cache)):
        echo(line)
