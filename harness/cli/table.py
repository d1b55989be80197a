"""`harness table`: print the stored records as a table."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.cli.options import RESULTS, STRICT
from harness.types import DamageError, HarnessError


@click.command()
@click.option("--format", "form", type=click.Choice(["md", "csv"]), default="md", show_default=True)
@STRICT
@RESULTS
def table(form: str, results: Path, strict: bool) -> None:
    """Print the stored records as a table: rows are defenses, columns are attacks.

    \b
    harness table --results results/runs --format csv
    """
    from harness.results import tables
    from harness.results.flags import strict_status
    from harness.storage.store import Store

    if not (results / "records").is_dir():
        raise HarnessError(f"no records in {results}: `harness run` makes some, or name --results")
    loaded = tables.load(Store(results))
    click.echo(tables.markdown(loaded) if form == "md" else tables.csv(loaded), nl=False)
    if loaded.failures:
        click.echo(
            "a cell without a number keeps its reason until the same command makes one: "
            "`harness clean --what failures --yes` forgets it",
            err=True,
        )
    for line in loaded.damage:
        click.echo(f"left out: {line}", err=True)
    if loaded.damage:
        sys.exit(DamageError.status)
    if strict:
        raised = {flag for record in loaded.records for flag in record.flags}
        sys.exit(strict_status(raised))
