"""The command line: it turns each command's words into typed options, and its results into text."""

from harness.cli.main import main

__all__ = ["main"]
