"""Paired tests against scipy and statsmodels, the size of the test, the power at the smallest difference."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test, ttest_1samp
from tests.chance import share, shifted

from tiltyard.errors import DataError
from tiltyard.stats.intervals import by_cluster
from tiltyard.stats.paired import (
    false_discovery,
    mean_difference,
    p_value,
    paired_difference,
    smallest_difference,
    standard_error,
)


def test_pass_and_fail_have_mcnemars_exact_test():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    after, before = np.repeat([1, 1, 0, 0], [20, 15, 5, 30]), np.repeat([1, 0, 1, 0], [20, 15, 5, 30])
    found = paired_difference(after, before)
    table = [[20, 5], [15, 30]]
    assert found.p == pytest.approx(contingency.mcnemar(table, exact=True).pvalue)
    assert found.p == pytest.approx(binomtest(15, 20).pvalue)
    assert (found.test, found.value, found.n) == ("sign", pytest.approx(10 / 70), 70)


def test_a_paired_test_sees_more_than_two_separate_means():
    """The published case (lm-eval#3831): the same counts, paired by question, and as if they were two sets."""
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    after, before = np.repeat([1, 1, 0, 0], [120, 24, 8, 68]), np.repeat([1, 0, 1, 0], [120, 24, 8, 68])
    paired = paired_difference(after, before)
    apart = proportion.proportions_ztest([after.sum(), before.sum()], [220, 220])[1]
    assert paired.p == pytest.approx(0.007, abs=0.001)
    assert apart > 0.08
    assert paired.low > 0


@pytest.mark.parametrize("n", [6, 11, 40])
def test_few_prompts_have_the_randomisation_of_signs(n):
    rng = np.random.default_rng(n)
    d = rng.normal(0.4, 1, n)
    expected = permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    ).pvalue
    found = mean_difference(d)
    assert found.test == "sign flips"
    assert found.p == pytest.approx(expected, abs=0 if n <= 12 else 0.012)


def test_many_prompts_have_the_t_test():
    rng = np.random.default_rng(1)
    d = rng.normal(0.1, 1, 300)
    found = mean_difference(d)
    assert (found.p, found.test) == (pytest.approx(ttest_1samp(d, 0).pvalue), "t")
    prompts = np.repeat(np.arange(150), 2)
    sums, counts = by_cluster(d, prompts)
    assert mean_difference(d, prompts).p == pytest.approx(ttest_1samp(sums, 0).pvalue)
    assert standard_error(sums, counts) == pytest.approx(sums.std(ddof=1) / 2 / math.sqrt(150))


def test_the_standard_error_is_the_cluster_robust_one():
    """statsmodels without its correction for the number of observations, ours with C / (C - 1)."""
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(2)
    prompts = rng.integers(0, 25, 120)
    d = rng.normal(size=25)[prompts] + rng.normal(size=120)
    fitted = api.OLS(d, np.ones(120)).fit(
        cov_type="cluster", cov_kwds={"groups": prompts, "use_correction": False, "df_correction": False}
    )
    n = len(set(prompts.tolist()))
    expected = fitted.bse[0] * math.sqrt(n / (n - 1))
    assert standard_error(*by_cluster(d, prompts)) == pytest.approx(expected)


@pytest.mark.parametrize("n", [20, 60, 400])
def test_the_smallest_difference_is_that_of_statsmodels(n):
    power = pytest.importorskip("statsmodels.stats.power")
    expected = power.TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
    assert smallest_difference(1 / math.sqrt(n), n) == pytest.approx(expected, rel=0.01)


@pytest.mark.statistical
def test_the_smallest_difference_is_found_in_80_percent_and_none_in_5_percent():
    rng = np.random.default_rng(shifted(3))
    mde = smallest_difference(1 / math.sqrt(120), 120)
    found = sum(mean_difference(rng.normal(mde, 1, 120), rounds=1).p <= 0.05 for _ in range(500))
    share(found, 500, 0.8, "power")
    false = sum(mean_difference(rng.normal(0, 1, 120), rounds=1).p <= 0.05 for _ in range(500))
    share(false, 500, 0.05, "size")


@pytest.mark.statistical
def test_the_sign_flips_keep_their_level_with_ties_and_several_responses():
    rng = np.random.default_rng(shifted(4))
    prompts, false = np.repeat(np.arange(12), 3), 0
    for _ in range(400):
        d = (rng.normal(size=12)[prompts] + rng.normal(size=36)).round()
        false += p_value(*by_cluster(d, prompts))[0] <= 0.05
    share(false, 400, 0.05)


def test_no_difference_has_p_1_and_no_smallest_difference():
    same = paired_difference([1, 2, 3], [1, 2, 3])
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert math.isnan(same.mde)
    one = paired_difference([1, 2], [0, 0], ["p", "p"])
    assert math.isnan(one.p)
    assert math.isnan(one.low)
    constant = mean_difference(np.ones(200))
    assert constant.p == pytest.approx(binomtest(200, 200).pvalue)


def test_benjamini_hochberg():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = [0.001, 0.2, 0.03, 0.04, 0.9]
    assert false_discovery(p) == pytest.approx(list(multitest.multipletests(p, method="fdr_bh")[1]))
    found = false_discovery([0.01, math.nan, 0.02])
    assert found[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])
    assert false_discovery([]) == []


def test_bad_input():
    with pytest.raises(DataError):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(DataError):
        paired_difference([], [])
    with pytest.raises(DataError):
        mean_difference([math.nan])
