"""Samples of models: the columns that the estimators need, against the exact posterior of an enumerable model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.chance import near, shifted
from tests.oracles.worlds import ASK, TREE, policy
from tests.scoring.stubs import Scripted

from tiltyard.errors import ConfigError
from tiltyard.posterior import Prior, estimate, exact_posterior, exp, response_log_probs, score
from tiltyard.posterior.frontier import best_of_n, best_of_n_bound, max_weights, optimal_curve
from tiltyard.posterior.measure import measure_policy, measure_prior
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.types import Prompt

PROMPTS = [ASK] * 60
REWARD = FunctionScorer(lambda prompt, response: 0.3 * sum(response.ids) - 0.5 * (response.ids[0] == 2))


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_a_model_is_measured_exactly_on_average(temperature: float) -> None:
    """At the temperature of sampling, whatever it is; the Rao-Blackwell sum has less variance than the log-ratio."""
    target = Prior(policy(TREE), temperature) * exp(score(REWARD) / 0.5)
    model = policy(TREE, 5)
    sampling = SampleSettings(temperature=temperature, max_tokens=2, max_concurrent=2000)
    prior = measure_prior(target, PROMPTS, 32, sampling, seed=shifted(3))
    groups, samples = measure_policy(model, target, prior, 32, sampling, seed=shifted(3))
    assert len(groups) == len(PROMPTS)
    exact = exact_posterior(target, ASK, TREE)
    policy_Y = response_log_probs(model, ASK, TREE, temperature)
    terms = estimate(samples)
    expected = {
        "log_z": exact.log_z,
        "kl": exact.kl_to_prior(policy_Y),
        "gap": exact.kl_to_posterior(policy_Y),
        "reverse": exact.kl_from_posterior(policy_Y),
        "entropy": -float((policy_Y.exp() * policy_Y).sum()),
    }
    for name, value in expected.items():
        found = getattr(terms, name)
        near(found.mean(), value, found.std() / math.sqrt(len(found)) + 2e-4, name)
    assert terms.kl.var() < terms.kl_sampled.var()
    places = [TREE.index(r.ids) for g in groups for r in g.responses]
    np.testing.assert_allclose(samples.log_policy[:, :32].ravel(), policy_Y[places].numpy(), atol=1e-9)
    own = estimate(prior.as_policy())
    assert np.abs(own.kl).max() == 0
    gap = exact.log_z - exact.expected_factor(exact.log_prior_Y)
    near(own.gap.mean(), gap, own.gap.std() / math.sqrt(len(own.gap)) + 2e-4)


def test_truncated_samples_are_refused() -> None:
    target = Prior(policy(TREE)) * exp(score(REWARD))
    for sampling in (SampleSettings(top_k=1), SampleSettings(top_p=0.9), SampleSettings(temperature=0.5)):
        with pytest.raises(ConfigError, match="truncated distribution"):
            measure_prior(target, PROMPTS, 2, sampling)


def test_the_convention_of_cut_responses() -> None:
    target = Prior(policy(TREE)) * exp(score(Scripted(FunctionScorer(lambda p, r: 0.0).score)))
    sampling = SampleSettings(max_tokens=2, max_concurrent=2000)
    prior = measure_prior(target, PROMPTS[:2], 16, sampling, cut="ended")
    assert prior.ended is not None
    ended = [[r.finish == "stop" for r in g.responses] for g in prior.groups]
    assert prior.ended.tolist() == ended
    assert measure_prior(target, PROMPTS[:2], 16, sampling).ended is None


def test_the_weights_of_the_highest_of_some() -> None:
    """n = 1 is the mean, n = M the largest, and the weights are a distribution."""
    for m in (1, 2, 7, 64):
        for n in range(1, m + 1):
            assert max_weights(m, n).sum() == pytest.approx(1)
        assert max_weights(m, 1) == pytest.approx(np.full(m, 1 / m))
        assert max_weights(m, m)[-1] == pytest.approx(1)
    assert max_weights(4, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])


def test_the_frontier_of_normal_rewards() -> None:
    """For a reward N(0, 1): E[r] = 1/beta and KL = 1/(2 beta^2) along the curve, and best-of-N lies below it."""
    reward = np.random.default_rng(0).normal(size=(20, 4000))
    points = optimal_curve(reward, [4.0, 2.0, 1.0, 0.01])
    assert [p.at for p in points] == [4.0, 2.0, 1.0]  # at 0.01 one sample has all the weight
    for point in points:
        assert point.reward == pytest.approx(1 / point.at, abs=0.03)
        assert point.kl == pytest.approx(1 / (2 * point.at**2), abs=0.03)
    best = best_of_n(reward, [1, 2, 4, 8000])
    assert [p.at for p in best] == [1, 2, 4]
    assert best[1].reward == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)
    for point in best:
        assert point.bound == pytest.approx(best_of_n_bound(point.at))
        assert point.kl == pytest.approx(point.bound, abs=0.01)
        assert point.reward <= math.sqrt(2 * point.bound) + 0.02
    tied = best_of_n(np.tile([0.0, 1.0], (3, 500)), [64])
    assert tied[0].kl == pytest.approx(math.log(2))


def test_prompts_without_ids_are_an_error() -> None:
    target = Prior(policy(TREE)) * exp(score(REWARD))
    with pytest.raises(Exception, match="no token ids"):
        measure_prior(target, [Prompt(text="x")], 2, SampleSettings(max_tokens=2))
    assert torch.is_grad_enabled()
