"""Commands that look at what is there: tables, the report, pictures, the state of a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import DATA, RESULTS, STRICT
from harness.types import DamageError, HarnessError


@click.command()
@click.option("--format", "form", type=click.Choice(["md", "csv"]), default="md", show_default=True)
@STRICT
@RESULTS
def table(form: str, results: Path, strict: bool) -> None:
    """The stored records as a table: rows are defenses, columns attacks.

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


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), help="Default: report.html in --results."
)
@RESULTS
def report(results: Path, output: Path | None) -> None:
    """One HTML page with claims, tables, figures, attacked images and every record. Opens as a file.

    \b
    harness report --results results/runs/smoke
    """
    from harness.report.page import write

    click.echo(str(write(results, output)))


@click.command()
@click.option("--dataset", "datasets", multiple=True, required=True, help="Repeat for more panels.")
@click.option("--images", type=click.IntRange(1), default=10000, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@DATA
def rank(**words: Any) -> None:
    """Approximate rank of a dataset's images: rank.svg, .png and .csv (the paper's Figure 1).

    \b
    harness rank --dataset mnist --dataset cifar10
    """
    from harness.paper.figures.images import rank_command

    sys.exit(rank_command(**words))


@click.command()
@click.option("--dataset", default="digits", show_default=True)
@click.option("--image", type=click.IntRange(0), default=0, show_default=True, help="Its position.")
@click.option("--defense", "defenses", multiple=True, help="Default: ME-Net's three.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@DATA
def reconstruct(**words: Any) -> None:
    """One image under masks of p = 0.1 to 1, and its estimates side by side (the paper's Figure 2).

    \b
    harness reconstruct --dataset cifar10 --image 7
    """
    from harness.paper.figures.images import reconstruct_command

    sys.exit(reconstruct_command(**words))


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="As the run had it.")
@RESULTS
def status(results: Path, cache: Path | None) -> None:
    """How far runs are: done, running, failed with the reason, left, and an estimate.

    \b
    harness status --results results/runs
    """
    from harness.results import status as status_
    from harness.storage.store import Store

    for line in status_.lines(Store(results, cache)):
        click.echo(line)


@click.command()
@click.option("--what", multiple=True, help="Only these kinds, as `harness clean` names them.")
@click.option("--yes", is_flag=True, help="Delete. Without --what: only what nobody misses.")
@click.option("--cache", type=click.Path(path_type=Path), help="As the run had it.")
@RESULTS
def clean(what: tuple[str, ...], yes: bool, results: Path, cache: Path | None) -> None:
    """What could be deleted, and what it would cost to make again.

    \b
    harness clean --what attacked --what states --yes
    """
    from harness.results import clean as clean_
    from harness.storage.store import Store

    for line in clean_.run(Store(results, cache), what, yes=yes):
        click.echo(line)
