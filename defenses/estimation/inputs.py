"""Checks of inputs, and the one layout that the solvers work on: (N, H, W) with H <= W."""

from typing import NamedTuple

import torch
from torch import Tensor

_SHOWN = 16  # image indices named in an error message

# On the CPU a chunk should stay in a core's cache, yet be large enough that work outweighs calls.
_CPU_BYTES = 12 * 2**20
_DEVICE_BYTES = 2 * 2**30
_COPIES = 12  # matrices and factors that a solver holds for one image
_LEAST = 64
LANES = 16  # most images that share a vector (`lanes/`): a chunk fills them


class Problems(NamedTuple):
    """A flat batch of completion problems.

    observed: (N, H, W) with H <= W, zero where the mask is zero.
    mask: (N, H, W), 0 or 1, same dtype.
    """

    observed: Tensor
    mask: Tensor


def prepare(observed: Tensor, mask: Tensor) -> Problems:
    """Return (..., H, W) and its mask checked, masked, flattened, and transposed so that H <= W.

    Raises TypeError on a wrong kind of tensor and ValueError on wrong shapes or values.
    """
    _check_kind(observed, mask)
    height, width = observed.shape[-2:]
    flat = observed.reshape(-1, height, width)
    _check_finite(flat, observed.shape[:-2])
    keep = mask.expand(observed.shape).reshape(-1, height, width)
    if keep.dtype != torch.bool:
        _check_binary(keep, observed.shape[:-2])
    keep = keep.to(flat.dtype)
    if height > width:
        flat, keep = flat.mT, keep.mT
    return Problems((flat * keep).contiguous(), keep.contiguous())


def restore(value: Tensor, shape: torch.Size) -> Tensor:
    """Undo `prepare` on a solver's (N, H, W) result."""
    return (value.mT if shape[-2] > shape[-1] else value).reshape(shape)


def per_image(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """Return a number or a (...) tensor as (N,) positive numbers, one an image of (..., H, W)."""
    batch = like.shape[:-2]
    given = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    try:
        spread = given.expand(batch).reshape(-1)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; allowed: a number, or one value an image, "
            f"shape {tuple(batch)}"
        ) from None
    if not bool((torch.isfinite(spread) & (spread > 0)).all()):
        raise ValueError(f"{name} is {value}; allowed: finite numbers above 0")
    return spread


def chunk_of(chunk: int | None, problems: Problems) -> int:
    """Return how many images to solve at once: as asked, else what fits the cache (CPU) or memory."""
    if chunk is not None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; allowed: at least 1, or None")
        return chunk
    on_cpu = problems.observed.device.type == "cpu"
    budget = _CPU_BYTES * torch.get_num_threads() if on_cpu else _DEVICE_BYTES
    image = problems.observed[0].numel() if len(problems.observed) else 1
    bytes_each = _COPIES * image * problems.observed.element_size()
    most = max(_LEAST, budget // bytes_each)
    count = max(1, len(problems.observed))
    equal = -(-count // -(-count // most))
    return -(-equal // LANES) * LANES


def in_chunks(tensor: Tensor, chunk: int) -> list[Tensor]:
    """Return views of `chunk` images each; one empty view of an empty batch."""
    return [tensor[begin : begin + chunk] for begin in range(0, max(1, len(tensor)), chunk)]


def check_stopping(
    accuracy: float, max_iterations: int, dtype: torch.dtype, name: str = "gap"
) -> None:
    """Raise ValueError on an accuracy that the number format cannot prove, or no iterations."""
    least = 1e-5 if dtype == torch.float32 else 1e-10
    if not least <= accuracy < 1:
        mend = "; convert the input with .double()" if least > accuracy >= 1e-10 else ""
        raise ValueError(f"{name} is {accuracy}; allowed for {dtype}: {least} up to 1{mend}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations}; allowed: at least 1")


def _check_kind(observed: Tensor, mask: Tensor) -> None:
    if observed.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"observed has dtype {observed.dtype}; allowed: torch.float32, torch.float64; "
            "convert it with .float()"
        )
    if observed.ndim < 2:
        raise ValueError(
            f"observed has shape {tuple(observed.shape)}; allowed: (..., H, W); "
            "add the missing dimensions with reshape"
        )
    if 0 in observed.shape[-2:]:
        raise ValueError(f"observed has shape {tuple(observed.shape)}; allowed: H and W at least 1")
    if mask.dtype.is_complex:
        raise TypeError(f"mask has dtype {mask.dtype}; allowed: torch.bool, or numbers 0 and 1")
    if mask.device != observed.device:
        raise ValueError(
            f"mask is on {mask.device}, observed on {observed.device}; move one with .to(device)"
        )
    try:
        mask.expand(observed.shape)
    except RuntimeError:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; allowed: the shape of observed, "
            f"{tuple(observed.shape)}, or one that broadcasts to it"
        ) from None


def _check_finite(flat: Tensor, batch: torch.Size) -> None:
    # One sum decides the common case: a finite sum has no NaN and no infinity among its terms.
    if bool(torch.isfinite(flat.detach().sum())):
        return
    bad = ~torch.isfinite(flat.detach()).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"observed holds NaN or infinity in image {_named(bad, batch)}; allowed: finite "
            "values, meant to lie in [-1, 1]; drop these images, or mend what made them"
        )


def _check_binary(mask: Tensor, batch: torch.Size) -> None:
    bad = ~((mask == 0) | (mask == 1)).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"mask holds values other than 0 and 1 in image {_named(bad, batch)}; allowed: bool, "
            "or 0 (unknown) and 1 (observed); make it so with mask.bool() or a threshold"
        )


def _named(bad: Tensor, batch: torch.Size) -> str:
    """Return text with the indices of the marked images, in the batch's own shape."""
    where = torch.nonzero(bad.reshape(batch)).tolist()
    names = [str(index[0] if len(index) == 1 else tuple(index)) for index in where[:_SHOWN]]
    more = f" and {len(where) - _SHOWN} more" if len(where) > _SHOWN else ""
    return ", ".join(names) + more
