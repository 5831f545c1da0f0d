"""The exact posterior against its definition, and the identities that make it the target."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.worlds import ASK, BANDIT, TREE, policy
from tests.scoring.stubs import Scripted
from tests.training import tiny
from torch import Tensor

from tiltyard.errors import ConfigError, ScoringError
from tiltyard.posterior import (
    ExactPosterior,
    Target,
    all_responses,
    exact_posterior,
    response_log_probs,
    total_variation,
)
from tiltyard.posterior.exact import kl_divergence
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import FunctionScorer
from tiltyard.types import Group, Response


def made(seed: int, beta: float, count: int = 7) -> tuple[ExactPosterior, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    prior = torch.randn(count, generator=g, dtype=torch.float64).log_softmax(0)
    score = 2 * torch.randn(count, generator=g, dtype=torch.float64)
    return ExactPosterior(tuple((i,) for i in range(count)), prior, score, beta), g


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 20))
def test_the_posterior_is_the_optimum(seed: int, beta: float) -> None:
    """It is normalised, every policy's value falls short by beta KL(policy || pi*), and pi* itself by nothing."""
    posterior, g = made(seed, beta)
    assert float(posterior.probs_Y.sum()) == pytest.approx(1, abs=1e-12)
    best = beta * posterior.log_z
    assert posterior.value() == pytest.approx(best, abs=1e-9)
    policy_Y: Tensor = torch.randn(7, generator=g, dtype=torch.float64).log_softmax(0)
    gap = best - posterior.value(policy_Y)
    assert gap == pytest.approx(beta * posterior.kl_to_posterior(policy_Y), abs=1e-9)
    assert gap >= -1e-9
    brute = [
        math.exp(p + s / beta) for p, s in zip(posterior.log_prior_Y.tolist(), posterior.score_Y.tolist(), strict=True)
    ]
    assert posterior.log_z == pytest.approx(math.log(sum(brute)), abs=1e-9)
    assert posterior.probs_Y.tolist() == pytest.approx([x / sum(brute) for x in brute], abs=1e-12)


def test_limits() -> None:
    """A strong pull gives the prior, a weak one the best response alone."""
    far, _ = made(3, 1e6)
    assert total_variation(far.probs_Y, far.log_prior_Y.exp()) < 1e-5
    near, _ = made(3, 1e-3)
    assert float(near.probs_Y[near.score_Y.argmax()]) == pytest.approx(1)
    assert near.kl_to_prior() == pytest.approx(-float(near.log_prior_Y[near.score_Y.argmax()]))
    assert kl_divergence(torch.tensor([0.0, -math.inf]), torch.tensor([0.0, -math.inf])) == 0


def test_all_responses_exhaust_the_model() -> None:
    for support, vocabulary, longest in ((BANDIT, 6, 1), (TREE, 3, 2)):
        assert all_responses(vocabulary, longest, tiny.EOS) == support
        assert float(response_log_probs(policy(support), ASK, support).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_a_target_of_a_model_and_a_function() -> None:
    prior = policy(TREE)
    target = Target(prior, FunctionScorer(lambda prompt, response: float(len(response.ids))), 0.5)
    posterior = exact_posterior(target, ASK, TREE)
    expected = (response_log_probs(prior, ASK, TREE) + 2 * torch.tensor([len(y) for y in TREE])).softmax(0)
    torch.testing.assert_close(posterior.probs_Y, expected)
    assert posterior.expected_score() > posterior.expected_score(posterior.log_prior_Y)
    group = Group(ASK, (Response(ids=(1,)), Response(ids=(0, 2))))
    assert target.log_weights([group]) == [(2.0, 4.0)]


@pytest.mark.statistical
def test_importance_weights_of_samples_estimate_z() -> None:
    """Z = E_prior[exp(score / beta)]: samples of the prior, weighted by the target."""
    from tests.chance import near, shifted

    prior = policy(TREE)
    target = Target(prior, FunctionScorer(lambda prompt, response: float(sum(response.ids)) / 4), 0.5)
    (group,) = sample(prior, [ASK], 4000, SampleSettings(max_tokens=2, max_concurrent=4000), seed=shifted(2))
    weight = torch.tensor(target.log_weights([group])[0], dtype=torch.float64).exp()
    z = math.exp(exact_posterior(target, ASK, TREE).log_z)
    near(float(weight.mean()), z, float(weight.std()) / math.sqrt(len(weight)))


def test_what_a_target_refuses() -> None:
    scorer = FunctionScorer(lambda prompt, response: 0.0)
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="strength"):
            Target(policy(TREE), scorer, beta)
        with pytest.raises(ConfigError, match="strength"):
            ExactPosterior((), torch.zeros(0), torch.zeros(0), beta)
    group = Group(ASK, (Response(ids=(1,)), Response(ids=(0, 2))))
    for leaves_out in (lambda groups: [], lambda groups: groups):
        with pytest.raises(ScoringError, match=r"a score of every response|no score that can be learnt from"):
            Target(policy(TREE), Scripted(leaves_out), 1.0).log_weights([group])
