"""Intervals of rates of few prompts: closed forms, scipy and statsmodels, coverage of 500 simulated sets."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, betabinom, binom
from tests.chance import shifted
from tests.stats.simulated import SIMULATIONS, covers

from tiltyard.stats.intervals import RARE, SMALL, beta_interval, bootstrap_ci, rate_ci, wilson
from tiltyard.stats.win_rates import win_rate, win_rate_by_prompt


@given(st.integers(1, 98), st.data())
def test_one_outcome_a_prompt_has_the_posterior_of_a_uniform_prior(n, data):
    k = data.draw(st.integers(0, n + 1))
    y = np.repeat([1.0, 0.0], [k, n + 1 - k])
    expected = beta(1 + k, 2 + n - k).ppf([0.025, 0.975])
    assert beta_interval(y, np.ones(n + 1)) == pytest.approx(tuple(expected), abs=1e-9)


def test_the_posterior_is_that_of_the_beta_binomial():
    """The chance of each count among as many new prompts, by the Beta that the interval stands for."""
    k, n = 6, 30
    low, high = beta_interval(np.repeat([1.0, 0.0], [k, n - k]), np.ones(n))
    posterior = beta(1 + k, 1 + n - k)
    grid = np.linspace(0, 1, 20001)
    mixed = [np.trapezoid(binom.pmf(j, n, grid) * posterior.pdf(grid), grid) for j in (0, 6, 20)]
    assert mixed == pytest.approx(list(betabinom.pmf([0, 6, 20], n, 1 + k, 1 + n - k)), rel=1e-5)
    assert posterior.cdf([low, high]) == pytest.approx([0.025, 0.975])


def test_swapped_sides_are_mirrored_and_a_prompt_counts_as_a_whole():
    rng = np.random.default_rng(0)
    y, prompts = rng.integers(0, 3, 80) / 2, np.repeat(np.arange(20), 4)
    there, back = rate_ci(y, prompts), rate_ci(1 - y, prompts)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))
    once, twice = rate_ci(y[:20], range(20)), rate_ci(np.repeat(y[:20], 2), np.repeat(np.arange(20), 2))
    assert twice.ci == pytest.approx(once.ci)


def test_a_cluster_drawn_twice_counts_twice():
    """By all 3^3 draws of three prompts of unequal size: a set of the drawn ones has other quantiles."""
    sums, counts = np.array([3.0, 0.0, 1.0]), np.array([3.0, 2.0, 1.0])
    y, prompts = np.repeat([1.0, 0.0, 1.0], [3, 2, 1]), np.repeat(np.arange(3), [3, 2, 1])
    draws = np.array([(i, j, k) for i in range(3) for j in range(3) for k in range(3)])
    ratio = np.sort(sums[draws].sum(1) / counts[draws].sum(1))
    low, high = bootstrap_ci(y, prompts, rounds=4000, level=0.5)
    assert low in ratio
    assert high in ratio
    as_sets = {round(sums[list(set(d))].sum() / counts[list(set(d))].sum(), 9) for d in draws}
    drawn = {round(bootstrap_ci(y, prompts, rounds=1, seed=s)[0], 9) for s in range(200)}
    assert drawn == {round(x, 9) for x in ratio}
    assert drawn - as_sets


def test_which_interval_is_taken():
    binary, tied = np.repeat([1.0, 0.0], [20, 10]), np.repeat([1.0, 0.5, 0.0], [10, 10, 10])
    assert rate_ci(binary).ci == wilson(20, 30)
    assert rate_ci(tied).ci == beta_interval(tied, np.ones(30)) != wilson(15, 30)
    many = np.tile(tied, 10)
    assert rate_ci(many, range(300)).ci == bootstrap_ci(many, range(300))
    assert len(many) > SMALL
    rare = np.repeat([1.0, 0.0], [300 - RARE + 1, RARE - 1])
    assert rate_ci(rare, range(300)).ci == beta_interval(rare, np.ones(300))
    assert math.isnan(rate_ci([0.5, 1.0], ["one", "one"]).low)


def test_statsmodels_has_the_same_wilson_and_a_wider_exact_interval():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for k, n in ((3, 30), (15, 30), (29, 30)):
        assert wilson(k, n) == pytest.approx(proportion.proportion_confint(k, n, method="wilson"), abs=1e-12)
        low, high = beta_interval(np.repeat([1.0, 0.0], [k, n - k]), np.ones(n))
        exact = proportion.proportion_confint(k, n, method="beta")  # Clopper and Pearson
        assert exact[0] < low < k / n < high < exact[1]


def test_identical_models_win_half():
    scores = {f"p{i}": [float(i % 3), float(i % 2)] for i in range(30)}
    found = win_rate_by_prompt(scores, scores)
    assert found.value == 0.5
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.1
    assert win_rate([1, 2, 3], [1, 2, 3]).value == 0.5


@pytest.mark.parametrize("n", [20, 30, 50, 99])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.95])
def test_exact_coverage_of_one_outcome_a_prompt(n, p):
    """By all counts and their chances, so nothing is left to chance; the discrete counts allow no closer one."""
    covered = 0.0
    for k in range(n + 1):
        low, high = rate_ci(np.repeat([1.0, 0.0], [k, n - k]), range(n)).ci
        covered += binom.pmf(k, n, p) * (low <= p <= high)
    assert 0.92 <= covered <= 0.98
    assert n != 30 or abs(covered - 0.95) <= 0.02


SPREAD = {"sharp": 0.5, "probabilities": 3, "calm": 8, "calmer": 20}  # precision of a judge's probabilities
WIDE = 0.3 * np.random.default_rng(0).normal(size=200_000)


def mean_of_orders(logit, bias):
    return (1 / (1 + np.exp(-logit - bias)) + 1 / (1 + np.exp(-logit + bias))) / 2


def outcomes(rng, kind, prompts, p):
    """Outcomes, their prompts and the true rate."""
    if kind == "ties":
        tied = rng.random(prompts) < 0.3
        return np.where(tied, 0.5, rng.random(prompts) < p), range(prompts), 0.15 + 0.7 * p
    if kind in SPREAD:
        return rng.beta(SPREAD[kind] * p, SPREAD[kind] * (1 - p), prompts), range(prompts), p
    if kind == "by order":  # a judge whose position bias is far beyond its taste: two orders of about 0 and 1
        logit = np.log(p / (1 - p)) + 0.3 * rng.normal(size=prompts)
        return mean_of_orders(logit, 3), range(prompts), float(mean_of_orders(WIDE + np.log(p / (1 - p)), 3).mean())
    q = rng.beta(2 * p, 2 * (1 - p), prompts)
    return (rng.random((prompts, 4)) < q[:, None]).ravel() * 1.0, np.repeat(np.arange(prompts), 4), p


def simulated(kind, p, prompts):
    rng = np.random.default_rng(shifted(round(100 * p)))
    drawn = [outcomes(rng, kind, prompts, p) for _ in range(SIMULATIONS)]
    bounds = [rate_ci(y, names, rounds=600, seed=shifted(i)).ci for i, (y, names, _) in enumerate(drawn)]
    lows, highs = np.array(bounds).T
    return lows, highs, drawn[0][2]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("kind", "p", "prompts"),
    [
        *((kind, p, 30) for kind in ("ties", "four a prompt") for p in (0.5, 0.8, 0.95)),
        pytest.param("ties", 0.8, 120, marks=pytest.mark.slow),
    ],
)
def test_coverage(kind, p, prompts):
    covers(*simulated(kind, p, prompts), f"{kind}, {prompts} prompts, rate {p}:")


@pytest.mark.statistical
@pytest.mark.parametrize("kind", [*SPREAD, "by order"])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.95])
def test_probabilities_of_a_judge_are_covered(kind, p):
    """At the ends of the scale a verdict unlike the others may be there unseen, and the interval stays too wide."""
    lows, highs, truth = simulated(kind, p, 30)
    covered = ((lows <= truth) & (truth <= highs)).mean()
    print(f"coverage: {covered:.3f}, mean width {(highs - lows).mean():.3f}")
    assert 0.92 <= covered <= (1.0 if p == 0.95 else 0.98)


def test_probabilities_far_from_the_ends_have_the_interval_of_their_mean():
    """No win or loss can hide among them, so nothing of their size is added."""
    values = np.random.default_rng(0).normal(0.5, 0.02, 40)
    low, high = rate_ci(values, range(40)).ci
    error = values.std(ddof=1) / np.sqrt(40)
    assert (high - low) / (2 * 2.02 * error) == pytest.approx(1, abs=0.1)
    with_a_win = rate_ci(np.append(values[1:], 1.0), range(40))
    assert with_a_win.high - with_a_win.low > 5 * (high - low) / 2
