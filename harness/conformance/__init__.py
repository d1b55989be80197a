"""What every plugin promises, as checks that anyone can run, and templates of plugins that keep it."""

from harness.conformance.check import Check, checks

__all__ = ["Check", "checks"]
