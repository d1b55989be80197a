"""The harness from Python: `evaluate`, its results as objects, and bridges to other libraries."""
