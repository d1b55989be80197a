"""The built-in datasets: one module for each source, `(split, folder, **parameters) -> Samples`."""
