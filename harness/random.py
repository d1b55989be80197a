"""Random draws that belong to the sample, not to the execution.

Every number is a pure function of (seed, role, lane, step, draw, sample id, position). So a run that is
resumed, re-ordered, re-batched or spread over machines sees the same masks, on a CPU and on a GPU alike.

The generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators"): a counter through a 64-bit finaliser. Each sample's key is the hash of its coordinates;
its stream starts there.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Role(enum.IntEnum):
    """Who draws. Two roles never share a stream."""

    WEIGHTS = 1
    SHUFFLE = 2
    AUGMENT = 3
    TRAIN = 4
    TRAIN_ATTACK = 5
    ESTIMATE = 6
    ATTACK = 7
    START = 8
    SCORE = 9
    TRACE = 10
    VERIFY = 11
    FIXED = 12
    AUDIT = 13


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """SplitMix64's finaliser on a Python integer, taken modulo 2**64."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def mix_tensor(value: Tensor) -> Tensor:
    """`mix` on every entry of an int64 tensor; its multiplications wrap, its shifts are made logical."""
    value = (value ^ ((value >> 30) & 0x3_FFFF_FFFF)) * _signed(_MIX_1)
    value = (value ^ ((value >> 27) & 0x1F_FFFF_FFFF)) * _signed(_MIX_2)
    return value ^ ((value >> 31) & 0x1_FFFF_FFFF)


def combine(*parts: int) -> int:
    """One 64-bit key from several integers; the order counts."""
    key = 0
    for part in parts:
        key = mix(key + _GOLDEN + mix(part))
    return key


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of some samples at one place of a run.

    `ids` are the stable sample ids, int64 of shape (N,); N is the leading dimension of all that is drawn.
    """

    seed: int
    ids: Tensor
    role: Role
    step: int = 0
    draw: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> Draws:
        return dataclasses.replace(self, ids=self.ids[index])

    def at(
        self, *, role: Role | None = None, step: int | None = None, draw: int | None = None
    ) -> Draws:
        """The same samples at another place."""
        return dataclasses.replace(
            self,
            role=self.role if role is None else role,
            step=self.step if step is None else step,
            draw=self.draw if draw is None else draw,
        )

    def bits(self, count: int, *, lane: str = "") -> Tensor:
        """(N, count) int64: `count` random words for each sample. `lane` separates what one caller draws."""
        place = combine(self.seed, int(self.role), zlib.crc32(lane.encode()), self.step, self.draw)
        keys = mix_tensor(mix_tensor(self.ids) + _signed(place))
        counter = torch.arange(1, count + 1, dtype=torch.int64, device=self.ids.device)
        return mix_tensor(keys[:, None] + counter * _signed(_GOLDEN))

    def uniform(self, *shape: int, lane: str = "") -> Tensor:
        """(N, *shape) float32 in [0, 1), on a grid of 2**-24. One word gives two numbers."""
        count = math.prod(shape)
        words = self.bits((count + 1) // 2, lane=lane)
        halves = torch.stack(((words >> 40) & 0xFF_FFFF, (words >> 8) & 0xFF_FFFF), dim=-1)
        numbers = halves.flatten(1)[:, :count].to(torch.float32) * 2.0**-24
        return numbers.reshape(len(self.ids), *shape)

    def bernoulli(self, probability: float | Tensor, *shape: int, lane: str = "") -> Tensor:
        """(N, *shape) bool, true with the given probability: one number, or one for each sample (N,)."""
        if isinstance(probability, Tensor):
            probability = probability.reshape(-1, *(1,) * len(shape))
        return self.uniform(*shape, lane=lane) < probability

    def normal(self, *shape: int, lane: str = "") -> Tensor:
        """(N, *shape) float32, standard normal (Box and Muller 1958)."""
        pairs = self.uniform(2, *shape, lane=lane)
        radius = torch.sqrt(-2.0 * torch.log1p(-pairs[:, 0]))
        return radius * torch.cos(2.0 * math.pi * pairs[:, 1])

    def integers(self, high: int, *shape: int, lane: str = "") -> Tensor:
        """(N, *shape) int64 in [0, high)."""
        return (self.uniform(*shape, lane=lane).double() * high).long()


def permutation(seed: int, count: int, *, role: Role, step: int = 0) -> Tensor:
    """A permutation of range(count), int64 (count,): the order of an epoch."""
    ids = torch.arange(count, dtype=torch.int64)
    return torch.argsort(Draws(seed, ids, role, step).bits(1)[:, 0], stable=True)


def content_ids(images: Tensor) -> Tensor:
    """(N,) int64 that depend on each image's pixels alone: the key of per-input randomness.

    Pixels are read on the 8-bit grid, so that storage in another dtype keeps the key.
    """
    pixels = (images.detach().double() * 255.0).round().long().flatten(1)
    position = torch.arange(1, pixels.shape[1] + 1, dtype=torch.int64, device=images.device)
    return mix_tensor((mix_tensor(pixels + position * _signed(_GOLDEN))).sum(dim=1))
