"""`harness reproduce`: run and draw the paper's tables and figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import CACHE, DATA, DEVICE, QUIET, scale_options, typed
from harness.types import HarnessError


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--profile", default="smoke", show_default=True, help="smoke, laptop, gpu, paper.")
@click.option("--dry-run", is_flag=True, help="List cells and estimate time and memory.")
@click.option("--render", is_flag=True, help="Only draw tables and figures from the records.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@DEVICE
@CACHE
@QUIET
@scale_options
@click.option("--results", type=click.Path(path_type=Path), help="Default: results/runs/PROFILE.")
@DATA
def reproduce(
    names: tuple[str, ...],
    profile: str,
    dry_run: bool,
    render: bool,
    results: Path | None,
    **words: Any,
) -> None:
    """Run the cells that a table or figure of the paper still needs, and draw it.

    NAMES are table1 to table7, figure1, figure2, figure4 to figure6, beyond, refuted, `all`, or
    TOML files of your own. Cells that are stored already are not run again.

    \b
    harness reproduce table4 --profile laptop
    harness reproduce all --profile smoke
    harness reproduce all --profile gpu --dry-run
    """
    from harness.paper import protocol
    from harness.paper import render as drawing

    tables, chosen = drawing.choose(names), protocol.profile(profile)
    folder = results or Path("results/runs") / chosen.name
    if render:
        from harness.storage.store import Store

        if not (folder / "records").is_dir():
            raise HarnessError(f"no records in {folder}: leave out --render to make some")
        drawing.render(tables, chosen, Store(folder))
        return
    from harness.executors import session
    from harness.paper.reproduce import reproduce

    where = typed({**words, "results": folder}, session.SessionOptions)
    sys.exit(
        session.run(
            where,
            lambda runner: reproduce(tables, chosen, runner, dry_run=dry_run),
            prepare=not dry_run,
        )
    )
