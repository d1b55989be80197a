"""`harness report`: write one HTML page of a results folder."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import RESULTS


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), help="Default: report.html in --results."
)
@RESULTS
def report(results: Path, output: Path | None) -> None:
    """Write one HTML page with claims, tables, figures, attacked images and every record.

    The page is self-contained and opens as a file.

    \b
    harness report --results results/runs/smoke
    """
    from harness.report.page import write

    click.echo(str(write(results, output)))
