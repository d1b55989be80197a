"""Intervals against simulation, tests against scipy."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.results.records import pack, unpack
from harness.results.statistics import in_percent, mcnemar, wilson


@pytest.mark.parametrize("count", [100, 359, 1000, 10000])
def test_wilson_covers_the_truth_in_95_percent(count: int) -> None:
    """Averaged over true rates, as a table's cells are; a single rate swings with the grid of n."""
    generator = np.random.default_rng(count)
    rates = generator.uniform(0.02, 0.98, size=40_000)
    bounds = np.array([wilson(float(k), count) for k in range(count + 1)])
    seen = generator.binomial(count, rates)
    covered = (bounds[seen, 0] <= rates) & (rates <= bounds[seen, 1])
    assert covered.mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("rate", [0.05, 0.138, 0.26, 0.497, 0.852])
def test_wilson_covers_at_the_rates_of_the_paper(rate: float) -> None:
    generator = np.random.default_rng(7)
    seen = generator.binomial(1000, rate, size=20_000)
    bounds = np.array([wilson(float(k), 1000) for k in range(1001)])
    covered = (bounds[seen, 0] <= rate) & (rate <= bounds[seen, 1])
    assert covered.mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("draws", [2, 10])
def test_wilson_of_a_mean_over_draws_covers_no_less(draws: int) -> None:
    """Images are the units; their rates differ, and each is seen in several draws."""
    generator = np.random.default_rng(draws)
    covered = []
    for _ in range(3000):
        rates = generator.beta(0.5, 0.5, size=300)  # most images nearly always right or wrong
        mean = generator.binomial(draws, rates).sum() / draws
        low, high = wilson(float(mean), 300)
        covered.append(low <= 0.5 <= high)
    assert np.mean(covered) >= 0.94


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    successes, count = case
    low, high = wilson(successes, count)
    known = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert low == pytest.approx(known.low, abs=1e-9)
    assert high == pytest.approx(known.high, abs=1e-9)


def test_nothing_seen_is_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_sign_test(first: int, second: int) -> None:
    known = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(known, rel=1e-6, abs=1e-12)


def test_mcnemar_is_symmetric_and_sure_where_all_point_one_way() -> None:
    assert mcnemar(0, 20) == mcnemar(20, 0) == pytest.approx(2 * 0.5**20)


@given(st.lists(st.booleans(), max_size=40))
def test_outcomes_are_packed_first_image_highest(bits: list[bool]) -> None:
    """Records of all versions are read alike: the form is part of the file's format."""
    text = pack(bits)
    number = int.from_bytes(base64.b64decode(text), "big")
    width = -(-len(bits) // 8) * 8
    assert [bool(number >> (width - 1 - place) & 1) for place in range(len(bits))] == bits
    assert unpack(text, len(bits)) == bits
    with pytest.raises(ValueError, match="asked for"):
        unpack(text, width + 1)


def test_a_number_in_percent_says_its_interval() -> None:
    assert in_percent(0.412, (0.38249, 0.443)) == "41.2 [38.2, 44.3]"
