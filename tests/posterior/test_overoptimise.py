"""The forms of over-optimisation: exact data give their coefficients, and no peak is claimed outside the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.chance import shifted

from tiltyard.posterior.frontier import best_of_n
from tiltyard.posterior.overoptimise import basis, best_of_n_gold, fit_best_of_n, fit_rl, peaks

D = np.linspace(0.05, 3.0, 40)


@pytest.mark.parametrize(("alpha", "beta", "peak"), [(1.2, 0.8, math.exp(0.5)), (0.5, 0.1, None), (0.3, -0.2, None)])
def test_exact_data_give_the_coefficients(alpha: float, beta: float, peak: float | None) -> None:
    """The form of RL; the peak exp(alpha / beta - 1) only where it lies within the data. At the start gold is flat."""
    gold = np.where(D > 0.3, 0.2 + basis("rl", D) @ [alpha, beta], 0.2)
    fit = fit_rl(D**2, gold)
    assert fit is not None
    assert fit.start == pytest.approx(0.2)
    assert (fit.alpha.value, fit.beta.value) == pytest.approx((alpha, beta))
    assert fit.at(D[D > 0.3]) == pytest.approx(gold[D > 0.3])
    assert (None if fit.peak is None else fit.peak.value) == (None if peak is None else pytest.approx(peak))


def test_a_noisy_rise_has_no_peak() -> None:
    rng = np.random.default_rng(0)
    rise = fit_rl(D**2, 0.4 * D + 0.05 * rng.normal(size=len(D)))
    assert rise is not None
    assert rise.peak is None
    assert fit_rl(np.full(10, 0.01), np.zeros(10)) is None  # never left the start


def test_peaks_of_both_forms() -> None:
    one = np.array([1.0, 1.0])
    assert peaks("best_of_n", one, np.array([0.25, -0.1])) == pytest.approx([2.0, np.inf])
    assert peaks("rl", one, np.array([0.5, 0.0])) == pytest.approx([math.e, np.inf])


@pytest.mark.statistical
def test_the_interval_of_a_coefficient_covers_it() -> None:
    rng = np.random.default_rng(shifted(1))
    hits = 0
    for _ in range(200):
        gold = np.where(D > 0.3, 0.2 + basis("rl", D) @ [1.2, 0.8], 0.2) + 0.1 * rng.normal(size=len(D))
        fit = fit_rl(D**2, gold, rounds=300)
        assert fit is not None
        hits += fit.alpha.low <= 1.2 <= fit.alpha.high
    assert 180 <= hits <= 200


def test_gold_of_the_best_by_another_reward() -> None:
    """Equal to the plain estimator where gold is the reward; equal rewards are chosen among by chance."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(5, 16))
    counts = [1, 2, 4, 16]
    kl, gold = best_of_n_gold(reward, reward, counts)
    assert gold.mean(0) == pytest.approx([p.reward for p in best_of_n(reward, counts)])
    assert kl.mean(0) == pytest.approx([p.kl for p in best_of_n(reward, counts)])
    tied = np.array([[0.0, 0.0, 1.0, 1.0]])
    _, gold = best_of_n_gold(tied, np.array([[0.0, 2.0, 4.0, 8.0]]), [1, 2, 4])
    # of two of four, 5 of 6 pairs have one of the upper level, whose mean is 6; the other pair's mean is 1
    assert gold[0] == pytest.approx([3.5, (5 * 6 + 1) / 6, 6.0])


def test_best_of_n_of_a_misleading_reward() -> None:
    """A proxy that is right in the middle and wrong at its top: gold rises, then falls."""
    rng = np.random.default_rng(1)
    proxy = rng.normal(size=(60, 400))
    gold = proxy - 0.45 * np.maximum(proxy, 0.0) ** 2 + 0.05 * rng.normal(size=proxy.shape)
    fit = fit_best_of_n(proxy, gold, [1, 2, 4, 8, 16, 32, 64, 128])
    assert fit is not None
    assert fit.beta.low > 0
    assert fit.peak is not None
    assert fit.reach[0] < fit.peak.low < fit.peak.high < fit.reach[1]
    honest = fit_best_of_n(proxy, proxy, [1, 2, 4, 8, 16, 32, 64, 128])
    assert honest is not None
    assert honest.peak is None
    assert fit_best_of_n(proxy, proxy, [1, 2, 4]) is None
