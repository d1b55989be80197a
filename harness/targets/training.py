"""Train a module; training can be resumed bit for bit.

All randomness is a function of (seed, epoch or step, sample id), so that a checkpoint needs only weights, the
optimiser's state and the position.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.cells.cells import TrainingPlan
from harness.random import Draws, Role, combine, permutation
from harness.storage import log, store
from harness.storage.progress import Reporter
from harness.targets import memory
from harness.types import Batch, Dataset, HarnessError


class Interrupted(Exception):
    """Raised after SIGINT or SIGTERM, once the work in progress is saved."""


@dataclasses.dataclass
class Stop:
    """A request to stop, which a signal makes and the run looks at between steps."""

    asked: bool = False

    def check(self) -> None:
        if self.asked:
            raise Interrupted

    def meant(self, error: BaseException) -> bool:
        """Return whether an error that passed through a guest's frames stops the run because of a signal."""
        return self.asked and type(error) in (Interrupted, KeyboardInterrupt)


Loss = Callable[[nn.Module, Batch, Draws], Tensor]
"""A function (module, batch, draws of role TRAIN) -> (N,) losses."""

SAVE_EVERY = 5.0
"""The least seconds between two saves; more where a save takes long, so that saving costs about 3 %."""
_SAVE_COST = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training: the module, the images, the plan, and the file that keeps its state."""

    title: str
    module: nn.Module
    dataset: Dataset
    plan: TrainingPlan
    loss: Loss
    seed: int
    device: torch.device
    state_path: Path
    identity: str
    """The training key: a state file of another training is refused."""
    mend: Callable[[store.DamagedFile], object]
    """Sets a damaged state file aside; training then starts again."""


@dataclasses.dataclass
class _Progress:
    """The position of a training."""

    position: int = 0
    running: float = 0.0
    """The sum of the losses in the current epoch."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """The mean loss of each finished epoch."""
    seconds: float = 0.0
    """The seconds of the earlier runs that worked on it."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a training: the mean loss of each epoch, and the seconds that it took."""

    losses: list[float]
    seconds: float


def fit(job: Job, *, reporter: Reporter, stop: Stop) -> Report:
    """Train `job.module` in place, from the state in `state_path` where there is one.

    The random generators of the process are restored afterwards. The report's seconds include those of
    earlier runs that worked on the training.

    Raises:
        Interrupted: a signal came; the state is saved.
        HarnessError: the loss is not finite (with step, samples and a hint), or memory ran out.
        StoreError: the state cannot be saved.
    """
    with torch.random.fork_rng(devices=_cuda(job.device)):
        return _fit(job, reporter, stop)


def _cuda(device: torch.device) -> list[int]:
    """Return the index of the GPU whose generator training seeds, in a list; an empty list for a CPU."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that a module on this device may draw from, and no other device's."""
    torch.default_generator.manual_seed(seed)
    for index in _cuda(device):
        torch.cuda.default_generators[index].manual_seed(seed)


def _fit(job: Job, reporter: Reporter, stop: Stop) -> Report:
    plan, module, dataset = job.plan, job.module, job.dataset
    train = dataset.first(plan.limit)
    steps = -(-len(train) // plan.batch_size)
    optimiser = _optimiser(plan, module)
    at = _restored(job, optimiser)
    earlier = at.seconds
    log.event("training started", f"{job.title}, step {at.position}")
    started = saved = time.monotonic()
    pause = SAVE_EVERY
    order: Tensor | None = None  # of the epoch
    with reporter.task(job.title, plan.epochs * steps) as task:
        task.advance(at.position)
        module.train()
        while at.position < plan.epochs * steps:
            epoch, step = divmod(at.position, steps)
            if order is None or step == 0:
                order = permutation(job.seed, len(train), role=Role.SHUFFLE, step=epoch)
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(plan, epoch)
            chosen = order[step * plan.batch_size : (step + 1) * plan.batch_size]
            batch = train.batch(chosen).to(job.device)
            _seed(combine(job.seed, Role.TRAIN, at.position), job.device)  # for dropout alone
            draws = Draws(job.seed, batch.ids, Role.TRAIN, at.position)
            try:
                losses = job.loss(module, batch, draws)
                optimiser.zero_grad(set_to_none=True)
                losses.mean().backward()  # type: ignore[no-untyped-call]
            except (RuntimeError, MemoryError) as error:
                if not memory.exhausted(error):
                    raise
                raise HarnessError(
                    f"{job.title}: memory ran out in training. Its batch size is part of the result, "
                    f"so it is not changed silently: -T batch_size={max(1, plan.batch_size // 2)}"
                ) from error
            value = float(losses.detach().mean())
            if not _finite(value):
                raise HarnessError(
                    f"{job.title}: the loss is {value} at step {at.position} (epoch {epoch}, samples "
                    f"{batch.ids[:4].tolist()}...). Lower the learning rate (now "
                    f"{learning_rate(plan, epoch):g}): -T learning_rate={plan.learning_rate / 10:g}"
                )
            optimiser.step()
            at.running += value
            at.position += 1
            task.advance(1, f"epoch {epoch + 1}/{plan.epochs}, loss {at.running / (step + 1):.3f}")
            if step == steps - 1:
                at.losses.append(at.running / steps)
                at.running = 0.0
            now = time.monotonic()
            if stop.asked or now - saved > pause:
                at.seconds = earlier + now - started
                _save(job, optimiser, at)
                saved = time.monotonic()
                pause = max(SAVE_EVERY, _SAVE_COST * (saved - now))
                stop.check()
    module.eval()
    seconds = earlier + time.monotonic() - started
    log.event("training done", job.title, seconds=seconds)
    return Report(at.losses, seconds)


def learning_rate(plan: TrainingPlan, epoch: int) -> float:
    """Return the learning rate of an epoch (from 0): divided by 10 at each milestone."""
    passed = sum(epoch >= round(share * plan.epochs) for share in plan.milestones)
    return plan.learning_rate * 0.1**passed


def inner_epsilon(plan: TrainingPlan, epoch: float) -> float:
    """Return the inner attack's radius, which grows linearly over the first `warmup` share of the epochs.

    Args:
        epoch: the position in training, from 0, with a fraction within an epoch.
    """
    if plan.warmup <= 0:
        return plan.epsilon
    return plan.epsilon * min(1.0, epoch / (plan.warmup * plan.epochs))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the (N,) cross-entropy of (N, K) logits, in float32."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def augment(images: Tensor, draws: Draws, kind: str) -> Tensor:
    """Return randomly augmented images, (N, C, H, W) -> the same shape.

    Images are cropped at random after 4 pixels of zero padding and, for `crop-flip`, flipped horizontally
    with probability 1/2. Each sample draws for itself, with the role AUGMENT.
    """
    if kind == "none":
        return images
    place = draws.at(role=Role.AUGMENT)
    count, channels, height, width = images.shape
    padded = functional.pad(images, (4, 4, 4, 4))
    offset = place.integers(9, 2, lane="crop")
    rows = offset[:, :1] + torch.arange(height, device=images.device)
    columns = offset[:, 1:] + torch.arange(width, device=images.device)
    if kind == "crop-flip":
        flip = place.bernoulli(0.5, 1, lane="flip")
        columns = torch.where(flip, columns.flip(1), columns)
    sample = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _optimiser(plan: TrainingPlan, module: nn.Module) -> torch.optim.Optimizer:
    if plan.optimiser == "adam":
        return torch.optim.Adam(module.parameters(), lr=plan.learning_rate)
    return torch.optim.SGD(
        module.parameters(),
        lr=plan.learning_rate,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
    )


def _state(optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the optimiser's tensors, named by parameter and kind."""
    for index, parameter in enumerate(optimiser.param_groups[0]["params"]):
        for name, value in optimiser.state[parameter].items():
            if isinstance(value, Tensor):
                yield f"optimiser.{index}.{name}", value


def _save(job: Job, optimiser: torch.optim.Optimizer, at: _Progress) -> None:
    tensors = {f"model.{name}": value for name, value in job.module.state_dict().items()}
    tensors |= dict(_state(optimiser))
    metadata = {
        "training": job.identity,
        "position": str(at.position),
        "running": float(at.running).hex(),
        "losses": " ".join(float(loss).hex() for loss in at.losses),
        "seconds": float(at.seconds).hex(),
    }
    store.write_tensors(job.state_path, tensors, metadata)


def _restored(job: Job, optimiser: torch.optim.Optimizer) -> _Progress:
    """Load the state file into module and optimiser, and return the position; without one, the start."""
    before = {name: value.clone() for name, value in job.module.state_dict().items()}
    try:
        return _restore(job, optimiser)
    except FileNotFoundError:
        return _Progress()
    except store.DamagedFile as error:
        job.mend(error)
        job.module.load_state_dict(before)
        optimiser.state.clear()
        return _Progress()


def _restore(job: Job, optimiser: torch.optim.Optimizer) -> _Progress:
    tensors, metadata = store.read_tensors(job.state_path)
    if metadata.get("training") != job.identity:
        raise store.damaged(job.state_path, "it is the state of another training")
    parameters = optimiser.param_groups[0]["params"]
    try:
        weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
        job.module.load_state_dict(weights)
        for label, value in tensors.items():
            if label.startswith("optimiser."):
                _, index, name = label.split(".")
                parameter = parameters[int(index)]
                on = "cpu" if name == "step" else parameter.device  # Adam counts on the host
                optimiser.state[parameter][name] = value.to(on)
        return _Progress(
            position=int(metadata["position"]),
            running=float.fromhex(metadata["running"]),
            losses=[float.fromhex(loss) for loss in metadata["losses"].split()],
            seconds=float.fromhex(metadata["seconds"]),
        )
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        raise store.damaged(job.state_path, f"it does not fit the model: {error}") from error
