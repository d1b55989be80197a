"""One thread a test, and a small trained victim that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.data import load
from harness.types import Batch, Dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_test() -> Dataset:
    return load("digits", "test")


@pytest.fixture(scope="session")
def digits_batch(digits_test: Dataset) -> Batch:
    """24 real digits, 28 x 28."""
    return digits_test.batch(slice(0, 24))


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder that HARNESS_DATA names, where it holds MNIST."""
    folder = Path(os.environ.get("HARNESS_DATA", ""))
    if not (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").is_file():
        pytest.skip("HARNESS_DATA names no folder with MNIST/raw/*-ubyte")
    return folder
