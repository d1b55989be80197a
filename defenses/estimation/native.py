"""Build `lanes/` with the machine's C++ compiler, and call it.

It is built once for a machine and a version, in a few seconds, into the user's cache. Without a compiler,
or with `HARNESS_NATIVE=0`, the torch code does the same several times slower.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from . import build_cache
from .inputs import LANES

CODE_FILES = tuple(sorted(Path(__file__).with_name("lanes").glob("*.*")))
"""Code in another language that results depend on: part of the digest of what uses this module."""
_MAIN = Path(__file__).with_name("lanes") / "lanes.cpp"
_FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-shared", "-fPIC"),
)
_LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
_LARGEST = 96  # short side up to which lanes are at least twice as fast as torch


def serves(matrix: Tensor) -> bool:
    """Return True where the compiled code can take (N, H, W), H <= W; it has no gradients."""
    return (
        matrix.device.type == "cpu"
        and matrix.dtype in (torch.float32, torch.float64)
        and 0 < matrix.shape[-2] <= _LARGEST
        and len(matrix) > 0
        and not (torch.is_grad_enabled() and matrix.requires_grad)
        and library() is not None
    )


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what `torch.linalg.eigh` does for (N, H, H), or None.

    None: the compiled code cannot take it, or an eigenvalue iteration fails.
    """
    if not serves(symmetric):
        return None
    matrices = symmetric.contiguous()
    count, side, _ = matrices.shape
    values, vectors = matrices.new_empty(count, side), torch.empty_like(matrices)

    def part(first: int, some: int) -> int:
        return _function("eigh", matrices)(
            ctypes.c_int64(some),
            ctypes.c_int(side),
            *(_at(whole, first) for whole in (matrices, values, vectors)),
        )

    return None if _in_threads(part, count) else (values, vectors)


def descend(
    observed: Tensor,
    mask: Tensor,
    start: Tensor | None,
    sketch: Callable[[Tensor], Tensor],
    *,
    gap: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Return what `conjugate.descend` does from `sketch`: value, iterations, gap, converged; or None.

    None: the compiled code cannot take it, or an eigenvalue iteration fails.
    """
    if not serves(observed):
        return None
    given = [observed.contiguous(), mask.contiguous()]
    guess = None if start is None else start.contiguous()
    first_right = sketch(observed).contiguous()
    count, height, width = observed.shape
    value = torch.empty_like(given[0])
    iterations = torch.empty(count, dtype=torch.int64)
    gaps = value.new_empty(count)
    converged = torch.empty(count, dtype=torch.bool)

    def part(first: int, some: int) -> int:
        return _function("descend", value)(
            ctypes.c_int64(some),
            ctypes.c_int(height),
            ctypes.c_int(width),
            *(_at(whole, first) for whole in given),
            None if guess is None else _at(guess, first),
            _at(first_right, 0),
            ctypes.c_int(len(first_right)),
            ctypes.c_double(gap),
            ctypes.c_int64(max_iterations),
            *(_at(whole, first) for whole in (value, iterations, gaps, converged)),
        )

    return None if _in_threads(part, count) else (value, iterations, gaps, converged)


def _at(tensor: Tensor, first: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor[first:].data_ptr())


def _function(name: str, like: Tensor) -> Callable[..., int]:
    function = getattr(library(), f"{name}_{str(like.dtype).removeprefix('torch.')}")
    function.restype = ctypes.c_int64
    called: Callable[..., int] = function
    return called


def _in_threads(part: Callable[[int, int], int], count: int) -> int:
    """Return the sum of `part(first, some)` over shares of `count`, each in a thread of its own."""
    share = -(-count // torch.get_num_threads())
    share = -(-share // LANES) * LANES
    starts = range(0, count, share)
    if len(starts) < 2:
        return part(0, count)
    with ThreadPoolExecutor(len(starts)) as pool:
        return sum(pool.map(lambda first: part(first, min(share, count - first)), starts))


def computed_by(device: str) -> str:
    """Return the path that estimation takes on a device: `torch`, or `compiled` with the digest of
    sources, compiler and flags."""
    if torch.device(device).type != "cpu" or library() is None:
        return "torch"
    compiler = _compiler()
    assert compiler is not None  # the library was built with it
    return f"compiled {_digest(_command(compiler))}"


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library, built where the cache has none that can be trusted; None, with a
    warning, where that does not work."""
    if os.environ.get("HARNESS_NATIVE") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        _slow(
            "no C++ compiler was found (CXX, c++, g++, clang++); `pip install ziglang` brings one"
        )
        return None
    command = _command(compiler)
    try:
        folder = build_cache.folder()
        stem = f"lanes-{_digest(command)}"
        built = build_cache.find(folder, stem) or build_cache.keep(
            folder, stem, lambda made: _run([*command, str(_MAIN), "-o", str(made)])
        )
        return ctypes.CDLL(str(built))
    except (OSError, RuntimeError) as error:
        _slow(str(error))
        return None


def _command(compiler: list[str]) -> list[str]:
    level = _LEVELS.get(torch.backends.cpu.get_cpu_capability())
    if level and "ziglang" in compiler:
        level = level.replace("-", "_")
    return [*compiler, *_FLAGS, *([f"-march={level}"] if level else [])]


def _digest(command: list[str]) -> str:
    """Return a digest of all that decides what the compiler makes: 16 hex digits."""
    texts = [path.read_text(encoding="utf-8") for path in CODE_FILES]
    named = "\0".join([*texts, *command, platform.platform()])
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _compiler() -> list[str] | None:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return [found]
    if importlib.util.find_spec("ziglang"):  # a package that is clang
        return [sys.executable, "-m", "ziglang", "c++"]
    return None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        line = next(iter(done.stderr.strip().splitlines()), "no message")
        raise RuntimeError(f"{command[0]} failed on {_MAIN.name}: {line}")


def _slow(why: str) -> None:
    warnings.warn(
        f"matrix estimation takes its slower path, through torch: {why}. HARNESS_NATIVE=0 asks for "
        "that path and is silent.",
        RuntimeWarning,
        stacklevel=2,
    )
