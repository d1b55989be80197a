"""Read, compare and put back the state that torch, numpy and random generators hold for a whole process."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

RANDOM = "random state"
"""The facet that a guest may move while it is built or trained: dropout draws from it."""
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
    """The treatment of denormal numbers and rounding: flags of the processor, which few functions tell."""
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


def _floating() -> dict[str, str]:
    return dict(_numpy().geterr())


def _set_floating(value: dict[str, str]) -> None:
    _numpy().seterr(**value)


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
}
"""In the order in which they are put back."""
