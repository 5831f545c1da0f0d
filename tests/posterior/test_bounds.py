"""Both bounds of log Z: in samples of a table, and of a model by exact samples of pi*."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.chance import near, shifted
from tests.oracles.worlds import ASK, TREE, policy
from tests.posterior.test_estimates import world

from tiltyard.errors import DataError
from tiltyard.posterior import Prior, exact_posterior, exp, score
from tiltyard.posterior.bounds import UpperBound, sandwich, upper_bound
from tiltyard.posterior.measure import measure_prior
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import FunctionScorer, WeightedScorer, highest_score
from tiltyard.stats.importance import log_mean_exp


@pytest.mark.statistical
def test_both_bounds_enclose_log_z() -> None:
    table = world(6, 1, spread=1.2)
    rng = np.random.default_rng(shifted(7))
    exact, _ = table.exact(0)
    star = exact.probs_Y.numpy()
    widths = []
    for m in (8, 64):
        factor = table.draw(rng, np.zeros((4000,), int), 1, m).log_factor[:, 1:]
        drawn = exact.log_factor_Y.numpy()[rng.choice(len(star), size=(4000, 1), p=star)]
        upper = np.array([sandwich(one, rest) for one, rest in zip(drawn, factor, strict=True)])
        lower = log_mean_exp(factor)
        assert upper.mean() > exact.log_z - 4 * upper.std() / math.sqrt(len(upper))
        assert lower.mean() < exact.log_z + 4 * lower.std() / math.sqrt(len(lower))
        widths.append(upper.mean() - lower.mean())
    assert 0 < widths[1] < widths[0] / 3
    assert math.isnan(sandwich(np.array([]), np.zeros(4)))


def last_token(prompt, response):
    return 1.5 if response.ids[0] == 2 else -0.1 * response.ids[-1]


last_token.highest = 1.5


@pytest.mark.statistical
def test_exact_samples_of_a_model() -> None:
    """With one sample of the prior in the mean, the bound is the mean g of exact samples: E_pi*[g]."""
    reward = FunctionScorer(last_token)
    target = Prior(policy(TREE)) * exp(score(reward) / 0.5)
    sampling = SampleSettings(max_tokens=2, max_concurrent=2000)
    exact = exact_posterior(target, ASK, TREE)
    highest = highest_score(reward) / 0.5
    prior = measure_prior(target, [ASK] * 300, 2, sampling, seed=shifted(1))
    found = upper_bound(target, prior, highest, sampling, seed=shifted(2))
    known = found.log_z[~np.isnan(found.log_z)]
    assert len(known) > 290  # prompts without an exact sample among the first got more
    near(known.mean(), exact.expected_factor(), known.std() / math.sqrt(len(known)) + 0.01)
    assert found.exact >= len(known)
    many = measure_prior(target, [ASK] * 100, 64, sampling, seed=shifted(3))
    closer = upper_bound(target, many, highest, sampling, seed=shifted(4))
    lower = log_mean_exp(many.log_factor)
    error = closer.log_z.std() / 10 + lower.std() / 10
    assert lower.mean() - 4 * error < exact.log_z < closer.log_z.mean() + 4 * error
    assert 0 < closer.width(lower) < 0.2
    with pytest.raises(DataError, match="above its declared bound"):
        upper_bound(target, many, 0.1, sampling)


def test_a_width_needs_bounds_of_nine_prompts_in_ten() -> None:
    bound = UpperBound(np.array([1.0] * 19 + [math.nan]), 19, 100)
    assert bound.width(np.full(20, 0.75)) == pytest.approx(0.25)
    assert math.isnan(replace(bound, log_z=np.array([1.0] * 16 + [math.nan] * 4)).width(np.zeros(20)))


def test_the_highest_score_that_a_reward_declares() -> None:
    bounded, free = FunctionScorer(last_token), FunctionScorer(lambda prompt, response: 0.0)
    assert highest_score(bounded) == 1.5
    assert highest_score(free) is None
    assert WeightedScorer([(2.0, bounded), (1.0, FunctionScorer(last_token, "other"))]).highest == 4.5
    assert WeightedScorer([(2.0, bounded), (1.0, free)]).highest is None
    assert WeightedScorer([(-1.0, bounded)]).highest is None
