"""Exactly one registered model takes the user's weights, and it is found by its hooks."""

from __future__ import annotations

import pytest

from harness.registry import models
from harness.targets import own_models
from harness.types import Spec


def test_one_registered_model_is_given_and_has_the_hooks() -> None:
    given = [entry for entry in models if getattr(entry.make, "given", False)]
    assert len(given) == 1
    for hook in ("describe", "usual_normalisation", "moments", "with_normalisation"):
        assert callable(getattr(given[0].make, hook))


@pytest.mark.parametrize(
    ("model", "weights", "asked", "stated"),
    [
        ("my.py:build", "w.safetensors", None, "inside"),
        ("my.py:build", "w.safetensors", "imagenet", "imagenet"),
        ("timm:resnet18", "pretrained", None, "timm"),
        ("timm:resnet18", "w.safetensors", None, "inside"),
        ("hub:owner/repo:net", "pretrained", None, "inside"),
    ],
)
def test_the_normalisation_of_a_given_model(
    model: str, weights: str, asked: str | None, stated: str
) -> None:
    spec = own_models.specification(Spec(model), weights=weights, normalisation=asked)
    assert spec.parameters["normalisation"] == stated
    assert spec.parameters["build"] == model
    assert own_models.is_given(spec)


def test_each_range_that_a_probe_tries_is_in_the_table() -> None:
    _, make = own_models._given()
    for word in own_models._TRIED:
        mean, std = make.moments(word, 3)
        assert (mean is None) == (std is None) == (word == "inside")
