"""Where defended models come from: trained once, kept, and loaded ever after."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import data, estimates, keys, store, train
from harness.defended import Defended
from harness.progress import Reporter
from harness.random import Draws, Role, combine
from harness.records import Target, TrainingPlan
from harness.registry import attacks, defenses, models
from harness.spec import build
from harness.store import Store
from harness.types import (
    Attack,
    Batch,
    DamageError,
    Dataset,
    Defense,
    HarnessError,
    Spec,
    ThreatModel,
)
from harness.views import View


def resolve(plugin: Any, spec: Spec) -> dict[str, Any]:
    """Every parameter of a built plugin, defaults included, with the version of its code."""
    if dataclasses.is_dataclass(plugin) and not isinstance(plugin, type):
        parameters = dataclasses.asdict(plugin)
    else:
        parameters = dict(spec.parameters)
    inner = getattr(plugin, "inner", None)
    nested = {"inner_code": keys.code_version(type(inner))} if isinstance(inner, Attack) else {}
    make = type(plugin) if isinstance(plugin, Attack | Defense) else plugin
    return {
        "name": spec.name,
        "parameters": parameters,
        "code": keys.code_version(make),
        **nested,
    }


@dataclasses.dataclass(kw_only=True)
class Workshop:
    """Trains and loads the targets of one run; datasets and models are kept while it lasts."""

    store: Store
    device: torch.device
    reporter: Reporter
    stop: train.Stop
    data_dir: Path | None = None
    _datasets: dict[tuple[str, str], Dataset] = dataclasses.field(default_factory=dict)
    _last: tuple[str, Defended] | None = None

    def dataset(self, name: str, split: data.Split) -> Dataset:
        if (name, split) not in self._datasets:
            loaded = data.load(
                name, split, data_dir=self.data_dir, reporter=self.reporter
            )
            self._datasets[name, split] = loaded
        return self._datasets[name, split]

    def defense(self, target: Target) -> Defense:
        defense: Defense = build(target.defense, defenses)
        if target.training.kind == "adversarial" and defense.estimates:
            defense = dataclasses.replace(defense, estimates=0)  # a fresh mask at every forward
        return defense

    def resolved(self, target: Target) -> dict[str, Any]:
        """What the trained weights depend on."""
        dataset = self.dataset(target.dataset, "train")
        defense = self.defense(target)
        described = resolve(defense, target.defense)
        described["parameters"].pop("randomness")  # inference alone
        plan = dataclasses.asdict(target.training)
        plan.pop("paper_epochs")
        plan["inner"] = None
        if target.training.inner is not None:
            inner = build(target.training.inner, attacks)
            plan["inner"] = resolve(inner, target.training.inner)
        return {
            "engine": keys.ENGINE_VERSION,
            "dataset": {"name": target.dataset, "digest": dataset.digest},
            "model": resolve(models.get(target.model.name), target.model),
            "defense": described,
            "training": plan,
            "seed": target.seed,
        }

    def key(self, target: Target) -> str:
        return keys.key(self.resolved(target))

    def is_trained(self, target: Target) -> bool:
        return self.store.checkpoint_path(self.key(target)).exists()

    def obtain(self, target: Target) -> Defended:
        """The defended model, frozen, in evaluation mode.

        Raises:
            HarnessError: training fails. DamageError: a stored file is damaged.
        """
        key = self.key(target)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._make(target, key))
        shared = self._last[1]
        return dataclasses.replace(shared, defense=self.defense(target))  # its own `randomness`

    def _make(self, target: Target, key: str) -> Defended:
        dataset = self.dataset(target.dataset, "train")
        defense = self.defense(target)
        shape = (defense.output_channels(dataset.shape[0]), *dataset.shape[1:])
        classes = len(dataset.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(combine(target.seed, Role.WEIGHTS))
            model: nn.Module = build(target.model, models, shape=shape, classes=classes)
        if self.device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        auxiliary = self._auxiliary(defense, dataset, target)
        defended = Defended(model.to(self.device), defense, classes, auxiliary)
        path = self.store.checkpoint_path(key)
        identity = {"key": key, "classes": str(classes), "target": target.label}
        if path.exists():
            load_weights(model, path, identity)
        else:
            self._train(defended, dataset, target, key, path)
            # What is trained and what is loaded later must be the same to the bit.
            store.write_tensors(path, dict(model.state_dict()), identity)
            self._state_path(key).unlink(missing_ok=True)
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
        job = train.Job(
            title=title,
            module=defended.model,
            dataset=dataset,
            plan=plan,
            loss=loss,
            seed=target.seed,
            device=self.device,
            state_path=self._state_path(key),
            identity=key,
        )
        report = train.fit(job, reporter=self.reporter, stop=self.stop)
        log = {"key": key, "target": target.label, **report, "device": str(self.device)}
        store.write_atomic(path.with_suffix(".training.json"), json.dumps(log).encode())

    def _estimates(
        self, defended: Defended, dataset: Dataset, target: Target
    ) -> estimates.Estimates:
        facts = self.resolved(target)
        relevant = {name: facts[name] for name in ("dataset", "defense", "seed", "engine")}
        key = keys.key({**relevant, "limit": len(dataset)})
        return estimates.obtain(
            self.store.cache / "estimates" / f"{key}.bytes",
            defended,
            dataset,
            seed=target.seed,
            device=self.device,
            reporter=self.reporter,
            stop=self.stop,
        )

    def _auxiliary(self, defense: Defense, dataset: Dataset, target: Target) -> nn.Module | None:
        """The defense's own module, trained on clean images, shared by all its classifiers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(combine(target.seed, Role.WEIGHTS, 1))
            module = defense.auxiliary_module(dataset.shape)
        if module is None:
            return None
        module = module.to(self.device)
        plan = TrainingPlan(**{"limit": target.training.limit, **defense.auxiliary_plan()})
        facts = self.resolved(target)
        relevant = {name: facts[name] for name in ("dataset", "defense", "seed", "engine")}
        key = keys.key({**relevant, "plan": dataclasses.asdict(plan)})
        path = self.store.checkpoint_path(key)
        identity = {"key": key, "target": f"{target.defense.name}: auxiliary"}
        if path.exists():
            load_weights(module, path, identity)
            return module

        def loss(inner: nn.Module, batch: Batch, draws: Draws) -> Tensor:
            return defense.auxiliary_loss(inner, batch.images)

        job = train.Job(
            title=f"training the density model of {target.defense.name}",
            module=module,
            dataset=dataset,
            plan=plan,
            loss=loss,
            seed=target.seed,
            device=self.device,
            state_path=self._state_path(key),
            identity=key,
        )
        train.fit(job, reporter=self.reporter, stop=self.stop)
        store.write_tensors(path, dict(module.state_dict()), identity)
        self._state_path(key).unlink(missing_ok=True)
        return module


def load_weights(module: nn.Module, path: Path, identity: dict[str, str]) -> None:
    """Weights from a checkpoint of this very target.

    Raises:
        DamageError: damaged, or of another defense, dataset or number of classes.
    """
    tensors, metadata = store.read_tensors(path)
    for name, wanted in identity.items():
        if metadata.get(name) != wanted:
            raise DamageError(
                f"{path} is of another training ({name} is {metadata.get(name)}, not {wanted}): "
                "delete it and run the same command again"
            )
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().split("\n")[-1].strip()
        raise DamageError(f"{path} does not fit the model: {first}") from error


def classifier_loss(
    defended: Defended,
    plan: TrainingPlan,
    dataset: Dataset,
    versions: estimates.Estimates | None,
) -> train.Loss:
    """The loss of one training batch: pure, on stored versions, or adversarial (Madry et al. 2018).

    The draws' step is the number of the training step, counted over all epochs.
    """
    steps = -(-len(dataset) // plan.batch_size)
    if plan.kind == "adversarial":
        return _adversarial_loss(defended, plan, steps)

    def pure(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        if versions is not None:
            seen = versions.versions(batch.ids, draws.step // steps)
            logits = module(train.augment(seen, draws, plan.augment))
        else:
            images = train.augment(batch.images, draws, plan.augment)
            logits = defended.training_logits(images, draws)
        return train.cross_entropy(logits, batch.labels)

    return pure


def _adversarial_loss(defended: Defended, plan: TrainingPlan, steps: int) -> train.Loss:
    if plan.inner is None:
        raise HarnessError("adversarial training needs an inner attack")
    attack: Attack = build(plan.inner, attacks)

    def adversarial(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        images = train.augment(batch.images, draws, plan.augment)
        centre = Batch(images, batch.labels, batch.ids)
        epsilon = train.inner_epsilon(plan, draws.step / steps)
        threat = ThreatModel(epsilon=epsilon)
        inner = Draws(combine(draws.seed, draws.step), batch.ids, Role.TRAIN_ATTACK)
        module.eval()
        module.requires_grad_(False)
        try:
            view = View(defended, centre, threat, attack.access)
            perturbed = attack.perturb(view, centre, threat, inner).images.detach()
        finally:
            module.requires_grad_(True)
            module.train()
        logits = defended.training_logits(perturbed, draws)
        return train.cross_entropy(logits, batch.labels)

    return adversarial
