"""What one process has that a guest's code could leave changed, beside code: read, compared, put back.

Each facet is read in microseconds. A facet that still differs after it was put back is named as such: a
process in that state can be trusted with nothing more.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import dataclasses
import functools
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

PATH = "import path"
"""The facet that a user's file may change while it is loaded."""
RANDOM = "random state"
"""The facet that a guest may move while it is built or trained: dropout draws from it."""
THREADS = "running threads"
_PATIENCE = 0.2
"""Seconds that threads may take to end."""
_LIMITS = ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_CPU")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)


@dataclasses.dataclass(frozen=True)
class Facet:
    """One thing that is read as a value that `==` compares, and put back from that value."""

    read: Callable[[], Any]
    restore: Callable[[Any], object]


@functools.cache
def warm() -> None:
    """Let torch do now what it does at the first step of an optimiser: imports that register kernels and set
    the environment. Else the first guest that optimises anything would be taken for their author."""
    torch = _torch()
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    for optimiser in (torch.optim.SGD, torch.optim.Adam):
        optimiser([parameter], lr=0.0).step()


def read() -> dict[str, Any]:
    """Return the value of each facet, by name."""
    return {name: facet.read() for name, facet in FACETS.items()}


def restore(before: Mapping[str, Any], keep: Collection[str] = ()) -> list[str]:
    """Put back what differs from `before`, but for the facets in `keep`; return the names of it.

    A name ends with "(it cannot be put back)" where the facet differs even then.
    """
    found = []
    for name, facet in FACETS.items():
        if name in keep or facet.read() == before[name]:
            continue
        with contextlib.suppress(Exception):
            facet.restore(before[name])
        if name in _SILENT:
            continue
        whole = facet.read() == before[name]
        if whole and name == THREADS:  # they were ending
            continue
        found.append(name if whole else f"{name} (it cannot be put back)")
    return found


# --- torch ----------------------------------------------------------------------------------------


def _torch() -> Any:
    import torch

    return torch


def _numpy() -> Any:
    import numpy

    return numpy


def _autocast() -> tuple[Any, ...]:
    torch = _torch()
    nesting = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return (
        nesting,
        torch.is_autocast_cache_enabled(),
        *((k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in ("cpu", "cuda")),
    )


def _set_autocast(value: tuple[Any, ...]) -> None:
    torch = _torch()
    nesting, cached, *kinds = value
    while (now := _autocast()[0]) != nesting:
        if now > nesting:
            torch.autocast_decrement_nesting()
        else:
            torch.autocast_increment_nesting()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(cached)
    for kind, enabled, dtype in kinds:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _gradients() -> tuple[bool, ...]:
    torch = _torch()
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch._C._is_fwd_grad_enabled(),
        torch._C._is_multithreading_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_anomaly_check_nan_enabled(),
    )


def _set_gradients(value: tuple[bool, ...]) -> None:
    torch = _torch()
    inference, gradients, forward, threads, anomaly, nan = value
    if torch.is_inference_mode_enabled() != inference:
        # The guard restores what it found when it dies: it has to live as long as the process.
        _kept.append(torch._C._InferenceMode(inference))
    torch._C._set_grad_enabled(gradients)
    torch._C._set_fwd_grad_enabled(forward)
    torch._C._set_multithreading_enabled(threads)
    torch.autograd.set_detect_anomaly(anomaly, nan)


_kept: list[Any] = []


def _default_dtype(value: Any) -> None:
    _torch().set_default_dtype(value)


def _modes() -> tuple[Any, ...]:
    """Modes that stand between every call and its kernel; the default device is one of them."""
    torch = _torch()
    return (
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        str(torch.get_default_device()),
    )


def _set_modes(value: tuple[Any, ...]) -> None:
    torch = _torch()
    functions, dispatched, device = value
    while torch._C._len_torch_function_stack() > functions:
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack() > dispatched:
        torch._C._pop_torch_dispatch_stack()
    if str(torch.get_default_device()) != device or functions == 0:
        torch.set_default_device(None if functions == 0 else device)


def _saved_hooks() -> tuple[Any, ...]:
    inner = _torch()._C._autograd
    return inner._top_saved_tensors_default_hooks(True), inner._saved_tensors_hooks_is_enabled()


def _set_saved_hooks(value: tuple[Any, ...]) -> None:
    inner = _torch()._C._autograd
    for _ in range(100):
        if inner._top_saved_tensors_default_hooks(True) == value[0]:
            break
        inner._pop_saved_tensors_default_hooks()
    if value[1]:
        inner._saved_tensors_hooks_enable()


def _global_hooks() -> list[dict[Any, Any]]:
    module = sys.modules["torch.nn.modules.module"]
    return [dict(getattr(module, name)) for name in _GLOBAL_HOOKS]


def _set_global_hooks(value: list[dict[Any, Any]]) -> None:
    module = sys.modules["torch.nn.modules.module"]
    for name, hooks in zip(_GLOBAL_HOOKS, value, strict=True):
        live = getattr(module, name)
        live.clear()
        live.update(hooks)


def _matmul_precision() -> str:
    try:
        return str(_torch().get_float32_matmul_precision())
    except RuntimeError:  # the backends were set one by one, and disagree
        return "mixed"


def _backends() -> dict[str, Any]:
    torch = _torch()
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": torch._C._get_cudnn_enabled(),
        "benchmark": torch._C._get_cudnn_benchmark(),
        "cudnn_deterministic": torch._C._get_cudnn_deterministic(),
        "precision": _matmul_precision(),
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "float32": {
            pair: torch._C._get_fp32_precision_getter(*pair)
            for pair in itertools.product(("mkldnn", "cuda"), ("all", "matmul", "conv", "rnn"))
        },
        "fast": torch.backends.mha.get_fastpath_enabled(),
    }


def _set_backends(value: dict[str, Any]) -> None:
    torch = _torch()
    torch.use_deterministic_algorithms(value["deterministic"], warn_only=value["warn_only"])
    torch.utils.deterministic.fill_uninitialized_memory = value["fill"]
    torch._C._set_cudnn_enabled(value["cudnn"])
    torch._C._set_cudnn_benchmark(value["benchmark"])
    torch._C._set_cudnn_deterministic(value["cudnn_deterministic"])
    with contextlib.suppress(RuntimeError):
        torch.set_float32_matmul_precision(value["precision"])
    for (backend, operation), precision in value["float32"].items():
        torch._C._set_fp32_precision_setter(backend, operation, precision)
    torch._C._set_mkldnn_enabled(value["mkldnn"])
    torch.backends.mha.set_fastpath_enabled(value["fast"])


def _operators() -> tuple[str, ...]:
    """Kernels that Python code registered over torch's own; those for shapes alone compute nothing."""
    own = (name for name in sys.modules["torch.library"]._impls if name.startswith("aten"))
    return tuple(sorted(name for name in own if not name.endswith("Meta")))


def _arithmetic() -> tuple[float, ...]:
    """What denormal numbers and rounding do: a processor's flags, which few functions tell."""
    tiny, one, half = float("5e-324"), float("1"), float(2**-53)
    return tiny + 0.0, one + half, -one - half


def _set_arithmetic(value: tuple[float, ...]) -> None:
    _torch().set_flush_denormal(value[0] == 0.0)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).fesetround(0)  # to nearest


# --- random states --------------------------------------------------------------------------------


def _random() -> tuple[Any, ...]:
    torch, numpy = _torch(), _numpy()
    name, words, *rest = numpy.random.get_state()
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()] if used else []
    own = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), (name, words.tobytes(), *rest), own, cuda


def _set_random(value: tuple[Any, ...]) -> None:
    torch, numpy = _torch(), _numpy()
    python, (name, words, *rest), own, cuda = value

    def tensor(state: bytes) -> Any:
        return torch.frombuffer(bytearray(state), dtype=torch.uint8)

    random.setstate(python)
    numpy.random.set_state((name, numpy.frombuffer(words, dtype="uint32"), *rest))
    torch.set_rng_state(tensor(own))
    if cuda:
        torch.cuda.set_rng_state_all([tensor(state) for state in cuda])


# --- the process ----------------------------------------------------------------------------------


def _environment(value: dict[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _umask() -> int:
    value = os.umask(0o077)
    os.umask(value)
    return value


def _limits() -> dict[str, tuple[int, int]]:
    try:
        import resource
    except ImportError:  # a system without them
        return {}
    return {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}


def _set_limits(value: dict[str, tuple[int, int]]) -> None:
    import resource

    for name, pair in value.items():
        resource.setrlimit(getattr(resource, name), pair)


def _lists() -> dict[str, list[Any]]:
    return {name: list(getattr(sys, name)) for name in ("path", "meta_path", "path_hooks")}


def _set_lists(value: dict[str, list[Any]]) -> None:
    for name, items in value.items():
        getattr(sys, name)[:] = items


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_handlers(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if signal.getsignal(number) != handler and handler is not None:
            signal.signal(number, handler)


def _timers() -> list[int]:
    kinds = (
        getattr(signal, name, None) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
    )
    return [kind for kind in kinds if kind is not None and signal.getitimer(kind)[0] > 0]


def _set_timers(value: list[int]) -> None:
    for kind in _timers():
        if kind not in value:
            signal.setitimer(kind, 0)


def _mask() -> set[int]:
    return (
        set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        if hasattr(signal, "pthread_sigmask")
        else set()
    )


def _set_mask(value: set[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, value)


_STREAMS = ("excepthook", "unraisablehook", "displayhook", "stdout", "stderr")


def _interpreter() -> dict[str, Any]:
    return {
        "trace": sys.gettrace(),
        "profile": sys.getprofile(),
        **{name: getattr(sys, name) for name in _STREAMS},
        "threads": (threading._trace_hook, threading._profile_hook, threading.excepthook),  # type: ignore[attr-defined]
        "gc": gc.isenabled(),
        "collections": list(gc.callbacks),
        "digits": sys.get_int_max_str_digits(),
    }


def _set_interpreter(value: dict[str, Any]) -> None:
    sys.settrace(value["trace"])
    sys.setprofile(value["profile"])
    for name in _STREAMS:
        setattr(sys, name, value[name])
    trace, profile, threading.excepthook = value["threads"]
    threading.settrace(trace)
    threading.setprofile(profile)
    gc.callbacks[:] = value["collections"]
    (gc.enable if value["gc"] else gc.disable)()
    sys.set_int_max_str_digits(value["digits"])


@dataclasses.dataclass(frozen=True, eq=False)
class _Threads:
    """Python threads that somebody started, but for progress bars', which only look; and how many run that
    `threading` does not know, among them for a moment each one that ends."""

    known: frozenset[int]
    unknown: int

    def __eq__(self, before: object) -> bool:
        same = isinstance(before, _Threads) and self.known == before.known
        return same and self.unknown <= before.unknown  # type: ignore[attr-defined]


def _threads() -> _Threads:
    every = threading.enumerate()
    watched = [each for each in every if not type(each).__module__.startswith("tqdm")]
    started = len(every) - 1  # the first was there before
    return _Threads(
        frozenset(each.ident or 0 for each in watched), max(0, _thread._count() - started)
    )


def _wait_for_threads(value: _Threads) -> None:
    """Give threads that are ending the time to end."""
    until = time.monotonic() + _PATIENCE
    while _threads() != value and time.monotonic() < until:
        time.sleep(0.001)


def _floating() -> dict[str, str]:
    return dict(_numpy().geterr())


def _set_floating(value: dict[str, str]) -> None:
    _numpy().seterr(**value)


def _filters() -> list[Any]:
    return list(warnings.filters)


def _set_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _cannot(value: Any) -> None:
    """There is no way back."""


FACETS: Mapping[str, Facet] = {
    "modes of torch or its default device": Facet(_modes, _set_modes),
    "autocast": Facet(_autocast, _set_autocast),
    "gradient, inference or anomaly mode": Facet(_gradients, _set_gradients),
    "default dtype": Facet(lambda: _torch().get_default_dtype(), _default_dtype),
    "hooks on saved tensors": Facet(_saved_hooks, _set_saved_hooks),
    "hooks on all modules": Facet(_global_hooks, _set_global_hooks),
    "backend or determinism flags": Facet(_backends, _set_backends),
    "kernels of torch": Facet(_operators, _cannot),
    "number of threads": Facet(
        lambda: _torch().get_num_threads(), lambda value: _torch().set_num_threads(value)
    ),
    "rounding or denormal numbers": Facet(_arithmetic, _set_arithmetic),
    "numpy's floating-point errors": Facet(_floating, _set_floating),
    RANDOM: Facet(_random, _set_random),
    "environment": Facet(lambda: dict(os.environ), _environment),
    "working folder": Facet(_folder, lambda value: os.chdir(value)),
    "file mode mask": Facet(_umask, lambda value: os.umask(value)),
    "resource limits": Facet(_limits, _set_limits),
    PATH: Facet(_lists, _set_lists),
    "recursion limit": Facet(sys.getrecursionlimit, lambda value: sys.setrecursionlimit(value)),
    "interpreter's hooks": Facet(_interpreter, _set_interpreter),
    "signal handlers": Facet(_handlers, _set_handlers),
    "blocked signals": Facet(_mask, _set_mask),
    "timers": Facet(_timers, _set_timers),
    THREADS: Facet(_threads, _wait_for_threads),
    "warning filters": Facet(_filters, _set_filters),
}
"""Everything that is compared, in the order in which it is put back."""
_SILENT = {"warning filters"}
"""Put back without a word: importing a library changes them too."""
