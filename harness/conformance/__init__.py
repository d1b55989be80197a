"""Checks of the promises that every plugin makes, and templates of plugins that keep them."""

from harness.conformance.check import Check, checks

__all__ = ["Check", "checks"]
