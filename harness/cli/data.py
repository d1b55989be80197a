"""`harness data`: inspect a dataset."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import DATA


@click.group()
def data() -> None:
    """Inspect datasets."""


@data.command(name="check")
@click.argument("name")
@DATA
def data_check(name: str, data_dir: Path | None) -> None:
    """Check a dataset, and print its counts, digest, shape and range.

    \b
    harness data check mnist --data-dir ~/data
    """
    from harness.datasets.data import summary
    from harness.storage.progress import reporter

    for split in summary(name, data_dir, reporter=reporter()):
        channels, height, width = split.shape
        click.echo(f"{split.name} ({split.split}): {split.count:,} images")
        click.echo(f"  shape   {channels} x {height} x {width}, {split.dtype}")
        click.echo(f"  range   {split.low:.3g} to {split.high:.3g} on a scale of [0, 1]")
        counts = ", ".join(f"{label}: {count}" for label, count in split.per_class.items())
        click.echo(f"  classes {counts}")
        click.echo(f"  in both splits: {split.repeated}")
        click.echo(f"  digest  {split.digest}")
        if split.note:
            click.echo(f"  note    {split.note}")
