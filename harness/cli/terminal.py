"""Print names and reasons out of files as text, so that they never reach the terminal as its commands."""

from __future__ import annotations

import click

from harness.storage.text import printable


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text with control characters spelled out."""
    click.echo(printable(text), err=err, nl=nl)
