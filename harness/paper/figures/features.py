"""Prepare the penultimate features behind Figures 4 and 5, and the attacked images of the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.cells import defaults
from harness.cells.cells import Cell
from harness.evaluation.plans import Plan, plan
from harness.evaluation.runner import Runner
from harness.paper import expansion
from harness.paper.figures import images
from harness.paper.figures.data import FOLDER, Cloud, Example, FeatureData, Gallery, Shelf
from harness.paper.measured import cell_name
from harness.paper.protocol import Profile, Protocol
from harness.random import Draws, Role
from harness.results.records import Record
from harness.storage import batches, keys
from harness.targets.defended import Defended
from harness.targets.features import penultimate
from harness.types import Batch, HarnessError

QUANTILES = 200
_EXAMPLES, _SHELVES = 4, 12


def prepare(table: Protocol, profile: Profile, datasets: Mapping[str, str], runner: Runner) -> None:
    """Store the data of a figure that needs more than records, unless it is there."""
    model_store = runner.model_store
    if table.kind in ("ranks", "masks"):
        try:
            images.prepare(
                table,
                profile,
                datasets,
                runner.store,
                data_dir=model_store.data_dir,
                report=model_store.reporter,
            )
        except HarnessError as error:
            model_store.reporter.say(f"{table.name}: {error}")
    elif table.kind in ("features", "distances"):
        _features(table, profile, datasets, runner)


def attacked(current: Plan, runner: Runner) -> dict[int, Tensor]:
    """Return the stored images of a cell by position in the test set; empty where they were deleted."""
    folder = runner.store.progress_folder(current.generation_key)
    return batches.images(folder, current.resolved.limit)


def _features(
    table: Protocol, profile: Profile, datasets: Mapping[str, str], runner: Runner
) -> None:
    model_store = runner.model_store
    clouds, missing, bases, dataset = [], [], [], ""
    places = expansion.expand(table, profile, datasets)
    try:
        plans = [plan(place.cells[0], model_store) for place in places if place.cells]
    except HarnessError as error:
        model_store.reporter.say(f"{table.name}: {error}")
        return
    basis = keys.key([[each.key for each in plans], table.images, QUANTILES])
    kept = runner.store.read_spare(FOLDER, table.name, FeatureData)
    if kept is not None and kept.basis == basis and not kept.missing:
        return
    names: tuple[str, ...] = ()
    for place, current in zip((p for p in places if p.cells), plans, strict=True):
        cell = place.cells[0]
        label = " ".join(table.rows[place.row].labels)
        dataset = cell.target.dataset
        test = model_store.dataset(dataset, "test")
        names = test.classes
        stored = attacked(current, runner)
        positions = sorted(stored)[: table.images]
        if not positions:
            missing.append(f"{label}: the attacked images are not stored")
            continue
        defended = model_store.obtain(cell.target)
        batch = test.batch(torch.tensor(positions)).to(model_store.device)
        adversarial = torch.stack([stored[place] for place in positions]).to(batch.images)
        bases.append(current.key)
        for changed, pixels in ((False, batch.images), (True, adversarial)):
            clouds.append(_cloud(label, changed, defended, batch, pixels, cell.target.seed))
    found = FeatureData(
        basis=basis, dataset=dataset, names=names, clouds=tuple(clouds), missing=tuple(missing)
    )
    runner.store.write_json(FOLDER, table.name, found)


def _cloud(
    label: str, changed: bool, defended: Defended, batch: Batch, pixels: Tensor, seed: int
) -> Cloud:
    draws = Draws(seed, batch.ids, Role.SCORE)
    vectors, right = [], 0
    with torch.no_grad():
        for start in range(0, len(batch), 256):
            part = slice(start, start + 256)
            seen = defended.transform(pixels[part], draws[part])
            vectors.append(penultimate(defended.model, seen).flatten(1).float().cpu())
            right += int((defended.model(seen).argmax(1) == batch.labels[part]).sum())
    features, labels = torch.cat(vectors), batch.labels.cpu()
    within, among = _distances(features, labels)
    x, y = _embedded(features)
    return Cloud(
        label=label,
        attacked=changed,
        accuracy=right / len(batch),
        x=x,
        y=y,
        classes=tuple(labels.tolist()),
        within=within,
        among=among,
    )


def _distances(features: Tensor, labels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return quantiles of the Euclidean distances between pairs of one class, and of two classes."""
    first, second = torch.triu_indices(len(labels), len(labels), offset=1)
    distances = torch.pdist(features.double())
    same = labels[first] == labels[second]
    return _quantiles(distances[same]), _quantiles(distances[~same])


def _quantiles(values: Tensor) -> tuple[float, ...]:
    if not len(values):
        return ()
    ordered = values.sort().values
    places = (torch.linspace(0, 1, QUANTILES + 1) * (len(ordered) - 1)).round().long()
    return tuple(round(value, 6) for value in ordered[places].tolist())


def _embedded(features: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (x, y) of t-SNE in the plane (van der Maaten and Hinton 2008), from a fixed start."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(2.0, (len(features) - 1) / 3))
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(
        features.numpy()
    )
    x, y = ([round(float(value), 4) for value in column] for column in plane.T)
    return tuple(x), tuple(y)


# --- the gallery ------------------------------------------------------------------------------------


def prepare_gallery(cells: Sequence[Cell], results: Sequence[Record], runner: Runner) -> None:
    """Store a few attacked images of each target, made by the attack that did most harm.

    Args:
        cells: the cells of this run; a record may answer one that is spelled differently.
        results: all records of the folder.
    """
    chosen = _harmful(results)
    basis = keys.key(sorted(record.key for record in chosen))
    kept = runner.store.read_spare(FOLDER, "gallery", Gallery)
    if kept is not None and kept.basis == basis:
        return
    asked = {cell_name(cell): cell for cell in cells}
    shelves = []
    for record in chosen:
        cell = asked.get(cell_name(record.cell), record.cell)
        try:
            shelf = _shelf(plan(cell, runner.model_store), record, runner)
        except HarnessError as error:  # a plugin or dataset of an earlier run that is gone
            runner.model_store.reporter.say(f"gallery: {error}")
            continue
        if shelf is not None:
            shelves.append(shelf)
    runner.store.write_json(FOLDER, "gallery", Gallery(basis=basis, shelves=tuple(shelves)))


def _harmful(results: Sequence[Record]) -> list[Record]:
    worst: dict[bytes, Record] = {}
    for record in results:
        usual = defaults.epsilon(record.cell.target.dataset)
        white = record.access == "gradients" and record.bounded and not record.transferred
        if not white or record.cell.threat.epsilon != usual:
            continue
        target = keys.canonical(record.cell.target)
        kept = worst.get(target)
        if kept is None or (record.robust.mean, record.key) < (kept.robust.mean, kept.key):
            worst[target] = record
    return [worst[target] for target in sorted(worst)][:_SHELVES]


def _shelf(current: Plan, record: Record, runner: Runner) -> Shelf | None:
    model_store = runner.model_store
    stored = attacked(current, runner) if current.key == record.key else {}
    positions = sorted(stored)[:_EXAMPLES]
    if not positions:  # deleted, or made by other code or data
        return None
    test = model_store.dataset(record.cell.target.dataset, "test")
    defended = model_store.obtain(record.cell.target)
    batch = test.batch(torch.tensor(positions)).to(model_store.device)
    adversarial = torch.stack([stored[place] for place in positions]).to(batch.images)
    draws = Draws(record.cell.target.seed, batch.ids, Role.SCORE)
    with torch.no_grad():
        before = defended.logits(batch.images, draws).argmax(1).tolist()
        after = defended.logits(adversarial, draws).argmax(1).tolist()
        seen = defended.transform(adversarial, draws)
    change = adversarial - batch.images
    examples = []
    for place in range(len(positions)):
        examples.append(
            Example(
                sample=int(batch.ids[place]),
                label=test.classes[int(batch.labels[place])],
                original=images.to_picture(batch.images[place]),
                adversarial=images.to_picture(adversarial[place]),
                perturbation=images.to_picture(0.5 + 10 * change[place]),
                rebuilt=images.to_picture(seen[place]) if seen.shape == change.shape else None,
                before=test.classes[before[place]],
                after=test.classes[after[place]],
                linf=round(float(change[place].abs().max()), 6),
                l2=round(float(change[place].norm()), 6),
            )
        )
    return Shelf(key=record.key, examples=tuple(examples))
