"""Means over seeds, values at an equal amount, and the intraclass correlation, against closed forms and oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from tests.chance import near, share, shifted

from tiltyard.errors import DataError
from tiltyard.stats.icc import icc, icc_ci
from tiltyard.stats.seeds import at_equal, over_seeds


def test_a_mean_over_seeds_is_scipys_t_interval():
    values = [0.31, 0.42, 0.28, 0.39]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert over_seeds(values) == pytest.approx((np.mean(values), low, high, 4))
    alone = over_seeds([0.5])
    assert (alone.value, alone.n) == (0.5, 1)
    assert math.isnan(alone.low)
    with pytest.raises(DataError, match="finite"):
        over_seeds([])
    with pytest.raises(DataError, match="finite"):
        over_seeds([1.0, math.nan])


@pytest.mark.statistical
def test_the_interval_of_three_seeds_covers():
    rng = np.random.default_rng(shifted(1))
    hits = [e.low <= 2 <= e.high for e in (over_seeds(rng.normal(2, 1, 3).tolist()) for _ in range(2000))]
    share(sum(hits), len(hits), 0.95)


def test_at_equal():
    points = [(0.0, 0.2), (1.0, 0.6), (3.0, 0.4)]
    assert at_equal(points, 0.5) == pytest.approx(0.4)
    assert at_equal(points[::-1], 2.0) == pytest.approx(0.5)
    assert at_equal(points, 1.0) == pytest.approx(0.6)
    assert at_equal(points, 3.5) is None
    assert at_equal(points, -0.1) is None
    assert at_equal([], 1.0) is None
    assert at_equal([(1.0, 0.3)], 1.0) == 0.3


# ------------------------------------------------------------------------------------------------------------------ ICC


def by_hand(rows):
    """ICC(1) of equally many measurements from the mean squares that scipy's analysis of variance is made of."""
    k, grand = len(rows[0]), np.mean(rows)
    msb = k * np.var(np.mean(rows, axis=1), ddof=1)
    msw = np.mean(np.var(rows, axis=1, ddof=1))
    assert stats.f_oneway(*rows).statistic == pytest.approx(msb / msw)
    assert np.isfinite(grand)
    return (msb - msw) / (msb + (k - 1) * msw)


def test_icc_against_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    rows = (rng.normal(0, 1, (40, 1)) + rng.normal(0, 0.7, (40, 4))).tolist()
    assert icc(rows) == pytest.approx(by_hand(rows))
    moved = [[1e6 + 3 * x for x in row] for row in rows]
    assert icc_ci(moved, range(40), rounds=10).low == pytest.approx(icc_ci(rows, range(40), rounds=10).low, abs=1e-6)


def test_icc_of_shrout_and_fleiss():
    """Table 2 of Shrout and Fleiss 1979: six targets, four judges, ICC(1,1) = 0.17."""
    rows = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert icc(rows) == pytest.approx(0.166, abs=5e-4)


def test_icc_at_its_ends():
    assert icc([[1, 1], [2, 2], [5, 5]]) == 1
    assert icc([[1, -1], [-1, 1]]) == -1
    assert math.isnan(icc([]))
    assert math.isnan(icc([[1, 2]]))
    assert math.isnan(icc([[1], [2]]))
    assert math.isnan(icc([[3, 3], [3, 3]]))
    assert math.isnan(icc_ci([[1, 2], [2, 3]], ["a", "a"]).low)
    with pytest.raises(DataError, match="cluster"):
        icc_ci([[1, 2]], [])


@pytest.mark.statistical
def test_icc_recovers_what_is_planted_with_unequal_numbers():
    rng = np.random.default_rng(shifted(2))
    found = []
    for _ in range(200):
        rows = [(rng.normal() + rng.normal(0, 1, int(k))).tolist() for k in rng.integers(1, 6, 60)]
        found.append(icc(rows))
    near(float(np.mean(found)), 0.5, float(np.std(found)) / math.sqrt(200) + 0.003)


@pytest.mark.statistical
def test_the_interval_of_icc_covers():
    """The percentile bootstrap of 60 prompts: 90% and more of 95, for a correlation is skewed."""
    rng = np.random.default_rng(shifted(3))
    hits = 0
    for i in range(300):
        rows = rng.normal(0, 1, (60, 1)) + rng.normal(0, 1, (60, 3))
        e = icc_ci(rows.tolist(), range(60), rounds=300, seed=i)
        hits += e.low <= 0.5 <= e.high
    assert hits / 300 > 0.90 - 4 * math.sqrt(0.9 * 0.1 / 300)
