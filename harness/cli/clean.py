"""`harness clean`: show what could be deleted, and delete it."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import RESULTS
from harness.cli.terminal import echo


@click.command()
@click.option("--what", multiple=True, help="Only these kinds, as `harness clean` names them.")
@click.option("--yes", is_flag=True, help="Delete. Without --what: only files that nothing needs.")
@click.option("--cache", type=click.Path(path_type=Path), help="The --cache of the run.")
@RESULTS
def clean(what: tuple[str, ...], yes: bool, results: Path, cache: Path | None) -> None:
    """List files that could be deleted; with --yes, delete them.

    The list shows the cost of making them again.

    \b
    harness clean --what attacked --what states --yes
    """
    from harness.results import clean as clean_
    from harness.storage.store import Store

    for line in clean_.run(Store(results, cache), what, yes=yes):
        echo(line)
