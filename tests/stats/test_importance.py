"""Means in log space, effective sample size, the Pareto shape and the jackknife."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import genpareto

from tiltyard.stats.importance import (
    effective_samples,
    k_hat,
    log_mean_exp,
    normalised,
    samples_for_k,
    stratified_jackknife,
)


def test_means_and_effective_samples() -> None:
    log_w = np.log(np.array([[1.0, 2.0, 5.0], [4.0, 4.0, 4.0]]))
    assert log_mean_exp(log_w) == pytest.approx(np.log([8 / 3, 4.0]))
    assert effective_samples(log_w) == pytest.approx([64 / 30, 3.0])
    assert normalised(log_w)[0] == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert log_mean_exp(log_w + 5000) == pytest.approx(np.log([8 / 3, 4.0]) + 5000)
    none = np.full((1, 3), -np.inf)
    assert log_mean_exp(none)[0] == -math.inf
    assert effective_samples(none)[0] == 0
    assert effective_samples(np.array([[-np.inf, 0.0, 0.0]]))[0] == pytest.approx(2)


@pytest.mark.statistical
@pytest.mark.parametrize("shape", [-0.3, 0.1, 0.5, 0.9, 1.3])
def test_the_pareto_shape_of_pareto_weights(shape: float) -> None:
    """The tail of Pareto weights is Pareto with their shape; the estimate's error is about (1 + k) / sqrt(tail)."""
    from tests.chance import near, shifted

    n, rng = 20_000, np.random.default_rng(shifted(3))
    weights = genpareto.rvs(shape, size=n, random_state=rng) + 1
    tail = 3 * math.sqrt(n)
    expected = (tail * shape + 5) / (tail + 10)
    near(k_hat(np.log(weights)), expected, (1 + max(shape, 0)) / math.sqrt(tail) + 0.01)


def test_weights_without_a_tail() -> None:
    assert k_hat(np.zeros(100)) == -math.inf
    assert math.isnan(k_hat([0.0, 1.0, 2.0]))
    assert math.isnan(k_hat(np.repeat([0.0, 1.0], 50)))  # two different weights: nothing lies above the threshold
    shifted = np.random.default_rng(0).normal(size=200)
    assert k_hat(shifted) == pytest.approx(k_hat(shifted + 700))
    assert k_hat([*shifted, -np.inf]) == pytest.approx(k_hat(shifted), abs=0.2)


def test_k_hat_of_arviz() -> None:
    """The published fit, which takes log-likelihoods: their negatives are the weights of leave-one-out."""
    from arviz_stats.base import array_stats

    for seed, scale in ((0, 0.5), (1, 1.0), (2, 2.0), (3, 3.0)):
        for count in (64, 100, 1000):
            log_w = np.random.default_rng(seed).normal(scale=scale, size=count)
            assert k_hat(log_w) == pytest.approx(float(array_stats.psislw(-log_w, r_eff=1)[1]), abs=1e-6)


def test_samples_that_a_shape_needs() -> None:
    assert samples_for_k(0.5) == pytest.approx(100)
    assert samples_for_k(0.7) == pytest.approx(10 ** (1 / 0.3))
    assert samples_for_k(1.0) == math.inf
    assert samples_for_k(0.998) == math.inf  # 10^500


@pytest.mark.statistical
def test_the_jackknife_takes_out_the_bias_of_a_logarithm() -> None:
    """log of the mean of 16 + 16 exponential numbers: biased by -1/(2 n), without it by O(1/n^2)."""
    from tests.chance import near, shifted

    x = np.random.default_rng(shifted(5)).exponential(size=(20_000, 32))
    x[:, 16:] *= 3
    plain = np.log(x.mean(-1))
    corrected = stratified_jackknife(np.log, [x], (16, 16))
    truth, error = math.log(2), corrected.std() / math.sqrt(len(x))
    assert abs(plain.mean() - truth) > 5 * error
    near(float(corrected.mean()), truth, error + 2e-3)
    assert stratified_jackknife(np.log, [np.ones((1, 4))], (4,)) == pytest.approx(0)


def test_the_last_bits_of_equal_weights_are_no_tail():
    """A reward of few values: sums in another order must not look like a heavy tail."""
    rng = np.random.default_rng(0)
    log_w = rng.choice([0.0, 0.3, 1.1], size=64)
    noisy = log_w + 1e-15 * rng.normal(size=64)
    assert math.isnan(k_hat(log_w))
    assert math.isnan(k_hat(noisy))


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [64, 100, 1000])
def test_weights_of_few_values_have_no_shape(levels: int, count: int) -> None:
    """However many samples share the highest values: ties are no tail, and a fit to them means nothing."""
    rng = np.random.default_rng(levels)
    for top in range(1, count // 2, max(1, count // 40)):
        log_w = np.zeros(count)
        log_w[:top] = rng.choice(np.linspace(0.5, 3, levels - 1), size=top)
        assert math.isnan(k_hat(log_w)), top
