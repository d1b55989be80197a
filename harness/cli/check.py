"""`harness check`: test the promises of a plugin."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("plugin")
def check(plugin: str) -> None:
    """Check the promises of a plugin: a file, file.py:Class, or a registered attack or defense.

    Checked are ball and box, determinism, batch independence, memory and purity; the declared
    backward pass against finite differences, and declared randomness against the observed one.
    The exit status is 1 where a check fails.

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
