"""The questions of a run as data: targets, cells, training plans, and plugins made from text."""
