"""How sure a proportion is. Plain Python: tables need no torch."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054


def wilson(successes: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927). `successes` may be a mean over draws of each of
    `count` independent images: the interval is then wider than needed, never narrower.

    (0, 1) where there is no image.
    """
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = share + Z_95**2 / (2 * count)
    spread = Z_95 * math.sqrt(share * (1 - share) / count + (Z_95 / (2 * count)) ** 2)
    scale = 1 + Z_95**2 / count
    low = 0.0 if successes <= 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if successes >= count else min(1.0, (centre + spread) / scale)
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): `only_first` images are right in the first
    cell alone, `only_second` in the second alone. 1 where the cells agree on every image."""
    count = only_first + only_second
    if count == 0:
        return 1.0
    smaller = min(only_first, only_second)
    log_half = count * math.log(0.5)
    tail = sum(
        math.exp(
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + log_half
        )
        for k in range(smaller + 1)
    )
    return min(1.0, 2.0 * tail)
