"""Habits of annotators: counts by hand, planted position and length biases, coverage."""

import math

import numpy as np
import pytest
from tests.chance import shifted
from tests.stats.simulated import SIMULATIONS, covers

from tiltyard.errors import DataError
from tiltyard.stats.habits import biases, preference_habits
from tiltyard.stats.intervals import Estimate


def test_counts_by_hand():
    found = preference_habits(
        ["a", "a", "a", "a", "b"], [1, 1, 0, 0.5, 0.5], ["p", "q", "r", "s", "p"], [1, 0, 0.5, 1, 1]
    )
    assert found["a"].first[::3] == (pytest.approx(2 / 3), 3)
    assert found["a"].longer[::3] == (0.5, 2)
    assert found["a"].ties[::3] == (0.25, 4)
    assert found["b"].ties.value == 1
    assert math.isnan(found["b"].first.value)
    assert math.isnan(preference_habits(["a"], [1], ["p"])["a"].longer.value)


def test_biases_by_hand():
    """Off one half for the first; off one half and off the others for length; wider for more annotators."""

    def share(value, half=0.05, n=100):
        return Estimate(value, value - half, value + half, n)

    even = share(0.5)
    assert biases({}) == {}
    assert biases({"a": (share(0.7), share(0.7))}) == {"a": ("position", "longer")}
    assert biases({"a": (share(0.3), share(0.3)), "b": (even, even)}) == {"a": ("position", "shorter")}
    # everybody prefers the longer, which is better: no one has a bias
    assert biases({name: (even, share(0.7)) for name in "abc"}) == {}
    assert biases({"a": (even, share(0.9)), "b": (even, share(0.7)), "c": (None, None)}) == {"a": ("longer",)}
    assert biases({"a": (even, share(0.5)), "b": (even, share(0.7))}) == {"b": ("longer",)}
    assert biases({"a": (share(0.56), None)}) == {"a": ("position",)}
    assert biases({"a": (share(0.56), None), **{f"b{k}": (even, None) for k in range(20)}}) == {}
    unknown = Estimate(math.nan, math.nan, math.nan, 0)
    assert biases({"a": (unknown, unknown)}) == {}


def test_bad_input():
    with pytest.raises(DataError, match="each comparison"):
        preference_habits(["a"], [1, 0], ["p", "q"])
    with pytest.raises(DataError, match="first_won holds"):
        preference_habits(["a"], [0.7], ["p"])


def drawn(rng, n, first=0.0, longer=0.0):
    """Comparisons of a prompt share its difference in quality; outcomes follow a logit with the two biases."""
    prompts = np.arange(n) // 3
    longer_first = rng.integers(0, 2, n)
    quality = rng.standard_normal(n)[prompts] * rng.choice([-1, 1], n)  # either response may stand first
    logit = quality + first + longer * (2 * longer_first - 1)
    return (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float), prompts, longer_first


@pytest.mark.statistical
def test_planted_biases_show_in_the_interval():
    rng = np.random.default_rng(shifted(3))
    won, prompts, longer = drawn(rng, 3000, first=0.7)
    habits = preference_habits(["a"] * 3000, won, prompts, longer)["a"]
    assert habits.first.low > 0.5
    assert habits.longer.low < 0.55
    won, prompts, longer = drawn(rng, 3000, longer=0.7)
    habits = preference_habits(["a"] * 3000, won, prompts, longer)["a"]
    assert habits.longer.low > 0.55
    assert habits.first.low < 0.55


@pytest.mark.slow
@pytest.mark.statistical
def test_coverage():
    rng = np.random.default_rng(shifted(41))
    first, longer = [], []
    for seed in range(SIMULATIONS):
        won, prompts, longer_first = drawn(rng, 300)
        habits = preference_habits(["a"] * 300, won, prompts, longer_first, rounds=400, seed=seed)["a"]
        first.append(habits.first.ci)
        longer.append(habits.longer.ci)
    covers(*np.array(first).T, 0.5, "first")
    covers(*np.array(longer).T, 0.5, "longer")
