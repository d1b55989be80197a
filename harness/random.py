"""Random draws that belong to the sample, not to the execution.

Every number is a pure function of (seed, role, lane, step, draw, sample id, position). So a run that is
resumed, re-ordered, re-batched or spread over machines sees the same masks, on a CPU and on a GPU alike.

The generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators"): a counter through a 64-bit finaliser. Each sample's key is the hash of its coordinates;
its stream starts there. A defense is given the keys alone (`OpaqueDraws`): it cannot tell the judge from
an attack by its draws.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
import struct
import zlib
from typing import NoReturn, SupportsIndex, final

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Role(enum.IntEnum):
    """The purposes of random numbers. Two roles never share a stream."""

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
    """Return the signed 64-bit integer that has the bits of an unsigned one."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """Return SplitMix64's finaliser of a Python integer, taken modulo 2**64."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def mix_tensor(value: Tensor) -> Tensor:
    """Return `mix` of every entry of an int64 tensor: multiplications wrap, shifts are made logical."""
    value = (value ^ ((value >> 30) & 0x3_FFFF_FFFF)) * _signed(_MIX_1)
    value = (value ^ ((value >> 27) & 0x1F_FFFF_FFFF)) * _signed(_MIX_2)
    return value ^ ((value >> 31) & 0x1_FFFF_FFFF)


def _mix_in_place(value: Tensor) -> Tensor:
    """Apply `mix_tensor` in place, with one temporary tensor, and return the tensor."""
    shifted = torch.empty_like(value)
    for shift, mask, factor in ((30, 0x3_FFFF_FFFF, _MIX_1), (27, 0x1F_FFFF_FFFF, _MIX_2)):
        torch.bitwise_right_shift(value, shift, out=shifted)
        value.bitwise_xor_(shifted.bitwise_and_(mask)).mul_(_signed(factor))
    torch.bitwise_right_shift(value, 31, out=shifted)
    return value.bitwise_xor_(shifted.bitwise_and_(0x1_FFFF_FFFF))


def _single(value: float) -> float:
    """Return a number rounded to single precision, as a comparison with float32 tensors rounds it."""
    return struct.unpack("f", struct.pack("f", value))[0]  # type: ignore[no-any-return]


def combine(*parts: int) -> int:
    """Return one 64-bit key for several integers; their order counts."""
    key = 0
    for part in parts:
        key = mix(key + _GOLDEN + mix(part))
    return key


class Numbers(abc.ABC):
    """Random numbers for a batch: one row for each sample, whatever else is in the batch.

    One caller separates its draws by `lane`: two lanes share no number.
    """

    __slots__ = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of samples N, the leading dimension of every draw."""

    @abc.abstractmethod
    def bits(self, count: int, *, lane: str = "") -> Tensor:
        """Return (N, count) int64: `count` random words for each sample."""

    def uniform(self, *shape: int, lane: str = "") -> Tensor:
        """Return (N, *shape) float32, uniform in [0, 1) on a grid of 2**-24."""
        return self._halves(shape, lane).to(torch.float32).mul_(2.0**-24)

    def bernoulli(self, probability: float | Tensor, *shape: int, lane: str = "") -> Tensor:
        """Return (N, *shape) bool, true with the given probability: one number, or one for each
        sample (N,)."""
        if isinstance(probability, Tensor):
            probability = probability.reshape(-1, *(1,) * len(shape))
            return self.uniform(*shape, lane=lane) < probability
        # The same decision as `uniform(...) < probability`, without floating-point numbers.
        threshold = math.ceil(_single(probability) * 2.0**24)
        return self._halves(shape, lane) < threshold

    def normal(self, *shape: int, lane: str = "") -> Tensor:
        """Return (N, *shape) float32, standard normal (Box and Muller 1958)."""
        pairs = self.uniform(2, *shape, lane=lane)
        radius = torch.sqrt(-2.0 * torch.log1p(-pairs[:, 0]))
        return radius * torch.cos(2.0 * math.pi * pairs[:, 1])

    def integers(self, high: int, *shape: int, lane: str = "") -> Tensor:
        """Return (N, *shape) int64 in [0, high)."""
        return (self.uniform(*shape, lane=lane).double() * high).long()

    def _halves(self, shape: tuple[int, ...], lane: str) -> Tensor:
        """Return (N, *shape) int32 in [0, 2**24); one word gives two of them."""
        count = math.prod(shape)
        words = self.bits((count + 1) // 2, lane=lane)
        # Little-endian: the low half of each word comes first.
        halves = words.flatten().view(torch.int32).bitwise_right_shift_(8).bitwise_and_(0xFF_FFFF)
        halves = halves.reshape(len(words), 2 * words.shape[1])
        return halves[:, :count].reshape(len(self), *shape)


@final
class OpaqueDraws(Numbers):
    """The random numbers that a defense receives, which do not tell who asks for them.

    It holds only one key for each sample, mixed from seed, role, step, draw and id. It gives no numbers of
    another place of the run, and cannot be copied or pickled.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Tensor) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"OpaqueDraws({len(self)} samples)"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "the draws of a defense are used where they are given: draw the numbers now"
        )

    def bits(self, count: int, *, lane: str = "") -> Tensor:
        keys = self._keys
        if lane:
            keys = mix_tensor(keys + _signed(mix(zlib.crc32(lane.encode()))))
        counter = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
        return _mix_in_place(keys[:, None] + counter * _signed(_GOLDEN))


@dataclasses.dataclass(frozen=True)
class Draws(Numbers):
    """The random numbers of some samples at one place of a run, as the engine and attacks see them.

    `ids` are the stable sample ids, int64 of shape (N,).
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
        """Return the draws of the same samples at another place: with another role, step or draw."""
        return dataclasses.replace(
            self,
            role=self.role if role is None else role,
            step=self.step if step is None else step,
            draw=self.draw if draw is None else draw,
        )

    def opaque(self) -> OpaqueDraws:
        """Return the same numbers without seed, role and place, as a defense receives them."""
        # The zero keeps the numbers of the unnamed lane, and so the splits of datasets, as they always were.
        place = combine(self.seed, int(self.role), 0, self.step, self.draw)
        return OpaqueDraws(mix_tensor(mix_tensor(self.ids) + _signed(place)))

    def bits(self, count: int, *, lane: str = "") -> Tensor:
        return self.opaque().bits(count, lane=lane)


def permutation(seed: int, count: int, *, role: Role, step: int = 0) -> Tensor:
    """Return a random permutation of range(count), (count,) int64: the order of an epoch."""
    ids = torch.arange(count, dtype=torch.int64)
    return torch.argsort(Draws(seed, ids, role, step).bits(1)[:, 0], stable=True)


def content_ids(images: Tensor) -> Tensor:
    """Return (N,) int64 ids that depend on each image's pixels alone, for per-input randomness.

    Pixels are rounded to 8 bits, so that an image stored in another dtype keeps its id.
    """
    pixels = (images.detach().double() * 255.0).round().long().flatten(1)
    position = torch.arange(1, pixels.shape[1] + 1, dtype=torch.int64, device=images.device)
    return mix_tensor((mix_tensor(pixels + position * _signed(_GOLDEN))).sum(dim=1))
