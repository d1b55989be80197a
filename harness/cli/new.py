"""`harness new`: write the start of a user's own plugin."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("kind", type=click.Choice(["attack", "defense"]))
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("."),
    help="Where to write. Default: here.",
)
def new(kind: str, name: str, folder: Path) -> None:
    """Write a working attack or defense to start from, and its test.

    \b
    harness new attack my-attack
    """
    from harness.conformance import scaffold

    plugin, test = scaffold.write("attack" if kind == "attack" else "defense", name, folder)
    click.echo(f"{plugin}: edit this")
    click.echo(f"{test}: pytest {test}")
    click.echo(f"next: harness check {plugin}")
