"""The results of runs: records, their statistics and flags, worst cases and tables. Needs no torch."""
