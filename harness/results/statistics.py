"""Intervals and tests for proportions. Needs no torch, so that tables can be made without it."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054


def wilson(successes: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a proportion (Wilson 1927); (0, 1) where `count` is 0.

    `successes` may be the sum over `count` independent images of a mean over draws: the interval is then
    wider than needed, never narrower. (SciPy's `binomtest` takes whole numbers only.)
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


def in_percent(share: float, interval: tuple[float, float]) -> str:
    """Return a share and its interval as `41.2 [38.2, 44.3]`."""
    low, high = interval
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def fisher(first: int, first_count: int, second: int, second_count: int) -> float:
    """Return the two-sided p-value of Fisher's exact test (1922) that two shares of successes are equal."""
    from scipy.stats import fisher_exact  # takes half a second to import

    counts = [[first, first_count - first], [second, second_count - second]]
    return float(fisher_exact(counts).pvalue)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947); 1 where two cells agree on every image.

    Args:
        only_first, only_second: the number of images that are right in the first or second cell alone.
    """
    from scipy.special import bdtr  # takes a third of a second to import

    count = only_first + only_second
    return min(1.0, 2.0 * float(bdtr(min(only_first, only_second), count, 0.5)))
