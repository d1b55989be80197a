"""Run cells in other processes, which communicate only through the store."""
