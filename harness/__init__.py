"""A benchmark harness for adversarial robustness whose numbers carry their doubt."""

__version__ = "0.1.0"
