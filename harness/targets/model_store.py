"""Provide defended models: each is trained once, stored, and loaded ever after."""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from harness.cells import guard, plugins, process
from harness.cells.cells import Target, TrainingPlan
from harness.datasets import checks, data
from harness.random import Draws, Role, combine
from harness.registry import models
from harness.results.resolved import DatasetVersion, ResolvedTarget
from harness.spec import build
from harness.storage import keys, store
from harness.storage.leases import Busy, Lease, Leases
from harness.storage.store import DamagedFile, StoreError
from harness.targets import estimates, guests, own_models, training
from harness.targets.defended import Defended
from harness.targets.devices import generators_kept
from harness.targets.source import TargetSource, resolve
from harness.targets.views import View
from harness.types import (
    Batch,
    Dataset,
    Defense,
    HarnessError,
    ThreatModel,
)

_KEPT = 3
"""The number of models that are kept in memory: a cell's target, its source, and the one before."""
_PAUSE = 0.5


@dataclasses.dataclass(kw_only=True)
class ModelStore(TargetSource):
    """The trained models of a store, trained where they are missing.

    Datasets and the last few models are kept in memory.
    """

    _datasets: dict[tuple[str, str], Dataset] = dataclasses.field(default_factory=dict)
    _models: collections.OrderedDict[str, Defended] = dataclasses.field(
        default_factory=collections.OrderedDict
    )
    _failed: dict[str, HarnessError] = dataclasses.field(default_factory=dict)
    _resolved: dict[bytes, ResolvedTarget] = dataclasses.field(default_factory=dict)
    _leases: Leases | None = None

    def dataset(self, name: str, split: data.Split) -> Dataset:
        if (name, split) not in self._datasets:
            loaded = data.load(name, split, data_dir=self.data_dir, reporter=self.reporter)
            self._datasets[name, split] = loaded
        return self._datasets[name, split]

    def whole(self, name: str, split: data.Split) -> Dataset:
        """Return a dataset whose content still has its digest; one that was edited is loaded again.

        Code of guests runs in the same process, and could have changed it.
        """
        held = self.dataset(name, split)
        if checks.digest(held.images, held.labels, held.ids) != held.digest:
            guard.history.append(f"the {split} images of {name}")
            del self._datasets[name, split]
        return self.dataset(name, split)

    def defense(self, target: Target) -> Defense:
        defense = plugins.defense(target.defense)
        if target.training.kind == "adversarial" and defense.estimates:
            defense = dataclasses.replace(defense, estimates=0)  # a fresh mask at every forward
        return defense

    def resolved(self, target: Target) -> ResolvedTarget:
        """Return everything that the trained weights depend on."""
        asked = keys.canonical(target)
        if asked not in self._resolved:
            self._resolved[asked] = self._resolve(target)
        return self._resolved[asked]

    def _resolve(self, target: Target) -> ResolvedTarget:
        dataset = self.dataset(target.dataset, "train")
        plan = dataclasses.asdict(target.training)
        plan.pop("paper_epochs")
        if target.training.inner_transform == "inference":  # as before there was a choice
            plan.pop("inner_transform")
        if target.training.inner is not None:
            inner = plugins.attack(target.training.inner)
            plan["inner"] = resolve(inner, target.training.inner)
        plugins.check_parameters(target.model, models)
        return ResolvedTarget(
            engine=keys.ENGINE_VERSION,
            dataset=DatasetVersion(name=target.dataset, digest=dataset.digest),
            model=resolve(models.get(target.model.name), target.model),
            # How it is randomised matters at inference alone.
            defense=resolve(self.defense(target), target.defense, without=("randomness",)),
            training=msgspec.to_builtins(plan),
            seed=target.seed,
            precision=target.precision,
        )

    def is_trained(self, target: Target) -> bool:
        given = own_models.is_given(target.model)
        return given or self.store.checkpoint_path(self.key(target)).exists()

    def obtain(self, target: Target, *, wait: bool = True) -> Defended:
        """Return the defended model; one that is not stored yet is trained.

        Raises:
            Busy: another run trains it, and `wait` is off.
        """
        key = self.key(target)
        while key not in self._models:
            if key in self._failed:  # not twice in one run
                raise self._failed[key]
            try:
                self._models[key] = self._make(target, key)
            except Busy:
                if not wait:
                    raise
                self.stop.check()
                time.sleep(_PAUSE)
            except (StoreError, DamagedFile):
                raise
            except HarnessError as error:
                self._failed[key] = error
                raise
        self._models.move_to_end(key)
        while len(self._models) > _KEPT:
            self._models.popitem(last=False)
        # The caller's own `randomness`, which training does not depend on.
        return dataclasses.replace(self._models[key], defense=self.defense(target))

    def _lease(self, key: str, title: str) -> Lease:
        """Return a lease on a training; raise Busy where another run holds it."""
        if self._leases is None:
            self._leases = Leases(self.store.cache / "leases")
        lease = self._leases.take(f"train-{key}", title)
        if lease is None:
            raise Busy(title)
        return lease

    def _make(self, target: Target, key: str) -> Defended:
        dataset = self.whole(target.dataset, "train")
        defense = self.defense(target)
        shape = (defense.output_channels(dataset.shape[0]), *dataset.shape[1:])
        classes = len(dataset.classes)
        with (
            guard.watched(noted=False, keep=(process.PATH,)),
            generators_kept(combine(target.seed, Role.WEIGHTS)),
        ):
            model: nn.Module = guard.call(
                lambda: build(target.model, models, shape=shape, classes=classes)
            )
        model = model.to(memory_format=torch.channels_last)  # LeNet on a CPU: 1.2 times as fast
        auxiliary = self._auxiliary(defense, dataset, target)
        defended = Defended(
            model.to(self.device), defense, classes, auxiliary, search=target.precision
        )
        if own_models.is_given(target.model):
            probed = own_models.check(defended.frozen(), dataset, self.device)
            if line := own_models.doubt(probed, classes):
                self.reporter.say(line)
            return defended
        path = self.store.checkpoint_path(key)
        identity = {"key": key, "classes": str(classes), "target": target.label}
        if not path.exists():
            with self._lease(key, f"training {target.label}"):
                if not path.exists():  # another run may have finished it before the lease
                    with guests.pure(f"{target.label} ({target.model})"):
                        self._train(defended, dataset, target, key, path)
                    store.write_tensors(path, dict(model.state_dict()), identity)
                store.remove(self._state_path(key))
        # What is trained and what is loaded later must be the same to the bit.
        load_weights(model, path, identity)
        return defended.frozen()

    def _state_path(self, key: str) -> Path:
        return self.store.cache / "checkpoints" / f"{key}.state"

    def _train(
        self, defended: Defended, dataset: Dataset, target: Target, key: str, path: Path
    ) -> None:
        plan = target.training
        versions = None
        if plan.kind == "pure" and defended.defense.estimates:
            versions = self._estimates(defended, dataset.first(plan.limit), target)
        loss = classifier_loss(defended, plan, dataset.first(plan.limit), versions)
        title = f"training {target.label} on {target.dataset}"
        if plan.kind == "adversarial":
            title += f" (inner attack {plan.inner})"
        job = training.Job(
            title=title,
            module=defended.model,
            dataset=dataset,
            plan=plan,
            loss=guests.guarded(loss, self.stop),
            seed=target.seed,
            device=self.device,
            state_path=self._state_path(key),
            identity=key,
            mend=self.mend,
        )
        with generators_kept():
            report = training.fit(job, reporter=self.reporter, stop=self.stop)
        log = {
            "key": key,
            "target": target.label,
            **dataclasses.asdict(report),
            "device": str(self.device),
        }
        store.write_atomic(path.with_suffix(".training.json"), json.dumps(log).encode())

    def _estimates(
        self, defended: Defended, dataset: Dataset, target: Target
    ) -> estimates.Estimates:
        key = keys.key({**_clean_images(self.resolved(target)), "limit": len(dataset)})
        with self._lease(key, "estimates"):  # models of one defense share them
            return estimates.obtain(
                self.store.estimates_path(key),
                defended,
                dataset,
                seed=target.seed,
                device=self.device,
                reporter=self.reporter,
                stop=self.stop,
                mend=self.mend,
            )

    def _auxiliary(self, defense: Defense, dataset: Dataset, target: Target) -> nn.Module | None:
        """Return the defense's auxiliary module, trained on clean images; all its classifiers share it."""
        with (
            guard.watched(noted=False, keep=(process.PATH,)),
            generators_kept(combine(target.seed, Role.WEIGHTS, 1)),
        ):
            module = guard.call(lambda: defense.auxiliary_module(dataset.shape))
        if module is None:
            return None
        module = module.to(self.device)
        plan = TrainingPlan(**{"limit": target.training.limit, **defense.auxiliary_plan()})
        facts = _clean_images(self.resolved(target))
        key = keys.key({**facts, "plan": dataclasses.asdict(plan)})
        path = self.store.checkpoint_path(key)
        identity = {"key": key, "target": f"{target.defense.name}: auxiliary"}
        if not path.exists():
            title = f"training the density model of {target.defense.name}"
            with self._lease(key, title):
                if not path.exists():
                    with guests.pure(target.label):
                        self._fit_auxiliary(module, defense, dataset, plan, key, title, target.seed)
                    store.write_tensors(path, dict(module.state_dict()), identity)
                store.remove(self._state_path(key))
        load_weights(module, path, identity)
        return module

    def _fit_auxiliary(
        self,
        module: nn.Module,
        defense: Defense,
        dataset: Dataset,
        plan: TrainingPlan,
        key: str,
        title: str,
        seed: int,
    ) -> None:
        def loss(inner: nn.Module, batch: Batch, draws: Draws) -> Tensor:
            return defense.auxiliary_loss(inner, batch.images)

        job = training.Job(
            title=title,
            module=module,
            dataset=dataset,
            plan=plan,
            loss=guests.guarded(loss, self.stop),
            seed=seed,
            device=self.device,
            state_path=self._state_path(key),
            identity=key,
            mend=self.mend,
        )
        with generators_kept():
            training.fit(job, reporter=self.reporter, stop=self.stop)


def _clean_images(facts: ResolvedTarget) -> dict[str, object]:
    """Return the facts that a defense's work on clean images depends on, whatever classifier follows it."""
    return {name: getattr(facts, name) for name in ("dataset", "defense", "seed", "engine")}


def load_weights(module: nn.Module, path: Path, identity: dict[str, str]) -> None:
    """Load a module's weights from the checkpoint of its target.

    Args:
        identity: the metadata that the checkpoint must have.

    Raises:
        DamagedFile: the checkpoint is damaged, or of another training or model.
        StoreError: the checkpoint has vanished.
    """
    try:
        tensors, metadata = store.read_tensors(path)
    except FileNotFoundError:
        raise StoreError(f"{path} has vanished: run the same command again") from None
    for name, wanted in identity.items():
        if metadata.get(name) != wanted:
            raise store.damaged(
                path, f"it is of another training ({name} is {metadata.get(name)}, not {wanted})"
            )
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().split("\n")[-1].strip()
        raise store.damaged(path, f"it does not fit the model: {first}") from error


def classifier_loss(
    defended: Defended,
    plan: TrainingPlan,
    dataset: Dataset,
    versions: estimates.Estimates | None,
) -> training.Loss:
    """Return the loss function of a training: pure, on stored versions, or adversarial (Madry et al. 2018).

    It expects draws whose step is the number of the training step, counted over all epochs.
    """
    steps = -(-len(dataset) // plan.batch_size)
    if plan.kind == "adversarial":
        return _adversarial_loss(defended, plan, steps)

    def pure(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        trained = defended.quick(batch.images.device)
        if versions is not None:
            seen = versions.versions(batch.ids, draws.step // steps)
            logits = trained.classify(training.augment(seen, draws, plan.augment))
        else:
            images = training.augment(batch.images, draws, plan.augment)
            logits = trained.training_logits(images, draws)
        return training.cross_entropy(logits, batch.labels)

    return pure


def _adversarial_loss(defended: Defended, plan: TrainingPlan, steps: int) -> training.Loss:
    if plan.inner is None:
        raise HarnessError("adversarial training needs an inner attack")
    attack = plugins.attack(plan.inner)
    same = plan.inner_transform == "training"

    def adversarial(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        images = training.augment(batch.images, draws, plan.augment)
        centre = Batch(images, batch.labels, batch.ids)
        epsilon = training.inner_epsilon(plan, draws.step / steps)
        threat = ThreatModel(epsilon=epsilon)
        inner = Draws(combine(draws.seed, draws.step), batch.ids, Role.TRAIN_ATTACK)
        module.eval()
        module.requires_grad_(False)
        try:
            seen = defended.in_training(draws) if same else defended
            view = View(seen, centre, threat, attack.access, role=inner.role)
            perturbed = attack.perturb(view, centre, threat, inner).images.detach()
        finally:
            module.requires_grad_(True)
            module.train()
        logits = defended.quick(images.device).training_logits(perturbed, draws)
        return training.cross_entropy(logits, batch.labels)

    return adversarial
