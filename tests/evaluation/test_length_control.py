"""The length-controlled win rate against another optimiser, its identities, a planted bias and its coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from tiltyard.errors import DataError
from tiltyard.evaluation import EvaluatedResponse, summarise
from tiltyard.stats.length_control import (
    MIN_CLUSTERS,
    RIDGE,
    at_equal_length,
    by_length_ratio,
    length_controlled_win_rate,
    unstable,
)


def planted(rng, n, theta, phi):
    """Outcomes whose probability is sigmoid(theta + phi tanh(d / sd(d)))."""
    d = rng.normal(30, 50, n)
    p = 1 / (1 + np.exp(-(theta + phi * np.tanh(d / d.std()))))
    return (rng.random(n) < p) * 1.0, d


def test_it_is_the_maximum_that_another_optimiser_finds():
    y, d = planted(np.random.default_rng(0), 80, 0.4, 1.5)
    x = np.tanh(d / d.std())

    def loss(ab):
        z = ab[0] + ab[1] * x
        return np.sum(np.logaddexp(0, z) - y * z) + RIDGE / 2 * np.sum(ab**2)

    theta = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x[0]
    assert length_controlled_win_rate(y, d, rounds=1).value == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-6)


def test_swapped_sides_and_a_model_against_itself():
    y, d = planted(np.random.default_rng(1), 60, -0.5, 1.0)
    there, back = length_controlled_win_rate(y, d), length_controlled_win_rate(1 - y, -d)
    assert there.value + back.value == pytest.approx(1, abs=1e-9)
    assert there.low + back.high == pytest.approx(1, abs=1e-6)
    same = length_controlled_win_rate(np.full(60, 0.5), np.zeros(60))
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)


def test_a_judge_that_only_likes_length_is_seen_through():
    rng = np.random.default_rng(2)
    y, d = planted(rng, 2000, 0.0, 3.0)
    assert y.mean() > 0.65
    estimate = length_controlled_win_rate(y, d, rounds=200)
    assert estimate.low < 0.5 < estimate.high
    assert abs(estimate.value - 0.5) < 0.05


def test_a_prompt_counts_as_a_whole():
    y, d = planted(np.random.default_rng(3), 50, 0.3, 1.0)
    once = length_controlled_win_rate(y, d)
    thrice = length_controlled_win_rate(np.repeat(y, 3), np.repeat(d, 3), np.repeat(np.arange(50), 3))
    assert thrice.value == pytest.approx(once.value, abs=1e-4)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("n", [MIN_CLUSTERS, 100])
def test_coverage(n):
    rng = np.random.default_rng(4)
    theta = 0.5
    truth = 1 / (1 + math.exp(-theta))
    hits = stated = 0
    for seed in range(500):
        y, d = planted(rng, n, theta, 1.0)
        estimate = length_controlled_win_rate(y, d, rounds=400, seed=seed)
        stated += not math.isnan(estimate.value)
        hits += estimate.low <= truth <= estimate.high
    assert stated >= 475  # of 30 prompts fewer than five are lost in some sets, which have no estimate
    assert 0.93 <= hits / stated <= 0.975, (hits, stated)


def test_too_few_prompts_or_one_sided_outcomes_have_no_value():
    y, d = planted(np.random.default_rng(5), 200, 0.0, 1.0)
    assert math.isnan(length_controlled_win_rate(y, d, np.arange(200) % (MIN_CLUSTERS - 1)).value)
    assert math.isnan(length_controlled_win_rate(np.ones(50), d[:50]).value)
    assert math.isnan(length_controlled_win_rate((d[:60] > 30) * 1.0, d[:60]).value)
    assert "separates" in unstable((d[:60] > 30) * 1.0, d[:60])
    assert "4 of 60 prompts are lost" in unstable(np.repeat([1.0, 0.0], [56, 4]), d[:60])
    assert unstable(np.repeat([1.0, 0.0], [25, 5]), np.tile([1.0, -1.0], 15)) == ""


def test_where_the_regression_is_not_stable_the_matched_pairs_decide():
    """12 pairs of equal length are won 2 to 1; the others, whose responses are three times as long, all."""
    y = np.r_[np.tile([1.0, 1.0, 0.0], 4), np.ones(14)]
    length, baseline = np.r_[np.full(12, 50), np.full(14, 150)], np.full(26, 50)
    found = at_equal_length(y, length, baseline)
    assert (found.how, found.estimate.value, found.estimate.n) == ("matched", pytest.approx(2 / 3), 12)
    assert "26 prompts" in found.reason
    few = at_equal_length(y[5:], length[5:], baseline[5:])
    assert few.how == ""
    assert math.isnan(few.estimate.value)
    assert "7 have a pair of about equal length" in few.reason
    y[-4:] = 0
    enough = at_equal_length(*(np.tile(x, 3) for x in (y, length, baseline)))
    assert (enough.how, enough.reason) == ("regression", "")


def test_win_rates_by_the_ratio_of_the_lengths():
    rows = by_length_ratio([1.0, 0.0, 0.5, 1.0], [99, 9, 20, 10], [9, 99, 20, 10])
    assert [(row.rate.n, row.rate.value) for row in rows if row.rate.n] == [(1, 0.0), (2, 0.75), (1, 1.0)]


@pytest.mark.parametrize(("y", "d"), [([0.5], [1, 2]), ([2.0, 0], [1, 2]), ([math.nan, 1], [1, 2])])
def test_bad_input(y, d):
    with pytest.raises(DataError):
        length_controlled_win_rate(y, d)


def responses(name, lengths, scores):
    return [
        EvaluatedResponse(f"p{k}", "?", f"{name} {k}", length, proxy=score, prompt_key=f"p{k}")
        for k, (length, score) in enumerate(zip(lengths, scores, strict=True))
    ]


def test_a_policy_that_only_writes_more_gains_nothing_at_equal_length():
    """The reward counts tokens: 100% wins by it, and no better at equal length than its own noise allows."""
    rng = np.random.default_rng(6)
    start, longer = rng.integers(20, 60, 200), rng.integers(35, 75, 200)
    noise_a, noise_b = rng.normal(0, 8, 200), rng.normal(0, 8, 200)
    before, after = responses("a", start, start + noise_a), responses("b", longer, longer + noise_b)
    result = summarise("b", after, before, "proxy", baseline="a")
    assert result.win_rate > 0.65
    low, high = result.win_rate_equal_length_ci
    assert low < 0.5 < high
    same = summarise("a", before, before, "proxy", baseline="a")
    assert same.win_rate_equal_length is None


def test_a_judge_s_verdicts_are_paired_as_they_were_asked():
    rng = np.random.default_rng(7)
    before = responses("a", rng.integers(20, 60, 90), [None] * 90)
    after = [
        replace(r, win=float(rng.random() < 0.8), proxy=None)
        for r in responses("b", rng.integers(20, 60, 90), [None] * 90)
    ]
    result = summarise("b", after, before, "judge", baseline="a")
    expected = length_controlled_win_rate(
        [r.win for r in after],
        [r.length - s.length for r, s in zip(after, before, strict=True)],
        [r.key for r in after],
    )
    assert result.win_rate_equal_length == expected.value
    few = summarise("b", after[:20], before[:20], "judge", baseline="a")
    assert few.win_rate is not None
    assert few.win_rate_equal_length_how != "regression"
    assert "20 prompts" in few.win_rate_equal_length_note
