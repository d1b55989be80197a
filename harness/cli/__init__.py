"""The command line: each command's words become typed options, and its results a page of text."""

from harness.cli.main import main

__all__ = ["main"]
