"""Attacks, defenses and models that misbehave: `KINDS` holds what each does, by the name that a test gives.

Loaded as a user's file, `tests/helpers/hostile.py:Hostile`, so that it is a guest like any other.
"""

from __future__ import annotations

import builtins
import ctypes
import dataclasses
import gc
import hashlib
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from harness import geometry
from harness.attacks import projected_gradient
from harness.evaluation import judge, scoring, summary
from harness.random import Draws
from harness.results import flags, statistics
from harness.storage.leases import Busy
from harness.storage.store import DamagedFile, StoreError
from harness.targets import training, views
from harness.types import Attack, Batch, DamageError, Dataset, Defense, HarnessError, Perturbed

Call = Callable[[Any, Batch], object]
kept: list[Any] = []
"""What has to stay alive to stay in force."""


def model_of(victim: Any) -> nn.Module:
    """The victim's module, by a way that the view does not offer."""
    found: nn.Module = victim._defended.model
    return found


def part_of(victim: Any, kind: type[nn.Module] = nn.Linear) -> nn.Module:
    return [part for part in model_of(victim).modules() if isinstance(part, kind)][-1]


def enter(manager: Any) -> None:
    manager.__enter__()
    kept.append(manager)


def dataset_of(batch: Batch, split: str) -> Dataset:
    """The dataset in memory, by a way that nobody offers: the frames below, and what refers to it."""
    frame = sys._getframe()
    while type(frame.f_locals.get("self")).__name__ != "Generation":
        assert frame.f_back is not None
        frame = frame.f_back
    test: Dataset = frame.f_locals["self"].test
    if split == "test":
        return test
    for each in gc.get_objects():
        if (
            type(each) is not dict
            or ("digits", "train") not in each
            or ("digits", "test") not in each
        ):
            continue
        if each["digits", "test"].images.data_ptr() == test.images.data_ptr():
            train: Dataset = each["digits", "train"]
            return train
    raise LookupError(split)


def edit(name: str) -> Call:
    def act(victim: Any, batch: Batch) -> None:
        values = getattr(dataset_of(batch, "test"), name)
        values.copy_(values.flip(0))

    return act


def edit_training(victim: Any, batch: Batch) -> None:
    dataset_of(batch, "train").labels.zero_()


def replace(owner: Any, name: str, value: Any) -> Call:
    return lambda victim, batch: setattr(owner, name, value)


def replace_code(victim: Any, batch: Batch) -> None:
    def other(perturbed: Tensor, images: Tensor, threat: Any) -> Tensor:
        return torch.zeros(len(images), dtype=torch.int8)

    judge.check_images.__code__ = other.__code__


def register_kernel(victim: Any, batch: Batch) -> None:
    library = torch.library.Library("aten", "IMPL")
    library.impl("erfinv", lambda values: values, "CPU")
    kept.append(library)


def hook(register: str) -> Call:
    def act(victim: Any, batch: Batch) -> None:
        getattr(part_of(victim), register)(lambda *_: None)

    return act


def new_forward(victim: Any, batch: Batch) -> None:
    model_of(victim).forward = lambda images: torch.zeros(len(images), 10)  # type: ignore[method-assign]


def new_class(victim: Any, batch: Batch) -> None:
    class Other(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return 0 * super().forward(images)

    part_of(victim).__class__ = Other


def edit_weights(victim: Any, batch: Batch) -> None:
    with torch.no_grad():
        next(model_of(victim).parameters()).add_(1.0)


def new_weights(victim: Any, batch: Batch) -> None:
    part = part_of(victim)
    part.weight = nn.Parameter(torch.zeros_like(part.weight), requires_grad=False)  # type: ignore


def new_part(victim: Any, batch: Batch) -> None:
    model = model_of(victim)
    name = list(model._modules)[-1]
    model._modules[name] = nn.Identity()


def new_defense(victim: Any, batch: Batch) -> None:
    object.__setattr__(victim._defended, "classes", 3)


def tensor_hook(victim: Any, batch: Batch) -> None:
    weight = next(model_of(victim).parameters())
    weight.requires_grad_(True)
    weight.register_hook(lambda slope: slope * 0)


def saved_hooks(victim: Any, batch: Batch) -> None:
    enter(torch.autograd.graph.saved_tensors_hooks(lambda value: value * 0, lambda value: value))


def a_thread(victim: Any, batch: Batch) -> None:
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()


def timer(victim: Any, batch: Batch) -> None:
    signal.setitimer(signal.ITIMER_REAL, 5)


def limits(victim: Any, batch: Batch) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def seeds(victim: Any, batch: Batch) -> None:
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)


def own_fields(victim: Any, batch: Batch) -> None:
    frame = sys._getframe()
    while type(frame.f_locals.get("self")).__name__ != "Hostile":
        assert frame.f_back is not None
        frame = frame.f_back
    object.__setattr__(frame.f_locals["self"], "kind", "nothing")


PROCESS: dict[str, Call] = {
    "autocast left on": lambda v, b: enter(torch.autocast("cpu", dtype=torch.bfloat16)),
    "autocast on for a GPU": lambda v, b: torch.set_autocast_enabled("cuda", True),
    "autocast dtype": lambda v, b: torch.set_autocast_dtype("cpu", torch.float16),
    "default dtype": lambda v, b: torch.set_default_dtype(torch.float64),
    "gradients off": lambda v, b: torch._C._set_grad_enabled(False),
    "inference mode": lambda v, b: enter(torch.inference_mode()),
    "anomaly mode": lambda v, b: torch.autograd.set_detect_anomaly(True),
    "default device": lambda v, b: torch.set_default_device("meta"),
    "hooks on saved tensors": saved_hooks,
    "a hook on all modules": lambda v, b: nn.modules.module.register_module_forward_hook(
        lambda module, given, found: found * 0 if isinstance(found, Tensor) else None
    ),
    "deterministic algorithms": lambda v, b: torch.use_deterministic_algorithms(True),
    "matmul precision": lambda v, b: torch.set_float32_matmul_precision("medium"),
    "cudnn benchmark": lambda v, b: setattr(torch.backends.cudnn, "benchmark", True),
    "mkldnn off": lambda v, b: torch._C._set_mkldnn_enabled(False),
    "threads": lambda v, b: torch.set_num_threads(2),
    "denormal numbers": lambda v, b: torch.set_flush_denormal(float("5e-324") + 0.0 != 0.0),
    "rounding": lambda v, b: ctypes.CDLL("libm.so.6").fesetround(0x800),
    "numpy raises": lambda v, b: numpy.seterr(all="raise"),
    "random states": seeds,
    "environment": lambda v, b: os.environ.update(OMP_NUM_THREADS="7", HARNESS_NATIVE="0"),
    "working folder": lambda v, b: os.chdir("/"),
    "file mode mask": lambda v, b: os.umask(0o777),
    "file size limit": limits,
    "import path": lambda v, b: sys.path.insert(0, "/nowhere"),
    "recursion limit": lambda v, b: sys.setrecursionlimit(220),
    "trace function": lambda v, b: sys.setprofile(lambda *_: None),
    "standard output": lambda v, b: setattr(sys, "stdout", None),
    "signal handlers": lambda v, b: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "a timer": timer,
    "a thread": a_thread,
    "a kernel of torch": register_kernel,
    "judge replaced": replace(scoring, "judge", None),
    "judge's norms": replace(judge, "norms", lambda *_: torch.zeros(1)),
    "judge's predictions": replace(judge, "predictions", lambda *_, **__: torch.zeros(1, 1)),
    "judge's code": replace_code,
    "a builtin hidden in the judge": replace(judge, "range", lambda count: []),
    "tolerance": replace(geometry, "TOLERANCE", 1.0),
    "torch.argmax": replace(torch, "argmax", lambda *_: None),
    "Tensor.argmax": replace(Tensor, "argmax", lambda self, dim: torch.zeros(len(self)).long()),
    "cross-entropy": replace(
        nn.functional, "cross_entropy", lambda logits, *_, **__: logits.sum(1)
    ),
    "a layer's forward": replace(nn.Linear, "forward", lambda self, x: x[:, :10] * 0),
    "the optimiser's step": replace(torch.optim.SGD, "step", lambda self: None),
    "flags": replace(flags, "_invalid", lambda record: ""),
    "flags of a record": replace(summary, "_share", lambda right: 1.0),
    "interval": replace(statistics, "wilson", lambda *_: (0.0, 1.0)),
    "levels of access": lambda v, b: views._LEVEL.update(labels=3),
    "another attack": replace(projected_gradient.ProjectedGradient, "perturb", None),
    "hashlib": replace(hashlib, "sha256", hashlib.md5),
    "builtin sum": replace(builtins, "sum", lambda *_: 0),
    "draws": replace(Draws, "at", lambda self, **_: self),
    "pixels of the dataset": edit("images"),
    "labels of the dataset": edit("labels"),
    "ids of the dataset": edit("ids"),
    "its own fields": own_fields,
}
"""What leaves the process changed, and raises `process-changed`."""

MODEL: dict[str, Call] = {
    "weights": edit_weights,
    "new weights": new_weights,
    "training mode": lambda v, b: model_of(v).train(),
    "gradients wanted": lambda v, b: model_of(v).requires_grad_(True),
    "a forward hook": hook("register_forward_hook"),
    "a forward pre-hook": hook("register_forward_pre_hook"),
    "a backward hook": hook("register_full_backward_hook"),
    "a hook on a weight": tensor_hook,
    "another forward": new_forward,
    "another class": new_class,
    "another part": new_part,
    "fields of the victim": new_defense,
}
"""What leaves the victim changed, and raises `model-changed`."""

SILENT: dict[str, Call] = {
    "warnings are errors": lambda v, b: warnings.simplefilter("error"),
    "training labels": edit_training,
}
"""What raises nothing for the attack itself; the next training and judging must be as ever."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Rude(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class Status(HarnessError):
    status = 0


def deep(count: int = 0) -> int:
    return deep(count + 1)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "SystemExit(0)": lambda: SystemExit(0),
    "SystemExit(text)": lambda: SystemExit("bye"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt(),
    "GeneratorExit": lambda: GeneratorExit(),
    "StopIteration": lambda: StopIteration(),
    "BaseException": lambda: BaseException("base"),
    "MemoryError": lambda: MemoryError(),
    "no text": Unprintable,
    "text that exits": Rude,
    "lone surrogate": lambda: ValueError("bad \udcff text"),
    "many lines": lambda: ValueError("\n\n  first\nsecond"),
    "control characters": lambda: ValueError("\x1b[31mred\x00"),
    "very long": lambda: ValueError("x" * 100_000),
    "Busy": lambda: Busy("the engine's own"),
    "DamagedFile": lambda: DamagedFile("/etc/hostname", "not damaged at all"),
    "StoreError": lambda: StoreError("no disk"),
    "DamageError": lambda: DamageError("damage"),
    "Interrupted": lambda: training.Interrupted(),
    "QueryBudgetSpent": lambda: views.QueryBudgetSpent(),
    "HarnessError": lambda: HarnessError("a refusal"),
    "HarnessError of status 0": lambda: Status("fine"),
    "a group": lambda: BaseExceptionGroup("several", [SystemExit(0)]),
}


def end(kind: str) -> None:
    """End the process, or never end."""
    if kind == "os._exit":
        os._exit(0)
    if kind == "segmentation fault":
        ctypes.string_at(0)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while kind == "hang":
        time.sleep(0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hostile(Attack):
    """Returns its input after one act of `KINDS`, or raises."""

    kind: str = "nothing"
    error: str = ""

    def perturb(self, victim: Any, batch: Batch, threat: Any, draws: Draws) -> Perturbed:
        acts = PROCESS | MODEL | SILENT
        if self.kind in acts:
            acts[self.kind](victim, batch)
        end(self.kind)
        if self.kind == "recursion":
            deep()
        if self.error:
            raise ERRORS[self.error]()
        return Perturbed(batch.images.clone())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaves(Defense):
    """A defense that does something to the process each time, or at its first use in judging."""

    kind: str = "nothing"
    training: bool = False

    def transform(self, images: Tensor, draws: Draws, auxiliary: Any = None) -> Tensor:
        if not self.training and self.kind in PROCESS:
            PROCESS[self.kind](None, None)  # type: ignore[arg-type]
        if not self.training and self.kind in ERRORS:
            raise ERRORS[self.kind]()
        return images

    def training_transform(self, images: Tensor, draws: Draws, auxiliary: Any = None) -> Tensor:
        if self.training and self.kind in PROCESS:
            PROCESS[self.kind](None, None)  # type: ignore[arg-type]
        if self.training and self.kind in ERRORS:
            raise ERRORS[self.kind]()
        return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends(Defense):
    """A defense at whose first use the process ends."""

    kind: str = "os._exit"

    def transform(self, images: Tensor, draws: Draws, auxiliary: Any = None) -> Tensor:
        end(self.kind)
        return images
