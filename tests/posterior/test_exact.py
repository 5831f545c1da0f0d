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
    Prior,
    all_responses,
    best_of_n_probs,
    exact_posterior,
    exp,
    response_log_probs,
    score,
    total_variation,
)
from tiltyard.posterior.exact import entropy_of, kl_divergence
from tiltyard.posterior.frontier import best_of_n_bound, level_kl
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import FunctionScorer
from tiltyard.types import Group, Response


def made(seed: int, beta: float, count: int = 7) -> tuple[ExactPosterior, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    prior = torch.randn(count, generator=g, dtype=torch.float64).log_softmax(0)
    reward = 2 * torch.randn(count, generator=g, dtype=torch.float64)
    return ExactPosterior(tuple((i,) for i in range(count)), prior, reward / beta), g


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 20))
def test_the_posterior_is_the_optimum(seed: int, beta: float) -> None:
    """It is normalised, every policy's value falls short by KL(policy || pi*), and pi* itself by nothing."""
    posterior, g = made(seed, beta)
    assert float(posterior.probs_Y.sum()) == pytest.approx(1, abs=1e-12)
    best = posterior.log_z
    assert posterior.value() == pytest.approx(best, abs=1e-9)
    assert posterior.kl_to_prior() == pytest.approx(posterior.expected_factor() - best, abs=1e-9)
    assert posterior.entropy == pytest.approx(-float((posterior.probs_Y * posterior.log_probs_Y).sum()), abs=1e-9)
    policy_Y: Tensor = torch.randn(7, generator=g, dtype=torch.float64).log_softmax(0)
    gap = best - posterior.value(policy_Y)
    assert gap == pytest.approx(posterior.kl_to_posterior(policy_Y), abs=1e-9)
    assert gap >= -1e-9
    assert posterior.kl_from_posterior(policy_Y) == pytest.approx(
        kl_divergence(posterior.log_probs_Y, policy_Y), abs=1e-9
    )
    pairs = zip(posterior.log_prior_Y.tolist(), posterior.log_factor_Y.tolist(), strict=True)
    brute = [math.exp(p + g) for p, g in pairs]
    assert posterior.log_z == pytest.approx(math.log(sum(brute)), abs=1e-9)
    assert posterior.probs_Y.tolist() == pytest.approx([x / sum(brute) for x in brute], abs=1e-12)


def test_limits() -> None:
    """A strong pull gives the prior, a weak one the best response alone."""
    far, _ = made(3, 1e6)
    assert total_variation(far.probs_Y, far.log_prior_Y.exp()) < 1e-5
    near, _ = made(3, 1e-3)
    assert float(near.probs_Y[near.log_factor_Y.argmax()]) == pytest.approx(1)
    assert near.kl_to_prior() == pytest.approx(-float(near.log_prior_Y[near.log_factor_Y.argmax()]))
    assert kl_divergence(torch.tensor([0.0, -math.inf]), torch.tensor([0.0, -math.inf])) == 0


def test_all_responses_exhaust_the_model() -> None:
    for support, vocabulary, longest in ((BANDIT, 6, 1), (TREE, 3, 2)):
        assert all_responses(vocabulary, longest, tiny.EOS) == support
        assert float(response_log_probs(policy(support), ASK, support).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_a_target_of_a_model_and_a_function() -> None:
    prior = policy(TREE)
    length = FunctionScorer(lambda prompt, response: float(len(response.ids)))
    target = Prior(prior) * exp(score(length) / 0.5)
    posterior = exact_posterior(target, ASK, TREE)
    expected = (response_log_probs(prior, ASK, TREE) + 2 * torch.tensor([len(y) for y in TREE])).softmax(0)
    torch.testing.assert_close(posterior.probs_Y, expected)
    assert posterior.expected_factor() > posterior.expected_factor(posterior.log_prior_Y)
    group = Group(ASK, (Response(ids=(1,)), Response(ids=(0, 2))))
    assert target.log_weights([group]) == [(2.0, 4.0)]


@pytest.mark.statistical
def test_importance_weights_of_samples_estimate_z() -> None:
    """Z = E_prior[exp(score / beta)]: samples of the prior, weighted by the target."""
    from tests.chance import near, shifted

    prior = policy(TREE)
    target = Prior(prior) * exp(score(FunctionScorer(lambda prompt, response: float(sum(response.ids)) / 4)) / 0.5)
    (group,) = sample(prior, [ASK], 4000, SampleSettings(max_tokens=2, max_concurrent=4000), seed=shifted(2))
    weight = torch.tensor(target.log_weights([group])[0], dtype=torch.float64).exp()
    z = math.exp(exact_posterior(target, ASK, TREE).log_z)
    near(float(weight.mean()), z, float(weight.std()) / math.sqrt(len(weight)))


def test_what_a_target_refuses() -> None:
    scorer = FunctionScorer(lambda prompt, response: 0.0)
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="strength"):
            score(scorer) / beta
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="a distribution"):
            Prior(policy(TREE), temperature)
    with pytest.raises(ConfigError, match="finite"):
        math.inf * score(scorer)
    group = Group(ASK, (Response(ids=(1,)), Response(ids=(0, 2))))
    for leaves_out in (lambda groups: [], lambda groups: groups):
        with pytest.raises(ScoringError, match=r"a score of every response|no score that can be learnt from"):
            (Prior(policy(TREE)) * exp(score(Scripted(leaves_out)))).log_weights([group])


def test_a_factor_is_a_sum_of_scores() -> None:
    length = score(FunctionScorer(lambda prompt, response: float(len(response.ids))))
    first = score(FunctionScorer(lambda prompt, response: float(response.ids[0])))
    target = Prior(policy(TREE)) * exp(length / 0.5 + 3 * first)
    group = Group(ASK, (Response(ids=(1,)), Response(ids=(2, 2))))
    assert target.log_weights([group]) == [(5.0, 10.0)]


def test_the_temperature_of_a_prior_is_that_of_its_responses() -> None:
    prior = policy(TREE)
    flat = Prior(prior, 2.0) * exp(score(FunctionScorer(lambda prompt, response: 0.0)))
    posterior = exact_posterior(flat, ASK, TREE)
    assert float(posterior.probs_Y.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(posterior.log_prior_Y, response_log_probs(prior, ASK, TREE, 2.0))
    assert entropy_of(posterior.log_prior_Y) > entropy_of(response_log_probs(prior, ASK, TREE))


def test_a_constrained_prior_has_the_moments() -> None:
    """For one feature of 0 or 1: exp(lambda) = mu/(1-mu) (1-p0)/p0 with the share p0 that the samples have."""
    prior = policy(TREE)
    (group,) = sample(prior, [ASK], 400, SampleSettings(max_tokens=2, max_concurrent=400), seed=1)
    short = FunctionScorer(lambda prompt, response: float(len(response.ids) == 1))
    share = sum(len(r.ids) == 1 for r in group.responses) / 400
    target = Prior(prior).constrain([short], [0.9], [group])
    ((coefficient, _),) = target.log_factor.terms
    assert math.exp(coefficient) == pytest.approx(9 * (1 - share) / share, rel=1e-6)
    with pytest.raises(ConfigError, match="no tilt of the prior has this mean"):
        Prior(prior).constrain([short], [1.2], [group])
    with pytest.raises(ConfigError, match="one moment a feature"):
        Prior(prior).constrain([short], [], [group])


def test_a_moment_of_one_is_a_pointwise_constraint() -> None:
    """What lacks the feature is gone but for rounding; another moment holds under it; targets are constrained too."""
    prior = policy(TREE)
    (group,) = sample(prior, [ASK], 400, SampleSettings(max_tokens=2, max_concurrent=400), seed=1)
    short = FunctionScorer(lambda prompt, response: float(len(response.ids) == 1), "short")
    first = FunctionScorer(lambda prompt, response: float(response.ids[0]), "first")
    target = Prior(prior).constrain([short], [0.0], [group])
    assert target.log_factor.terms[0][0] == -40
    posterior = exact_posterior(target, ASK, TREE)
    long_Y = torch.tensor([len(y) == 2 for y in TREE])
    assert float(posterior.probs_Y[~long_Y].sum()) < 1e-15
    torch.testing.assert_close(posterior.probs_Y[long_Y], (posterior.log_prior_Y[long_Y]).softmax(0))
    both = Prior(prior).constrain([first, short], [1.0, 0.0], [group])
    (row,) = both.log_weights([group])
    weight = torch.tensor(row, dtype=torch.float64).softmax(0)
    assert float((weight * torch.tensor([float(r.ids[0]) for r in group.responses])).sum()) == pytest.approx(1)
    again = target.constrain([first], [1.0], [group])
    assert again.log_factor.terms[-1][0] == pytest.approx(both.log_factor.terms[0][0], abs=1e-6)
    never = FunctionScorer(lambda prompt, response: 0.0, "never")
    with pytest.raises(ConfigError, match="no sample has what is required"):
        Prior(prior).constrain([never], [1.0], [group])


def test_the_constant_of_a_binary_constraint() -> None:
    """methods.md, sharp constants: p0 = 0.3, mu = 0.9 gives ln 9 + ln(7/3)."""
    from tiltyard.posterior.constraints import solve_moments

    feature, prior = torch.tensor([[[1.0], [0.0]]]).numpy(), torch.tensor([[0.3, 0.7]]).log().numpy()
    assert solve_moments(feature, [0.9], prior) == pytest.approx([3.044522], abs=1e-6)
    assert solve_moments(feature, [0.3], prior) == pytest.approx([0.0], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200))
def test_best_of_n_is_what_enumeration_gives(seed: int, n: int) -> None:
    """Its KL is below the bound; N = 1 is the prior; best of N of best of M is best of N M where no scores tie."""
    g = torch.Generator().manual_seed(seed)
    prior = torch.rand(6, generator=g, dtype=torch.float64) + 0.01
    prior = prior / prior.sum()
    reward = torch.randint(0, 4, (6,), generator=g).double()
    probs = best_of_n_probs(prior, reward, n)
    assert float(probs.sum()) == pytest.approx(1, abs=1e-9)
    kl = kl_divergence(probs.log(), prior.log())
    assert kl <= best_of_n_bound(n) + 1e-9
    levels = torch.unique(reward)
    mass = torch.stack([prior[reward == level].sum() for level in levels]).numpy()
    assert level_kl(mass, n) == pytest.approx(kl, abs=1e-9)
    torch.testing.assert_close(best_of_n_probs(prior, reward, 1), prior)
    distinct = torch.randn(6, generator=g, dtype=torch.float64)
    twice = best_of_n_probs(best_of_n_probs(prior, distinct, 3), distinct, n)
    torch.testing.assert_close(twice, best_of_n_probs(prior, distinct, 3 * n), atol=1e-9, rtol=1e-6)


def test_best_of_n_brute_force() -> None:
    """Three draws over all 6^3 outcomes, ties by a fair choice."""
    import itertools

    prior = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.05, 0.2], dtype=torch.float64)
    reward = [1.0, 0.0, 1.0, 2.0, 2.0, -1.0]
    found = torch.zeros(6, dtype=torch.float64)
    for draws in itertools.product(range(6), repeat=3):
        chance = float(torch.stack([prior[i] for i in draws]).prod())
        best = [i for i in draws if reward[i] == max(reward[j] for j in draws)]
        for i in best:
            found[i] += chance / len(best)
    torch.testing.assert_close(best_of_n_probs(prior, torch.tensor(reward), 3), found)


def test_two_equal_answers_cost_best_of_n_at_most_log_2() -> None:
    """Beirami et al. 2401.01879: P(top) = 1 - 2^-n, and the KL stays below log 2 while the bound grows."""
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for n in (1, 2, 4, 64, 1024):
        probs = best_of_n_probs(half, torch.tensor([0.0, 1.0]), n)
        assert float(probs[1]) == pytest.approx(1 - 0.5**n)
        assert kl_divergence(probs.log(), half.log()) <= math.log(2) < best_of_n_bound(64)
    assert kl_divergence(best_of_n_probs(half, torch.tensor([0.0, 1.0]), 4).log(), half.log()) == pytest.approx(
        0.4594, abs=1e-4
    )
    assert kl_divergence(best_of_n_probs(half, torch.tensor([0.0, 1.0]), 2).log(), half.log()) == pytest.approx(
        0.130812, abs=1e-6
    )
