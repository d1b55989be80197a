"""The questions of a run as data: targets, cells, training plans, and plugins made from text."""

from harness.cells.cells import Cell, Target, TrainingPlan

__all__ = ["Cell", "Target", "TrainingPlan"]
