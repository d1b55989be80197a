"""One HTML page of a results folder: claims beside measurements, records, figures."""
