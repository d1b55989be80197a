"""Turn a user's model from the words of the command line into a checked classifier.

The registered model that is marked `given` reads the weights. The engine checks of any model that was not
trained here whether it accepts these images at all, and whether it is fed the range of pixels that it was
trained on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.cells.cells import TrainingPlan
from harness.random import Draws, Role
from harness.registry import models
from harness.results.statistics import mcnemar
from harness.targets.defended import Defended
from harness.types import Batch, Dataset, HarnessError, Spec

PROBE_IMAGES = 256
MORE_IMAGES = 1024
"""The number of images that are used where a range seems better on the first ones, but not surely."""
SUSPICION = 0.05
"""The p-value of the paired test below which a range seems better."""
SIGNIFICANCE = 0.001
"""The level of the paired test; it is divided by the number of ranges that are tried."""
SMALLEST = 0.02
"""The smallest difference of accuracy that matters."""
LITTLE = 0.5
"""The accuracy in the best range below which a model may have been trained on other images."""
GIVEN = TrainingPlan(kind="given", epochs=0)
"""The training of a model that came with its weights."""

_TRIED = ("inside", "bytes", "half", "mnist", "cifar10", "imagenet")
"""Words for --normalisation whose ranges a probe tries. The range of cifar100 is too near to cifar10's."""
_MEANING = {
    "inside": "pixels in [0, 1]",
    "bytes": "pixels from 0 to 255",
    "half": "pixels in [-1, 1]",
}


def specification(model: Spec, *, weights: str | None, normalisation: str | None) -> Spec:
    """Return the model that `--model`, `--weights` and `--normalisation` name together.

    Raises:
        HarnessError: a normalisation is given for a model that is trained here.
    """
    complete = model.name.endswith(".pt2")
    if weights is None and not complete:
        if normalisation is not None:
            raise HarnessError(
                "--normalisation belongs to a model of your own: add --weights FILE",
                page="quickstart",
            )
        return model
    name, make = _given()
    parameters = {
        **model.parameters,
        "build": model.name,
        "normalisation": normalisation or make.usual_normalisation(model.name, weights),
        **({"weights": weights} if weights else {}),
    }
    return Spec(name, parameters)


def _given() -> tuple[str, Any]:
    """Return (name, maker) of the registered model that loads a user's weights.

    The maker has the attribute `given`, and the hooks `usual_normalisation(build, weights)`, `moments(word,
    channels)` and `with_normalisation(network, channels, word)`.
    """
    return next((entry.name, entry.make) for entry in models if _is_given(entry.make))


def _is_given(make: object) -> bool:
    return bool(getattr(make, "given", False))


def is_given(model: Spec) -> bool:
    """Return whether a model comes with its weights, so that it is never trained here."""
    return _is_given(models.get(model.name))


def plan(model: Spec, training: TrainingPlan) -> TrainingPlan:
    """Return the training plan of a target, which is `GIVEN` for a model that comes with its weights.

    Raises:
        HarnessError: adversarial training of such a model is asked for.
    """
    if not is_given(model):
        return training
    if training.kind == "adversarial":
        raise HarnessError(
            "a model that comes with its weights is not trained here: leave out --training adversarial "
            "and defenses that mean it, or leave out --weights",
            page="quickstart",
        )
    return GIVEN


@dataclasses.dataclass(frozen=True)
class Probe:
    """The accuracy of a model on images that it should know, in the given range and in others."""

    count: int
    accuracy: float
    better: str = ""
    """The word for --normalisation with which it is clearly better; empty where there is none."""
    better_accuracy: float = 0.0
    suspect: bool = False
    """True where more images could show that a range is better."""
    hint: str = ""
    """The same as `better` for a range without a name: a scale or shift of the given range."""

    @property
    def chance(self) -> str:
        return f"right on {self.accuracy:.0%} of {self.count} unattacked images"


def check(defended: Defended, dataset: Dataset, device: torch.device) -> Probe:
    """Check that a given model accepts these images, and that their range is right for it.

    Raises:
        HarnessError: it does not accept them, has another number of classes, or is clearly better with
            another normalisation.
    """
    batch = dataset.batch(slice(0, PROBE_IMAGES)).to(device)
    shown = seen(defended, batch)
    logits = answer(defended.model, shown)
    classes = len(dataset.classes)
    if logits.shape[1] != classes:
        raise HarnessError(
            f"the model tells {logits.shape[1]} classes apart, {dataset.name} has {classes}: its last "
            "layer must have one output for each class of the dataset, in the dataset's order",
            page="quickstart",
        )
    found = probe(defended.model, shown, batch.labels)
    if found.suspect and len(dataset) > PROBE_IMAGES:
        batch = dataset.batch(slice(0, MORE_IMAGES)).to(device)
        found = probe(defended.model, seen(defended, batch), batch.labels)
    if found.better:
        raise wrong_range(found)
    return found


def wrong_range(found: Probe) -> HarnessError:
    """Return the error for a model that is fed pixels in another range than it was trained on."""
    meaning = _MEANING.get(found.better, f"pixels normalised as {found.better}")
    message = (
        f"the model is {found.chance}, but on {found.better_accuracy:.0%} if it is handed {meaning}: "
        f"it was given the wrong range. Say --normalisation {found.better} "
        f"(in Python normalisation={found.better!r})"
    )
    if found.better_accuracy < LITTLE:
        message += "; and are these the images that it was trained on (--dataset)?"
    return HarnessError(message, page="quickstart")


def behind(network: nn.Module, channels: int, normalisation: str) -> nn.Module:
    """Return `network` behind the normalisation that a word of --normalisation names."""
    wrapped: nn.Module = _given()[1].with_normalisation(network, channels, normalisation)
    return wrapped


def seen(defended: Defended, batch: Batch) -> Tensor:
    """Return the classifier's input for a batch, (N, C', H, W), under one draw."""
    with torch.no_grad():
        return defended.transform(batch.images, Draws(0, batch.ids, Role.VERIFY))


def answer(model: nn.Module, images: Tensor) -> Tensor:
    """Return the (N, K) logits of `images` (N, C, H, W).

    Raises:
        HarnessError: the model does not accept these images, or returns anything but (N, K) finite numbers.
    """
    try:
        with torch.no_grad():
            logits = model(images)
    except HarnessError:
        raise
    except Exception as error:  # a guest's model may raise anything
        first = str(error).strip().split("\n")[0]
        raise HarnessError(
            f"the model does not take images of shape {tuple(images.shape)}: {first}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise HarnessError(f"the model gives {shape} for {len(images)} images: it must give (N, K)")
    if not bool(torch.isfinite(logits).all()):
        raise HarnessError("the model gives logits that are not finite on unattacked images")
    return logits


def probe(model: nn.Module, images: Tensor, labels: Tensor) -> Probe:
    """Measure accuracy in the given range, in every usual range, and in scales and shifts of the given one.

    A range is `better` where a paired test (McNemar 1947) is significant and the difference matters. A first
    layer of the model that is a declared normalisation is left out for the comparison.

    Args:
        images: the classifier's input (N, C, H, W).
        labels: (N,) int64.
    """
    network = getattr(model, "network", None)
    bare = network if isinstance(network, nn.Module) and hasattr(model, "normalise") else model
    own = answer(model, images).argmax(dim=1) == labels
    accuracy = float(own.float().mean())
    channels = images.shape[1]
    _, make = _given()
    ranges = {}
    for word in _TRIED:
        mean, std = make.moments(word, channels)
        if mean is None:
            ranges[word] = ([0.0], [1.0])
        elif len(mean) == channels:
            ranges[word] = (list(mean), list(std))
    near = _around(getattr(model, "normalise", None), channels)
    best, best_accuracy, suspect = "", accuracy, False
    for word, (mean, std) in [*ranges.items(), *near.items()]:
        shifted = (images - _by_channel(images, mean)) / _by_channel(images, std)
        other = answer(bare, shifted).argmax(dim=1) == labels
        share = float(other.float().mean())
        gained, lost = int((other & ~own).sum()), int((own & ~other).sum())
        chance = mcnemar(gained, lost)
        sure = chance < SIGNIFICANCE / (len(ranges) + len(near))
        suspect |= gained > lost and chance < SUSPICION and not sure
        lead = SMALLEST if word in near else 0.0
        if sure and share - accuracy > SMALLEST and share > best_accuracy + lead:
            best, best_accuracy = word, share
    usual = best if best in ranges else ""
    return Probe(
        len(labels), accuracy, usual, best_accuracy, suspect and not best, best if not usual else ""
    )


def _around(given: nn.Module | None, channels: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return (mean, std) of scales and shifts of the declared normalisation, by the word for each."""
    mean, std = [0.0] * channels, [1.0] * channels
    if isinstance(getattr(given, "mean", None), Tensor):
        mean, std = given.mean.flatten().tolist(), given.std.flatten().tolist()  # type: ignore[union-attr, operator]
    changes = [(scale, 0.0) for scale in (0.25, 0.5, 2.0, 4.0)] + [(1.0, 0.5), (1.0, -0.5)]
    found = {}
    for scale, shift in changes:
        moved, scaled = [value + shift for value in mean], [value * scale for value in std]
        word = "/".join(",".join(f"{value:.4g}" for value in each) for each in (moved, scaled))
        found[word] = (moved, scaled)
    return found


def _by_channel(images: Tensor, values: Sequence[float]) -> Tensor:
    return images.new_tensor(values).reshape(1, -1, 1, 1)


def doubt(found: Probe, classes: int) -> str:
    """Return a line of doubt about a model; empty where there is none.

    A model is doubtful if it is hardly better than chance, or clearly better with a scale or shift of its
    range.
    """
    width = 2 * math.sqrt((1 / classes) * (1 - 1 / classes) / max(found.count, 1))
    if found.accuracy <= 1 / classes + width:
        return (
            f"the model is {found.chance}, no better than chance ({1 / classes:.0%}): are these its images, "
            "and its labels in this order?"
        )
    if found.hint:
        return (
            f"the model is {found.chance}, but on {found.better_accuracy:.0%} with --normalisation "
            f"{found.hint}: was it trained on another range?"
        )
    return ""
