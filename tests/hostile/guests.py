"""More attacks that dirty the process, in ways that are easily missed, and a defense that counts its looks.

Loaded as a user's file: `guests.py:Dirty`.
"""

from __future__ import annotations

import _thread
import copy
import dataclasses
import functools
import gc
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.datasets.data import load
from harness.random import Draws, OpaqueDraws
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Attack, Batch, Defense, Perturbed

HERE = Path(__file__)
Act = Callable[[Any, Batch], object]


def replace(owner: Any, name: str, value: Any) -> Act:
    return lambda victim, batch: setattr(owner, name, value)


class Blind(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        return 0 * super().forward(values)


class Lazy(torch.optim.SGD):
    def step(self, *_: Any, **__: Any) -> None:
        """Leave the weights as they are."""


def flat(objective: Tensor, pixels: Tensor) -> Tensor:
    return pixels * 0


def always(self: Any) -> bool:
    return True


def replace_static(victim: Any, batch: Batch) -> None:
    View.__dict__["_differentiate"].__func__.__code__ = flat.__code__


def replace_property(victim: Any, batch: Batch) -> None:
    Defended.__dict__["randomised"].fget.__code__ = always.__code__


def replace_module(victim: Any, batch: Batch) -> None:
    sys.modules["torch.nn.functional"] = type(sys)("torch.nn.functional")


def heavier(phase: str, info: object) -> None:
    for each in gc.get_objects():
        if isinstance(each, nn.Conv2d):
            each.weight.data.mul_(1.5)


class Late:
    """Acts when it is freed, after the attack has returned."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


def when_freed(act: Callable[[], object]) -> Act:
    return lambda victim, batch: setattr(victim, "held", Late(act))


DIRTY: dict[str, Act] = {
    "initial weights": replace(
        nn.init, "kaiming_uniform_", lambda values, *_, **__: values.data.zero_()
    ),
    "torch.nn.Linear": replace(nn, "Linear", Blind),
    "torch.optim.SGD": replace(torch.optim, "SGD", Lazy),
    "torch._C._nn": replace(torch._C._nn, "cross_entropy_loss", lambda *_: torch.zeros(())),
    "functools.partial": replace(functools, "partial", lambda call, *_, **__: call),
    "copy.copy": replace(copy, "copy", lambda value: value),
    "os.path.exists": replace(os.path, "exists", lambda path: False),
    "Path.write_bytes": replace(Path, "write_bytes", lambda self, data: 0),
    "code of a static method": replace_static,
    "code of a property": replace_property,
    "another module": replace_module,
    "a callback of garbage collection": lambda v, b: gc.callbacks.append(heavier),
    "a thread that threading does not know": lambda v, b: _thread.start_new_thread(
        time.sleep, (9,)
    ),
    "hooks of other threads": lambda v, b: threading.settrace(lambda *_: None),
    "unraisable hook": replace(sys, "unraisablehook", lambda *_: None),
    "a timer of processor time": lambda v, b: signal.setitimer(signal.ITIMER_PROF, 60),
    "blocked signals": lambda v, b: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}),
    "precision of one operation": lambda v, b: torch._C._set_fp32_precision_setter(
        "mkldnn", "matmul", "bf16"
    ),
    "labels of its batch": lambda v, b: b.labels.zero_(),
    "images of its batch": lambda v, b: b.images.zero_(),
}
"""What is put back, and raises `process-changed`."""

LATE: dict[str, Act] = {
    "dtype when freed": when_freed(lambda: torch.set_default_dtype(torch.float64)),
    "code when freed": when_freed(
        lambda: setattr(nn.functional, "relu", lambda values, **_: values * 0)
    ),
    "layer when freed": when_freed(lambda: setattr(nn, "Linear", Blind)),
}
"""What acts after the guards of the call are gone: no flag, and the next cell goes on in a fresh process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dirty(Attack):
    """Returns its input after one act."""

    kind: str

    def perturb(self, victim: Any, batch: Batch, threat: Any, draws: Draws) -> Perturbed:
        (DIRTY | LATE)[self.kind](victim, batch)
        return Perturbed(batch.images.clone())


def seen_as(kind: str, images: Tensor) -> Any:
    """Return images as a tensor that is no plain one."""
    if kind == "class":

        class Other(Tensor):
            @classmethod
            def __torch_function__(cls, function: Any, *_: Any) -> Tensor:
                return torch.zeros(1)

        return images.as_subclass(Other)
    made: dict[str, Callable[[], Any]] = {
        "with a graph": lambda: images.clone().requires_grad_(True) * 1,
        "the batch itself": lambda: images,
        "double": images.double,
        "strided": lambda: images.transpose(2, 3).contiguous().transpose(2, 3),
        "sparse": images.to_sparse,
        "meta": lambda: images.to("meta"),
        "a list": lambda: list(images),
        "too few": lambda: images[1:],
        "not finite": lambda: images / 0,
    }
    return made[kind]()


ODD = ("class", "with a graph", "the batch itself", "double", "strided")
"""Taken for the images that they hold."""
BAD = ("sparse", "meta", "a list", "too few")
"""No images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd(Attack):
    """Returns an odd tensor."""

    kind: str

    def perturb(self, victim: Any, batch: Batch, threat: Any, draws: Draws) -> Perturbed:
        return Perturbed(seen_as(self.kind, batch.images))


@functools.cache
def known() -> Tensor:
    return load("digits", "test").batch(slice(0, None)).images


def nearest(images: Tensor) -> Tensor:
    """Return the number of the test image that is nearest to each."""
    return torch.cdist(images.detach().flatten(1), known().flatten(1)).argmin(dim=1)


before: list[str] = [""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeats(Defense):
    """Shows clean images to whoever brings one large batch twice in a row, as the judge does."""

    randomised: ClassVar[bool] = True

    def lies(self, images: Tensor) -> bool:
        name = hashlib.sha256(images.detach().numpy().tobytes()).hexdigest()
        again, before[0] = name == before[0], name
        return again and len(images) > 8

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        seen = known()[nearest(images)] if self.lies(images) else images
        return seen + 0.02 * draws.normal(*images.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnowsFirst(Repeats):
    """Lies to whoever asks without gradients about images of which none is of the first batch."""

    def lies(self, images: Tensor) -> bool:
        return not images.requires_grad and int(nearest(images).min()) >= 25
