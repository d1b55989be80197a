"""Prepare the figures that need only images: approximate ranks, and masks with their reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness import registry
from harness.datasets import data
from harness.paper import protocol
from harness.paper.figures.data import FOLDER, MaskData, Picture, RankData, Ranks, picture
from harness.paper.protocol import Profile, Protocol
from harness.random import Draws, Role
from harness.spec import build, parse
from harness.storage import keys
from harness.storage.progress import Reporter
from harness.storage.store import Store
from harness.types import Dataset, Defense, HarnessError

_CHUNK = 1000


def to_picture(image: Tensor) -> Picture:
    """Return an image (C, H, W) in [0, 1] as a picture of eight bits a value."""
    octets = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return picture(octets.shape, octets.contiguous().numpy().tobytes())


# --- ranks (Figure 1) -------------------------------------------------------------------------------


Ranking = Callable[[Tensor], Tensor]
"""A function from images (N, C, H, W) to approximate ranks (N,) int64."""


def ranking(text: str) -> Ranking:
    """Return the hook `approximate_rank` of the defense that a text names.

    Raises:
        HarnessError: the defense has none.
    """
    found: Ranking | None = getattr(build(parse(text), registry.defenses), "approximate_rank", None)
    if found is None:
        raise HarnessError(
            f"defense {text} does not rank images: it needs a method approximate_rank(images)"
        )
    return found


def ranks(dataset: Dataset, count: int, report: Reporter, approximate_rank: Ranking) -> Ranks:
    """Count the approximate ranks of the first `count` images."""
    part = dataset.first(count)
    found = []
    with report.task(f"ranks of {dataset.name}", len(part)) as task:
        for start in range(0, len(part), _CHUNK):
            batch = part.batch(slice(start, start + _CHUNK))
            found.append(approximate_rank(batch.images))
            task.advance(len(batch))
    counts = torch.bincount(torch.cat(found)).tolist()
    channels, height, width = dataset.shape
    return Ranks(
        dataset=dataset.name,
        split=dataset.split,
        count=len(part),
        height=height,
        width=channels * width,
        images_of_rank=tuple(counts),
    )


def rank_data(
    names: Sequence[str],
    count: int,
    defense: str,
    *,
    data_dir: Path | None,
    report: Reporter,
    kept: RankData | None = None,
) -> RankData:
    """Count the ranks of several datasets' test images; datasets that are not available are named.

    Args:
        defense: the defense whose hook `approximate_rank` ranks the images.
        kept: the result of an earlier run, which is returned where it is of the same images.
    """
    loaded, missing = [], []
    for name in dict.fromkeys(names):
        try:
            loaded.append(data.load(name, "test", data_dir=data_dir, reporter=report))
        except HarnessError as error:
            missing.append(f"{name}: {error}")
    if not loaded:
        raise HarnessError("; ".join(missing))
    basis = keys.key([[(each.name, each.digest) for each in loaded], count, defense, missing])
    if kept is not None and kept.basis == basis:
        return kept
    rank = ranking(defense)
    return RankData(
        basis=basis,
        datasets=tuple(ranks(each, count, report, rank) for each in loaded),
        missing=tuple(missing),
    )


# --- masks (Figure 2) -------------------------------------------------------------------------------


def mask_data(
    name: str,
    defenses: Sequence[str],
    probabilities: Sequence[float],
    *,
    position: int = 0,
    data_dir: Path | None,
    report: Reporter,
) -> MaskData:
    """Return one test image under masks of every probability, with each defense's reconstructions.

    Every defense must have `p_low` and `p_high`; all see the same masks.
    """
    dataset = data.load(name, "test", data_dir=data_dir, reporter=report)
    if not 0 <= position < len(dataset):
        raise HarnessError(f"image {position}: {name} has test images 0 to {len(dataset) - 1}")
    batch = dataset.batch(slice(position, position + 1))
    draws = Draws(0, batch.ids, Role.SCORE)
    channels, height, width = dataset.shape
    masks = [draws.bernoulli(p, channels, height, width, lane="mask") for p in probabilities]
    rows = [("masked", tuple(to_picture((batch.images * mask)[0]) for mask in masks))]
    errors = []
    for text in defenses:
        made, error = [], []
        for probability in probabilities:
            spec = parse(text)
            range_ = {"p_low": probability, "p_high": probability}
            spec = type(spec)(spec.name, {**spec.parameters, **range_}, spec.inner)
            defense: Defense = build(spec, registry.defenses)
            with torch.no_grad():
                rebuilt = defense.transform(batch.images, draws.opaque())
            made.append(to_picture(rebuilt[0]))
            error.append(round(float((rebuilt - batch.images).square().mean().sqrt()), 6))
        rows.append((text, tuple(made)))
        errors.append((text, tuple(error)))
    return MaskData(
        basis=keys.key([dataset.digest, position, list(defenses), list(probabilities)]),
        dataset=name,
        sample=position,
        label=dataset.classes[int(batch.labels[0])],
        probabilities=tuple(probabilities),
        original=to_picture(batch.images[0]),
        rows=tuple(rows),
        errors=tuple(errors),
    )


# --- in a protocol, and on the command line ---------------------------------------------------------


def prepare(
    table: Protocol,
    profile: Profile,
    datasets: Mapping[str, str],
    store: Store,
    *,
    data_dir: Path | None,
    report: Reporter,
) -> None:
    """Store the data of `ranks` and `masks` figures."""
    names = [datasets.get(name, name) for name in table.datasets]
    if table.kind == "ranks":
        count = min(table.images, profile.images or table.images)
        kept = store.read_spare(FOLDER, table.name, RankData)
        # A user's protocol may leave out the defense that ranks: then it is that of the paper's figure.
        ranked = (table.defenses or protocol.load("figure1").defenses)[0]
        found: object = rank_data(names, count, ranked, data_dir=data_dir, report=report, kept=kept)
    else:
        found = mask_data(
            names[0], table.defenses, table.probabilities, data_dir=data_dir, report=report
        )
    store.write_json(FOLDER, table.name, found)
