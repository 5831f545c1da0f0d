"""95% intervals hold the planted value in 95 +- 2% of 500 simulated sets: bootstrap, rankings, length, ties."""

from __future__ import annotations

import numpy as np
import pytest
from tests.chance import shifted
from tests.ratings.planted import limit, planted, strengths
from tests.stats.simulated import SIMULATIONS, covers

from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.plackett_luce import plackett_luce
from tiltyard.stats.ratings.uncertainty import intervals, parameter_covariance

pytestmark = [pytest.mark.slow, pytest.mark.statistical]


def test_bootstrap_of_ratings():
    """Prompts of three dependent battles of three models, a fifth of them ties."""
    battles = 240
    rng, models = np.random.default_rng(shifted(61)), 3
    truth_M = bradley_terry(limit(models, 0.2)).rating_M
    bounds = []
    for seed in range(SIMULATIONS):
        fit = bradley_terry(planted(rng, battles, models, 0.2, each=3))
        found = intervals(fit, method="bootstrap", rounds=300, seed=seed)
        bounds.append((found.low_M, found.high_M))
    for m in range(models):
        covers(*np.array(bounds)[:, :, m].T, truth_M[m], f"bootstrap, {battles} battles, model {m}:")


def test_rankings():
    """Two rankings of four models a prompt, half of the second ones copies of the first."""
    prompts = 40
    rng, models, bounds = np.random.default_rng(shifted(62)), 4, []
    names = [f"m{k}" for k in range(models)]
    for _ in range(SIMULATIONS):
        gumbel = rng.gumbel(size=(prompts, 2, models)) + strengths(models)
        gumbel[:, 1] = np.where(rng.random((prompts, 1)) < 0.5, gumbel[:, 0], gumbel[:, 1])
        order = np.argsort(-gumbel.reshape(2 * prompts, models), axis=1)
        fit = plackett_luce(
            [[[names[m]] for m in row] for row in order], prompt=np.repeat(np.arange(prompts), 2).tolist()
        )
        half_M = 1.959964 * np.sqrt(np.diag(fit.covariance_MM))
        bounds.append((fit.rating_M - half_M, fit.rating_M + half_M))
    for m in range(models):
        covers(*np.array(bounds)[:, :, m].T, strengths(models)[m], f"Plackett-Luce, {prompts} prompts, model {m}:")


def test_the_coefficient_of_length():
    """Length is preferred with 0.8 logits for one deviation, on the scale of tanh; ratings at equal length as well."""
    battles = 150
    rng, models, found = np.random.default_rng(shifted(63)), 3, []
    rating = strengths(models)
    for _ in range(SIMULATIONS):
        a = rng.integers(0, models, battles)
        b = (a + rng.integers(1, models, battles)) % models
        lengths = np.round(rng.normal(100, 30, (battles, 2)))
        d = rating[a] - rating[b] + 0.8 * np.tanh((lengths[:, 0] - lengths[:, 1]) / (30 * np.sqrt(2)))
        outcome = np.where(rng.random(battles) < 1 / (1 + np.exp(-d)), "a", "b")
        fought = battles_of([f"m{i}" for i in a], [f"m{i}" for i in b], outcome.tolist(), lengths=lengths)
        fit = bradley_terry(fought, length_control=True)
        error = np.sqrt(np.diag(parameter_covariance(fit))[models])
        ends = intervals(fit)
        found.append(
            [[fit.length_coefficient - 1.959964 * error, fit.length_coefficient + 1.959964 * error],
             [ends.low_M[0], ends.high_M[0]]]
        )  # fmt: skip
    covers(*np.array(found)[:, 0].T, 0.8, f"length, {battles} battles:")
    covers(*np.array(found)[:, 1].T, rating[0], f"rating at equal length, {battles} battles:")


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_the_parameter_of_ties(ties):
    """Each likelihood on its own votes: log nu = log 0.6, log kappa = log 1.5."""
    rng, models, bounds = np.random.default_rng(shifted(64)), 3, []
    rating, value = strengths(models), {"davidson": np.log(0.6), "rao_kupper": np.log(1.5)}[ties]
    for _ in range(SIMULATIONS):
        a = rng.integers(0, models, 200)
        b = (a + rng.integers(1, models, 200)) % models
        d = rating[a] - rating[b]
        if ties == "davidson":
            total = np.exp(d / 2) + np.exp(-d / 2) + np.exp(value)
            one, other = np.exp(d / 2) / total, np.exp(-d / 2) / total
        else:
            one, other = 1 / (1 + np.exp(-d + value)), 1 / (1 + np.exp(d + value))
        u = rng.random(200)
        outcome = np.where(u < one, "a", np.where(u < one + other, "b", "tie"))
        fit = bradley_terry(battles_of([f"m{i}" for i in a], [f"m{i}" for i in b], outcome.tolist()), ties=ties)
        half = 1.959964 * np.sqrt(np.diag(parameter_covariance(fit))[models])
        bounds.append((np.log(fit.tie_parameter) - half, np.log(fit.tie_parameter) + half))
    covers(*np.array(bounds).T, value, f"{ties}:")
