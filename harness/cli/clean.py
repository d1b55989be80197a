"""`harness clean`: show what could be deleted, and delete it."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import RESULTS


@click.command()
@click.option("--what", multiple=True, help="Only these kinds, as `harness clean` names them.")
@click.option("--yes", is_flag=True, help="Delete. Without --what: only what nobody misses.")
@click.option("--cache", type=click.Path(path_type=Path), help="As the run had it.")
@RESULTS
def clean(what: tuple[str, ...], yes: bool, results: Path, cache: Path | None) -> None:
    """Show which files could be deleted and the cost of making them again; with --yes, delete them.

    \b
    harness clean --what attacked --what states --yes
    """
    from harness.results import clean as clean_
    from harness.storage.store import Store

    for line in clean_.run(Store(results, cache), what, yes=yes):
        click.echo(line)
