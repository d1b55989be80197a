"""`harness check`: what a plugin promises, tried."""

from __future__ import annotations

import sys

import click


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
