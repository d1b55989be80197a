"""The results of runs: records, their statistics and flags, worst cases and tables. Needs no torch."""

from harness.results.records import Accuracy, Failure, Record, Timing

__all__ = ["Accuracy", "Failure", "Record", "Timing"]
