"""Datasets: images with stable ids and a digest, read and checked; one module for each source."""
