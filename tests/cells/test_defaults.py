"""The training that a run takes where the user says nothing."""

from __future__ import annotations

import pytest

from harness.cells import defaults


@pytest.mark.parametrize(
    "dataset", ["digits", "mnist", "cifar10", "svhn", "tiny-imagenet", "own.npz"]
)
def test_the_inner_attack_takes_the_declared_backward_pass(dataset: str) -> None:
    """Through the exact gradient of an estimation an adversary in training would be far too weak."""
    inner = defaults.plan(dataset, "adversarial", {}).inner
    assert inner is not None
    assert inner.parameters["backward"] == "declared"
