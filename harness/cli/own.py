"""Commands for plugins of one's own: `harness new`, `harness check`."""

from __future__ import annotations

import sys
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
    """Write an attack or a defense of your own that works, and its test.

    \b
    harness new attack my-attack
    """
    from harness.conformance import scaffold

    plugin, test = scaffold.write("attack" if kind == "attack" else "defense", name, folder)
    click.echo(f"{plugin}: edit this")
    click.echo(f"{test}: pytest {test}")
    click.echo(f"next: harness check {plugin}")


@click.command()
@click.argument("plugin")
def check(plugin: str) -> None:
    """Check what a plugin promises: a file, file.py:Class, or a registered attack or defense.

    Ball and box, determinism, batch independence, memory, purity; a declared backward pass against
    finite differences, declared randomness against randomness seen. Exit status 1 where one fails.

    \b
    harness check my_attack.py
    """
    from harness.conformance import check as kit

    failed = 0
    for finding in kit.findings(plugin):
        failed += bool(finding.reason)
        click.echo(f"{'FAILED' if finding.reason else 'ok    '}  {finding.check}")
        if finding.reason:
            click.echo(f"        {finding.reason}")
    click.echo(f"{failed} failed (docs/plugins.md)" if failed else "all kept")
    sys.exit(1 if failed else 0)
