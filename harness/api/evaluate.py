"""Evaluate a model in memory from Python, on some images: a number with its doubts.

`harness.evaluate` is `harness run` on a store of its own: the same runner, judge, keys and flags. Nothing
is trained and, unless `results` names a folder, nothing stays on the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.api.bridges import borrowed
from harness.api.evaluation import Evaluation, worst_images
from harness.cells.cells import Precision, Target
from harness.datasets import checks, data
from harness.evaluation import planning
from harness.evaluation.runner import Runner
from harness.registry import defenses as defense_registry
from harness.results import flags, worst_case
from harness.results.records import Failure, Record, Timing
from harness.spec import build, parse
from harness.storage import batches, progress, store
from harness.targets import devices, objects, own_models
from harness.targets.defended import Defended
from harness.targets.given import GivenModel
from harness.targets.model_store import ModelStore
from harness.targets.training import Stop
from harness.types import Attack, Dataset, Defense, HarnessError, Norm, Spec, Training

IN_MEMORY = "in-memory"


def evaluate(
    model: nn.Module | Defended,
    images: Any,
    labels: Any,
    *,
    attack: str | Attack | Sequence[str | Attack] = "adaptive",
    epsilon: float | None = None,
    norm: Norm = "linf",
    dataset: str | None = None,
    defense: str | Defense | None = None,
    normalisation: str = "inside",
    draws: int = 10,
    seed: int = 0,
    scale: float = 1.0,
    steps: int | None = None,
    eot: int | None = None,
    max_queries: int | None = None,
    batch_size: int = 128,
    device: str | None = None,
    precision: Precision = "auto",
    check: bool = True,
    results: str | Path | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Return the robust accuracy of a model on images, under one attack or the worst case of several.

    Args:
        model: images (N, C, H, W) -> logits (N, K). Its weights, mode and gradients are restored.
        images: (N, C, H, W), uint8 or floats in [0, 1]; a tensor or an array. Not normalised.
        labels: (N,) integers, positions in the K outputs.
        attack: a name as on the command line (`pgd(steps=40)`, `my.py:Attack`), an Attack, several of
            these, or `adaptive`: the suite of attacks that fits the defense.
        epsilon: the radius of the ball in pixel values of [0, 1]. Default: the dataset's, else 8/255.
        dataset: the dataset of the images (`mnist`, `cifar10`), which gives epsilon and step sizes that are
            not named, as in `harness run --dataset`. Without it, an attack takes a step size that suits
            the ball.
        defense: the defense in front of the model: `menet-usvt`, or a Defense; None for no defense.
        normalisation: `inside` where the model takes pixels in [0, 1]; else the one that it was trained
            with: `imagenet`, `cifar10`, or mean/std as `0.49,0.48,0.45/0.25,0.24,0.26`.
        draws: the number of scoring draws of the defense's randomness.
        scale: the share of the adaptive suite's published budget, in (0, 1].
        steps, eot: replace the attack's own.
        precision: the precision of the model's gradients: `auto` is bfloat16 on a GPU, float32 elsewhere.
            The model is judged in float32.
        check: whether to refuse a model that is clearly better with another normalisation.
        results: a folder that keeps records, attacked images and progress, as with `harness run`.

    Raises:
        HarnessError: images, labels, model, attack or defense do not fit together, or the attack fails.
    """
    chosen = devices.choose(device)
    images, labels = _tensor(images, "images"), _tensor(labels, "labels")
    asked = planning.TargetOptions(dataset=dataset or IN_MEMORY, epsilon=epsilon, norm=norm)
    attacks = planning.AttackOptions(
        attacks=[attack] if isinstance(attack, str | Attack) else attack,
        steps=steps,
        eot=eot,
        draws=draws,
        max_queries=max_queries,
        budget_scale=scale,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.generators_kept())
        defended = _defended(model, defense, normalisation, images, chosen, stack)
        defended = dataclasses.replace(defended, search=precision)
        test = in_memory(images, labels, classes=defended.classes)
        if check:
            line = own_models.doubt(own_models.check(defended, test, chosen), defended.classes)
            if line:
                warnings.warn(line, stacklevel=2)
        target = Target(
            dataset=asked.dataset,
            model=Spec(type(model.model if isinstance(model, Defended) else model).__name__),
            defense=objects.specification(defended.defense),
            training=own_models.GIVEN,
            seed=seed,
            precision=precision,
        )
        folder = Path(results) if results else Path(stack.enter_context(_temporary()))
        model_store = GivenModel(
            store=store.Store(folder),
            device=chosen,
            reporter=progress.reporter(quiet=quiet),
            stop=Stop(),
            given=defended,
            target=target,
            test=test,
        )
        model_store.store.prepare()
        cells, notes = planning.cells_on(target, asked.threat, attacks)
        runner = Runner(model_store=model_store, batch_size=batch_size)
        return _gather(runner.run(cells), runner, test, tuple(notes))


def load_defended(
    defense: str | None = None,
    *,
    dataset: str = "digits",
    model: str | None = None,
    training: Training = "pure",
    epochs: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    results: str | Path = "results/runs",
    data_dir: str | Path | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Defended:
    """Return a defense of the harness with its classifier, which is trained unless it is stored already.

    It is the same model that `harness run` with these options trains.

    Raises:
        HarnessError: there is no such defense, dataset or model, or training fails.
    """
    asked = planning.TargetOptions(
        dataset=dataset,
        model=model,
        training=training,
        epochs=epochs,
        training_options={} if limit is None else {"limit": limit},
    )
    target = planning.target_of(defense or defense_registry.default, asked, seed=seed)
    model_store = ModelStore(
        store=store.Store(Path(results)),
        device=devices.choose(device),
        reporter=progress.reporter(quiet=quiet),
        stop=Stop(),
        data_dir=Path(data_dir) if data_dir else None,
    )
    model_store.store.prepare()
    return model_store.obtain(target)


def load_images(
    name: str = "digits",
    split: Literal["train", "test"] = "test",
    count: int | None = None,
    *,
    data_dir: str | Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (images (N, C, H, W) in [0, 1], labels (N,)) of a dataset of the harness.

    Args:
        count: the number of images, from the first; None for all.
    """
    where = Path(data_dir) if data_dir else None
    batch = data.load(name, split, data_dir=where).first(count).batch(slice(None))
    return batch.images, batch.labels


def in_memory(images: Any, labels: Any, *, classes: int) -> Dataset:
    """Return images and labels in memory as a checked Dataset, whose ids are positions.

    Raises:
        HarnessError: the images are not in [0, 1], or the model has no output for a label.
    """
    pixels, truth = _tensor(images, "images"), _tensor(labels, "labels")
    if pixels.ndim != 4 or not len(pixels):
        raise HarnessError(f"images have the shape {tuple(pixels.shape)}: it must be (N, C, H, W)")
    if truth.shape != (len(pixels),) or truth.is_floating_point():
        raise HarnessError(
            f"{len(pixels)} images and labels of shape {tuple(truth.shape)}, {truth.dtype}: "
            "there must be one integer for each image"
        )
    if pixels.is_floating_point():
        pixels = pixels.float()
    checks.check_pixels(pixels, "images")
    truth = truth.long()
    if int(truth.min()) < 0 or int(truth.max()) >= classes:
        raise HarnessError(
            f"labels reach from {int(truth.min())} to {int(truth.max())}: "
            f"the model has {classes} outputs, so they must be from 0 to {classes - 1}"
        )
    ids = torch.arange(len(pixels))
    return Dataset(
        name=IN_MEMORY,
        split="test",
        images=pixels.contiguous(),
        labels=truth,
        ids=ids,
        classes=tuple(map(str, range(classes))),
        digest=checks.digest(pixels, truth, ids),
    )


def _tensor(values: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise HarnessError(
            f"{what} are a {type(values).__name__}, and no tensor can be made of it: {error}"
        ) from error


def _defended(
    model: nn.Module | Defended,
    defense: str | Defense | None,
    normalisation: str,
    images: Tensor,
    device: torch.device,
    stack: contextlib.ExitStack,
) -> Defended:
    """Return the model behind its defense, frozen and on the device until the stack is closed."""
    if isinstance(model, Defended):
        if defense not in (None, defense_registry.default):
            raise HarnessError("the model has a defense already: leave out defense=")
        for module in model.modules():
            stack.enter_context(borrowed(module, device))
        return model.frozen()
    if not isinstance(model, nn.Module):
        raise HarnessError(f"the model is a {type(model).__name__}: it must be a torch module")
    named = defense_registry.default if defense is None else defense
    chosen = named if isinstance(named, Defense) else build(parse(named), defense_registry)
    few = in_memory(images[:2], torch.zeros(len(images[:2]), dtype=torch.long), classes=1)
    shape = few.shape
    if chosen.auxiliary_module(shape) is not None:
        raise HarnessError(
            f"{type(chosen).__name__} has a module of its own that must be trained first: "
            "use harness.load_defended, or harness.types.Defended with it"
        )
    stack.enter_context(borrowed(model, device))
    channels = chosen.output_channels(shape[0])
    classifier = own_models.behind(model, channels, normalisation).to(device)
    draft = Defended(classifier, chosen, 0).frozen()
    logits = own_models.answer(
        classifier, own_models.seen(draft, few.batch(slice(None)).to(device))
    )
    return dataclasses.replace(draft, classes=logits.shape[1])


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="harness-", ignore_cleanup_errors=True)


def _gather(
    results: Sequence[Record | Failure], runner: Runner, test: Dataset, notes: tuple[str, ...]
) -> Evaluation:
    records = [result for result in results if isinstance(result, Record)]
    failures = [result for result in results if isinstance(result, Failure)]
    if not records:
        raise HarnessError("; ".join(f"{each.cell.attack}: {each.reason}" for each in failures))
    found = flags.across(records)
    flagged = tuple(dataclasses.replace(each, flags=found[each.key]) for each in records)
    images = {}
    for record in flagged:
        folder = runner.store.progress_folder(record.resolved.generation_key)
        images[record.key] = _stored_images(folder, test)
    timings = {each.key: runner.store.read_json("timings", each.key, Timing) for each in flagged}
    return Evaluation(
        records=flagged,
        failures=tuple(failures),
        worst=worst_case.worst_case(flagged),
        timings={key: timing for key, timing in timings.items() if timing is not None},
        originals=test.batch(slice(None)).images,
        labels=test.labels,
        images=worst_images(flagged, images),
        notes=notes,
    )


def _stored_images(folder: Path, test: Dataset) -> Tensor:
    """Return the attacked images of a cell, in the order of the dataset."""
    images = test.batch(slice(None)).images.clone()
    for position, image in batches.images(folder, len(test)).items():
        images[position] = image
    return images
