"""Missing cells -> records. Plugins are seen only through the registries."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import audit, keys, provenance, store
from harness.defended import Defended
from harness.evaluate import judge, predictions
from harness.random import Draws, Role
from harness.records import Accuracy, Cell, Failure, Record, Target, Timing, TracePoint, pack
from harness.registry import attacks
from harness.spec import build
from harness.train import Interrupted
from harness.types import Attack, Batch, Dataset, HarnessError, Perturbed, Source
from harness.views import Evidence, QueryBudgetSpent, View
from harness.workshop import Workshop, resolve

TRACE_DRAWS = 5
"""Draws by which an iterate of the trace is scored on a randomised defense."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A cell with all that follows from it."""

    cell: Cell
    attack: Attack
    source: Target
    """Where the images are made: the target itself, or the source of a transfer attack."""
    resolved: dict[str, Any]
    key: str
    generation_key: str
    """The key of the attacked images, which cells that score them differently share."""


def plan(cell: Cell, workshop: Workshop) -> Plan:
    """Keys and plugins of a cell; trains nothing.

    Raises:
        HarnessError: a plugin or parameter that does not exist, or an attack that cannot serve.
    """
    attack: Attack = build(cell.attack, attacks)
    source = _source(cell.target, attack.source)
    test = workshop.dataset(cell.target.dataset, "test")
    target_facts = workshop.resolved(cell.target)
    generation = {
        "source": workshop.resolved(source) if source != cell.target else target_facts,
        "randomness": workshop.defense(source).randomness,
        "attack": resolve(attack, cell.attack),
        "threat": cell.threat,
        "test": test.digest,
        "limit": min(cell.limit or len(test), len(test)),
        "max_queries": cell.max_queries,
    }
    draws = cell.draws if workshop.defense(cell.target).randomised else 1
    resolved = {
        **generation,
        "target": target_facts,
        "target_randomness": workshop.defense(cell.target).randomness,
        "draws": draws,
    }
    return Plan(
        cell=cell,
        attack=attack,
        source=source,
        resolved=_plain(resolved),
        key=keys.key(resolved),
        generation_key=keys.key(generation),
    )


def _plain(value: Any) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain


def _source(target: Target, source: Source | None) -> Target:
    if source is None:
        return target
    return dataclasses.replace(
        target,
        defense=source.defense or target.defense,
        seed=target.seed + source.seed_offset,
    )


@dataclasses.dataclass(kw_only=True)
class Runner:
    """Runs cells on this machine, in this process."""

    workshop: Workshop
    batch_size: int = 128

    @property
    def store(self) -> store.Store:
        return self.workshop.store

    def run(self, cells: Sequence[Cell]) -> list[Record | Failure]:
        """A record or a failure for each cell, in their order. What is stored already is not run again.

        Raises:
            Interrupted: a signal came; what is done is kept.
        """
        plans = [plan(cell, self.workshop) for cell in cells]
        results: dict[str, Record | Failure] = {}
        # Cells of one trained model run together, so that it is trained and loaded once.
        order = sorted(range(len(plans)), key=lambda i: self._group(plans, i))
        for index in order:
            current = plans[index]
            if current.key not in results:
                results[current.key] = self._one(current)
        return [results[each.key] for each in plans]

    @staticmethod
    def _group(plans: Sequence[Plan], index: int) -> int:
        return next(i for i, p in enumerate(plans) if p.cell.target == plans[index].cell.target)

    def _one(self, current: Plan) -> Record | Failure:
        try:
            stored = self.store.read_json("records", current.key, Record)
            if stored is not None:
                return stored
            record = self._measure(current)
        except Interrupted:
            raise
        except HarnessError as error:
            return self._fail(current, str(error), "damaged" if error.status == 1 else "refused")
        except Exception as error:  # a guest's failure is one cell's failure
            reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            return self._fail(current, reason, "failed")
        self.store.write_json("records", current.key, record)
        self.store.remove("failures", current.key)
        return record

    def _fail(self, current: Plan, reason: str, kind: str) -> Failure:
        failure = Failure(key=current.key, cell=current.cell, reason=reason, kind=kind)
        self.store.write_json("failures", current.key, failure)
        return failure

    def _measure(self, current: Plan) -> Record:
        cell, workshop = current.cell, self.workshop
        target = workshop.obtain(cell.target)
        source = target if current.source == cell.target else workshop.obtain(current.source)
        test = workshop.dataset(cell.target.dataset, "test").first(cell.limit)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        title = f"{cell.attack} on {cell.target.label}"
        generation = _Generation(self, current, source, test, title)
        shards = list(generation.shards())
        scored = self._score(current, target, test, shards, title)
        record = _record(current, test, shards, scored, workshop.device)
        seconds = sum(shard.seconds for shard in shards) + scored.seconds
        timing = Timing(
            key=current.key,
            seconds=seconds,
            images_per_second=len(test) / max(seconds, 1e-9),
            started=started,
        )
        self.store.write_json("timings", current.key, timing)
        return record

    def _score(
        self, current: Plan, target: Defended, test: Dataset, shards: list[Shard], title: str
    ) -> Scored:
        cell = current.cell
        draws = current.resolved["draws"]
        before = time.monotonic()
        parts: dict[str, list[Tensor]] = {}
        with self.workshop.reporter.task(f"scoring {title}", 2 * draws * len(test)) as task:
            for shard in shards:
                batch = shard.batch(test, self.workshop.device)
                judged = judge(
                    target,
                    batch,
                    shard.images.to(batch.images),
                    cell.threat,
                    seed=cell.target.seed,
                    draws=draws,
                    bounded=current.attack.bounded,
                )
                for field in dataclasses.fields(judged):
                    parts.setdefault(field.name, []).append(getattr(judged, field.name).cpu())
                task.advance(2 * draws * len(batch))
                self.workshop.stop.check()
        joined = {
            name: torch.cat(values, dim=-1) if values else torch.zeros(0)
            for name, values in parts.items()
        }
        return Scored(**joined, seconds=time.monotonic() - before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """The judge's findings for all images of a cell: `Judgement`'s fields, joined."""

    ids: Tensor
    labels: Tensor
    clean: Tensor
    adversarial: Tensor
    returned: Tensor
    linf: Tensor
    l2: Tensor
    invalid: Tensor
    seconds: float


@dataclasses.dataclass(frozen=True)
class Shard:
    """One attacked batch as it is stored."""

    positions: Tensor
    images: Tensor
    evidence: Evidence
    trace: dict[int, Tensor]
    """By step: (draws, N) whether the label was predicted."""
    seconds: float
    changed: bool

    def batch(self, test: Dataset, device: torch.device) -> Batch:
        return test.batch(self.positions).to(device)


class _Generation:
    """Attacks a dataset batch by batch, and keeps every batch as soon as it is done."""

    def __init__(
        self, runner: Runner, current: Plan, source: Defended, test: Dataset, title: str
    ) -> None:
        self.runner, self.current, self.source, self.test = runner, current, source, test
        self.title = title
        self.device = runner.workshop.device
        self.folder = runner.store.progress_folder(current.generation_key)
        self.fingerprint = _snapshot(source)

    def shards(self) -> Iterator[Shard]:
        """Stored batches first, then the rest, in the order of the dataset."""
        stored = self._stored()
        done = torch.zeros(len(self.test), dtype=torch.bool)
        for shard in stored:
            done[shard.positions] = True
        left = (~done).nonzero().squeeze(1)
        attack = self.current.attack
        total = (attack.passes or 1) * len(self.test)
        made = []
        with self.runner.workshop.reporter.task(self.title, total) as task:
            task.advance((attack.passes or 1) * int(done.sum()))
            for positions in torch.split(left, self.runner.batch_size):
                made += self._attack(positions, task.advance)
        yield from sorted(stored + made, key=lambda shard: int(shard.positions[0]))

    def _stored(self) -> list[Shard]:
        shards = []
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            try:
                shards.append(_read_shard(path))
            except HarnessError as error:
                aside = store.set_aside(path)
                self.runner.workshop.reporter.say(f"{error} (set aside as {aside.name})")
        return shards

    def _attack(self, positions: Tensor, advance: Callable[[float], None]) -> list[Shard]:
        try:
            shard = self._perturb(positions, advance)
        except torch.OutOfMemoryError:
            if len(positions) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(positions) // 2
            self.runner.workshop.reporter.say(f"out of memory: batches of {half} from here on")
            self.runner.batch_size = half
            return [
                shard
                for part in torch.split(positions, half)
                for shard in self._attack(part, advance)
            ]
        _write_shard(self.folder / f"{int(positions[0]):08d}-{len(positions)}.safetensors", shard)
        return [shard]

    def _perturb(self, positions: Tensor, advance: Callable[[float], None]) -> Shard:
        cell, attack, stop = self.current.cell, self.current.attack, self.runner.workshop.stop
        batch = self.test.batch(positions).to(self.device)
        started = time.monotonic()

        def on_pass(images: int) -> None:
            advance(images)
            stop.check()

        view = View(
            self.source,
            batch,
            cell.threat,
            attack.access,
            max_queries=cell.max_queries,
            on_pass=on_pass,
        )
        attack.check(view, cell.threat)
        seed = self.current.source.seed
        draws = Draws(seed, batch.ids, Role.ATTACK)
        try:
            perturbed = attack.perturb(view, batch, cell.threat, draws)
        except QueryBudgetSpent:
            assert view.candidates is not None
            perturbed = Perturbed(view.candidates)
        changed = not _unchanged(self.source, self.fingerprint)
        if changed:
            _put_back(self.source, self.fingerprint)
        images = perturbed.images.detach()
        if images.shape != batch.images.shape:
            raise HarnessError(
                f"{cell.attack} returned images of shape {tuple(images.shape)} "
                f"for {tuple(batch.images.shape)}"
            )
        trace = self._trace(batch, perturbed)
        return Shard(
            positions=positions,
            images=images.float().cpu(),
            evidence=Evidence(
                **{
                    field.name: getattr(view.evidence, field.name).cpu()
                    for field in dataclasses.fields(Evidence)
                }
            ),
            trace=trace,
            seconds=time.monotonic() - started,
            changed=changed,
        )

    def _trace(self, batch: Batch, perturbed: Perturbed) -> dict[int, Tensor]:
        draws = TRACE_DRAWS if self.source.randomised else 1
        found = {}
        for step, images in sorted(perturbed.snapshots.items()):
            found[step] = self._right(batch, images, draws)
        if found:
            found[-1] = self._right(batch, perturbed.images, draws)
        return found

    def _right(self, batch: Batch, images: Tensor, draws: int) -> Tensor:
        seed = self.current.source.seed
        predicted = predictions(
            self.source, images.float(), batch.ids, seed=seed, draws=draws, role=Role.TRACE
        )
        return (predicted == batch.labels).cpu()


def _snapshot(defended: Defended) -> list[dict[str, Tensor]]:
    return [
        {name: value.clone() for name, value in module.state_dict().items()}
        for module in defended.modules()
    ]


def _unchanged(defended: Defended, before: list[dict[str, Tensor]]) -> bool:
    """Whether weights, buffers, mode and gradients are as they were."""
    for module, state in zip(defended.modules(), before, strict=True):
        now = module.state_dict()
        if now.keys() != state.keys():
            return False
        if any(not torch.equal(now[name], value) for name, value in state.items()):
            return False
        if any(part.training for part in module.modules()):
            return False
        if any(p.requires_grad or p.grad is not None for p in module.parameters()):
            return False
    return True


def _put_back(defended: Defended, before: list[dict[str, Tensor]]) -> None:
    for module, state in zip(defended.modules(), before, strict=True):
        module.load_state_dict(state)
    defended.frozen()


def _write_shard(path: Path, shard: Shard) -> None:
    tensors = {"positions": shard.positions, "images": shard.images}
    for field in dataclasses.fields(Evidence):
        tensors[f"evidence.{field.name}"] = getattr(shard.evidence, field.name)
    for step, right in shard.trace.items():
        tensors[f"trace.{step}"] = right
    metadata = {"seconds": shard.seconds.hex(), "changed": str(int(shard.changed))}
    store.write_tensors(path, tensors, metadata)


def _read_shard(path: Path) -> Shard:
    tensors, metadata = store.read_tensors(path)
    evidence = {
        field.name: tensors[f"evidence.{field.name}"] for field in dataclasses.fields(Evidence)
    }
    trace = {
        int(name.removeprefix("trace.")): value
        for name, value in tensors.items()
        if name.startswith("trace.")
    }
    return Shard(
        positions=tensors["positions"],
        images=tensors["images"],
        evidence=Evidence(**evidence),
        trace=trace,
        seconds=float.fromhex(metadata["seconds"]),
        changed=metadata["changed"] == "1",
    )


def accuracy(predicted: Tensor, labels: Tensor, classes: int) -> Accuracy:
    """The four ways to count (K, N) predictions."""
    count = len(labels)
    if count == 0:
        return Accuracy(one_draw=0.0, mean=0.0, vote=0.0, all_draws=0.0, count=0)
    right = predicted == labels
    votes = nn.functional.one_hot(predicted, classes).sum(dim=0)
    own = votes.gather(1, labels[:, None])[:, 0]
    others = votes.scatter(1, labels[:, None], -1).amax(dim=1)
    return Accuracy(
        one_draw=_share(right[0]),
        mean=_share(right),
        vote=_share(own > others),
        all_draws=_share(right.all(dim=0)),
        count=count,
    )


def _share(right: Tensor) -> float:
    return int(right.sum()) / right.numel()


def _record(
    current: Plan, test: Dataset, shards: list[Shard], scored: Scored, device: torch.device
) -> Record:
    labels, classes = scored.labels, len(test.classes)
    forwards = _join(shards, "forwards").double()
    backwards = _join(shards, "backwards").double()
    dead = _join(shards, "dead_gradients").double()
    fooled = _join(shards, "first_fooled") >= 0
    steps = sorted({step for shard in shards for step in shard.trace if step > 0})
    attack_steps = getattr(current.attack, "steps", 0)
    trace = tuple(
        TracePoint(
            step=step if step > 0 else attack_steps,
            accuracy=_share(torch.cat([shard.trace[step] for shard in shards], dim=1)),
        )
        for step in [*steps, *([-1] if steps else [])]
    )
    wrong = (scored.adversarial != labels).any(dim=0)
    l2 = scored.l2[wrong & torch.isfinite(scored.l2)]
    linf = scored.linf[wrong & torch.isfinite(scored.linf)]
    record = Record(
        key=current.key,
        cell=current.cell,
        resolved=current.resolved,
        classes=classes,
        count=len(labels),
        ids=hashlib.sha256(scored.ids.numpy().tobytes()).hexdigest()[:16],
        clean=accuracy(scored.clean, labels, classes),
        robust=accuracy(scored.adversarial, labels, classes),
        returned=accuracy(scored.returned, labels, classes),
        clean_outcomes=tuple(pack((row == labels).tolist()) for row in scored.clean),
        robust_outcomes=tuple(pack((row == labels).tolist()) for row in scored.adversarial),
        fooled_on_the_way=_share(fooled) if len(fooled) else 0.0,
        fooled_outcomes=pack(fooled.tolist()),
        trace=trace,
        distances={
            "median_linf": float(linf.median()) if len(linf) else float("nan"),
            "median_l2": float(l2.median()) if len(l2) else float("nan"),
            "largest_linf": float(scored.linf.max()) if len(labels) else float("nan"),
        },
        passes={
            "forwards": float(forwards.mean()) if len(labels) else 0.0,
            "backwards": float(backwards.mean()) if len(labels) else 0.0,
            "dead_gradients": float(dead.sum() / backwards.sum().clamp_min(1)),
        },
        invalid=tuple(scored.ids[scored.invalid != 0].tolist()),
        made=provenance.made(str(device), torch.get_num_threads()),
    )
    changed = any(shard.changed for shard in shards)
    return dataclasses.replace(record, flags=audit.flags(record, model_changed=changed))


def _join(shards: list[Shard], name: str) -> Tensor:
    parts = [getattr(shard.evidence, name) for shard in shards]
    return torch.cat(parts) if parts else torch.zeros(0)
