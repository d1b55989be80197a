"""Attacked images: made batch by batch, each batch kept as soon as it is done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness import store, train
from harness.defended import Defended
from harness.evaluate import predictions
from harness.progress import Reporter
from harness.random import Draws, Role
from harness.types import Attack, Batch, Dataset, HarnessError, Perturbed, ThreatModel
from harness.views import Evidence, QueryBudgetSpent, View

TRACE_DRAWS = 5
"""Draws by which an iterate of the trace is scored on a randomised defense."""


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


@dataclasses.dataclass(kw_only=True)
class Generation:
    """Attacks a dataset batch by batch, and keeps every batch as soon as it is done."""

    title: str
    attack: Attack
    threat: ThreatModel
    max_queries: int | None
    seed: int
    source: Defended
    test: Dataset
    device: torch.device
    batch_size: int
    folder: Path
    reporter: Reporter
    stop: train.Stop

    def __post_init__(self) -> None:
        self._before = _snapshot(self.source)

    def shards(self) -> list[Shard]:
        """All batches in the order of the dataset: stored ones are read, the others made."""
        stored = self._stored()
        done = torch.zeros(len(self.test), dtype=torch.bool)
        for shard in stored:
            done[shard.positions] = True
        left = (~done).nonzero().squeeze(1)
        passes = self.attack.passes or 1
        made = []
        with self.reporter.task(self.title, passes * len(self.test)) as task:
            task.advance(passes * int(done.sum()))
            while len(left):
                positions, left = left[: self.batch_size], left[self.batch_size :]
                made += self._attack(positions, task.advance)
        return sorted(stored + made, key=lambda shard: int(shard.positions[0]))

    def _stored(self) -> list[Shard]:
        shards = []
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            try:
                shards.append(_read_shard(path))
            except HarnessError as error:
                aside = store.set_aside(path)
                self.reporter.say(f"{error} (set aside as {aside.name})")
        return shards

    def _attack(self, positions: Tensor, advance: Callable[[float], None]) -> list[Shard]:
        try:
            shard = self._perturb(positions, advance)
        except torch.OutOfMemoryError:
            if len(positions) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(positions) // 2
            self.reporter.say(f"out of memory: batches of {half} from here on")
            self.batch_size = half
            return [
                shard
                for part in torch.split(positions, half)
                for shard in self._attack(part, advance)
            ]
        _write_shard(self.folder / f"{int(positions[0]):08d}-{len(positions)}.safetensors", shard)
        return [shard]

    def _perturb(self, positions: Tensor, advance: Callable[[float], None]) -> Shard:
        attack, threat = self.attack, self.threat
        batch = self.test.batch(positions).to(self.device)
        started = time.monotonic()

        def on_pass(images: int) -> None:
            advance(images)
            self.stop.check()

        view = View(
            self.source,
            batch,
            threat,
            attack.access,
            max_queries=self.max_queries,
            on_pass=on_pass,
        )
        attack.check(view, threat)
        draws = Draws(self.seed, batch.ids, Role.ATTACK)
        try:
            perturbed = attack.perturb(view, batch, threat, draws)
        except QueryBudgetSpent:
            assert view.candidates is not None
            perturbed = Perturbed(view.candidates)
        changed = not _unchanged(self.source, self._before)
        if changed:
            _put_back(self.source, self._before)
        images = perturbed.images.detach()
        if images.shape != batch.images.shape:
            raise HarnessError(
                f"{self.title} returned images of shape {tuple(images.shape)} "
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
        predicted = predictions(
            self.source, images.float(), batch.ids, seed=self.seed, draws=draws, role=Role.TRACE
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
