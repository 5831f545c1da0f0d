"""95% intervals hold the true value in 95 +- 2% of 500 simulated sets: those that no other module's tests look at.

Few prompts: more have the bootstrap of means (`tests/evaluation/test_stats.py`). docs/lab.md has figures of both.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.chance import share, shifted
from tests.stats.simulated import SIMULATIONS, covers

from tiltyard.stats.agreement import mean_kendall_w
from tiltyard.stats.calibration import JudgedPairs, calibration_table, people_agreement
from tiltyard.stats.habits import preference_habits
from tiltyard.stats.intervals import wilson
from tiltyard.stats.win_rates import win_rate, win_rate_by_prompt

pytestmark = [pytest.mark.slow, pytest.mark.statistical]


def rankings(rng, units: int, spread: float, m: int = 3, k: int = 4):
    """m annotators rank k responses of each prompt by qualities of deviation `spread` and noise of deviation 1."""
    quality = spread * rng.standard_normal((units, 1, k))
    return np.argsort(np.argsort(-(quality + rng.standard_normal((units, m, k))), axis=2), axis=2) + 1


@pytest.mark.parametrize(("units", "spread"), [(15, 1.0), (40, 0.0), (40, 3.0)])
def test_kendall_w(units, spread):
    rng = np.random.default_rng(shifted(51))
    deviations = (rankings(rng, 200_000, spread).sum(1) - 7.5) ** 2
    truth = float(12 * deviations.sum(1).mean() / (9 * 60))
    found = [mean_kendall_w(list(rankings(rng, units, spread)), rounds=400, seed=s) for s in range(SIMULATIONS)]
    covers([f.low for f in found], [f.high for f in found], truth, f"W of {units} prompts, {truth:.2f}:")


def test_ties_of_habits():
    """Three pairs of each prompt; prompts differ in how often they tie."""
    prompts = 30
    rng = np.random.default_rng(shifted(52))
    names, prompt_N, bounds = ["a"] * 3 * prompts, np.repeat(np.arange(prompts), 3), []
    for seed in range(SIMULATIONS):
        tied = rng.random(3 * prompts) < np.repeat(rng.beta(1, 4, prompts), 3)
        won = np.where(tied, 0.5, rng.integers(0, 2, 3 * prompts))
        bounds.append(preference_habits(names, won, prompt_N, rounds=400, seed=seed)["a"].ties.ci)
    covers(*np.array(bounds).T, 0.2, f"ties, {prompts} prompts")


def pairs(rng, prompts: int):
    """Two pairs of each prompt, a judge that likes what is first, longer and its own, and people who err as well."""
    n = 2 * prompts
    shared = np.repeat(0.6 * rng.standard_normal(prompts), 2) * rng.choice([-1, 1], n)
    quality, longer, own = shared + rng.standard_normal(n), rng.choice([-1.0, 1.0], n), rng.choice([0.0, 1.0], n)

    def says(*sums):
        return 1 / (1 + np.exp(-sum(sums)))

    truth = (rng.random(n) < says(1.5 * quality, 0.3 * longer)).astype(float)
    drawn = [rng.random(n) for _ in range(3)]
    signal = (1.2 * quality, 0.6 * longer, 0.8 * own - 0.4)
    first = (drawn[0] < says(*signal, 0.5)).astype(float)
    second = (drawn[1] < says(*signal, -0.5)).astype(float)
    p = (first + second) / 2
    again = (first + (drawn[2] < says(*signal, -0.5))) / 2
    judge = JudgedPairs(p, np.stack([first, second], 1), again, np.where(own == 1, 1.0, 0.0))
    lengths = np.stack([100 + 10 * longer, np.full(n, 100.0)], 1)
    return judge, truth, np.repeat(np.arange(prompts), 2), lengths


COLUMNS = ("agreement", "gain", "kappa", "longer", "longer_excess", "repeat", "first", "disagree", "own_excess")


def test_columns_of_calibration():
    prompts = 60
    rng = np.random.default_rng(shifted(57))
    many = calibration_table({"j": (large := pairs(rng, 60_000))[0]}, *large[1:], rounds=1)[0]
    truth = {name: getattr(many, name).value for name in COLUMNS}
    bounds = {name: [] for name in COLUMNS}
    for seed in range(SIMULATIONS):
        judge, *rest = pairs(rng, prompts)
        row = calibration_table({"j": judge}, *rest, rounds=300, seed=seed)[0]
        for name in COLUMNS:
            bounds[name].append((getattr(row, name).low, getattr(row, name).high))
    inside = {name: int(sum(low <= truth[name] <= high for low, high in bounds[name])) for name in COLUMNS}
    print(f"coverage: {inside} of {SIMULATIONS}")
    for name in COLUMNS:  # 2% is two standard errors of one column, of which there are nine
        share(inside[name], SIMULATIONS, 0.95, name)
    assert abs(np.mean(list(inside.values())) / SIMULATIONS - 0.95) <= 0.02


def test_agreement_of_people():
    """Three people on two pairs of each prompt, a tenth of the votes ties: one and the majority of the others."""
    prompts = 30
    rng = np.random.default_rng(shifted(54))

    def drawn(count: int):
        right = np.repeat(rng.beta(6, 2, count), 2)[:, None]
        vote = np.where(rng.random((2 * count, 3)) < right, 1.0, 0.0)
        return np.where(rng.random(vote.shape) < 0.1, 0.5, vote).tolist(), np.repeat(np.arange(count), 2)

    truth = people_agreement(*drawn(60_000), rounds=1).value
    found = [people_agreement(*drawn(prompts), rounds=300, seed=s) for s in range(SIMULATIONS)]
    covers([f.low for f in found], [f.high for f in found], truth, f"people, {prompts} prompts, {truth:.2f}:")


def test_win_rates_by_scores():
    """Three responses a side: all nine pairs of a prompt count as one; a third of the scores are equal."""
    prompts = 40
    rng = np.random.default_rng(shifted(55))

    def drawn(count: int):
        ease = rng.standard_normal((count, 1))
        return [np.round(ease * s + rng.standard_normal((count, 3)) + d) for s, d in ((0.5, 0.4), (-0.5, 0.0))]

    a, b = drawn(200_000)
    truth = float(((np.sign(a[:, :, None] - b[:, None, :]) + 1) / 2).mean())
    whole, flat = [], []
    for seed in range(SIMULATIONS):
        a, b = drawn(prompts)
        sides = [{str(k): row.tolist() for k, row in enumerate(x)} for x in (a, b)]
        whole.append(win_rate_by_prompt(*sides, rounds=400, seed=seed).ci)
        clusters = np.repeat(np.arange(prompts), 3)
        flat.append(win_rate(a.ravel(), b.ravel(), clusters, rounds=400, seed=seed).ci)
    covers(*np.array(whole).T, truth, f"by prompt, {prompts}:")
    covers(*np.array(flat).T, truth, f"pairs of {prompts} prompts:")


@pytest.mark.parametrize(("n", "p"), [(30, 0.5), (100, 0.8), (300, 0.95)])
def test_wilson(n, p):
    """Exactly, by the binomial law. Of one n and p the coverage jumps: what counts is the mean around p."""
    from scipy.stats import binom

    ends = np.array([wilson(k, n) for k in range(n + 1)])
    near = np.linspace(max(p - 0.03, 0.001), min(p + 0.03, 0.999), 61)
    covered = [binom.pmf(np.arange(n + 1), n, x)[(ends[:, 0] <= x) & (x <= ends[:, 1])].sum() for x in near]
    assert abs(np.mean(covered) - 0.95) <= 0.02
