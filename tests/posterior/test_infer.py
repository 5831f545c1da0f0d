"""Samplers that pick among candidates, against distributions that are known otherwise."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from tests.chance import follows, near, shifted
from tests.oracles.worlds import ASK, BANDIT, COIN, TREE, give_law, policy, scalar

from tiltyard.errors import ConfigError, DataError
from tiltyard.posterior import Prior, Target, best_of_n_probs, exact_posterior, exp, score, total_variation
from tiltyard.posterior.estimates import accepts
from tiltyard.posterior.exact import kl_divergence
from tiltyard.posterior.infer import SAMPLERS, Drawn, PosteriorSampler, accept_from_pool, make_sampler, pessimism_probs
from tiltyard.posterior.infer.base import distance_of
from tiltyard.posterior.infer.best_of_n import rank_density
from tiltyard.posterior.infer.pessimism import chances, threshold
from tiltyard.posterior.infer.quasi_rejection import tv_bound
from tiltyard.posterior.infer.report import report_of
from tiltyard.sampling import SampleSettings
from tiltyard.scoring import FunctionScorer

# scores with ties: levels are {0, 3}, {1, 4}, {2, 5, ...}
LEVELS = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 3) / 2, time_limit=None)
SAMPLING = SampleSettings(max_tokens=2, max_concurrent=4096)


def world(support=TREE, beta: float = 0.5) -> tuple[Target, torch.Tensor, torch.Tensor]:
    """A target over a few responses, the prior's probabilities, and the factors g."""
    target = Prior(policy(support, seed=3)) * exp(score(LEVELS) / beta)
    posterior = exact_posterior(target, ASK, support)
    return target, posterior.log_prior_Y.exp(), posterior.log_factor_Y


def drawn(sampler: PosteriorSampler, target: Target, n: int, seed: int = 1, longest: int = 2) -> Drawn:
    (found,) = sampler.draw(
        target, [ASK], n, SampleSettings(max_tokens=longest, max_concurrent=4096), seed=shifted(seed)
    )
    return found


def counts(found: Drawn) -> Counter:
    return Counter(response.ids for response in found.group.responses)


def as_law(support, p: torch.Tensor) -> dict:
    p = p / p.sum()
    return {y: float(x) for y, x in zip(support, p, strict=True)}


@pytest.mark.statistical
@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_is_its_formula_under_ties(n: int) -> None:
    target, prior_Y, factor_Y = world()
    found = drawn(make_sampler("best_of_n", candidates=n), target, 1500)
    follows(counts(found), as_law(TREE, best_of_n_probs(prior_Y, factor_Y, n)))
    assert found.sampled == 1500 * n
    assert found.accepted == len(found.group.responses) == found.wanted == 1500


@pytest.mark.statistical
def test_best_of_poisson_is_its_formula() -> None:
    """1 + Poisson(mu) candidates: the mixture of best-of-N over N is F exp(mu (F - 1)), level by level."""
    target, prior_Y, factor_Y = world()
    mu = 2.5
    weights = [math.exp(-mu) * mu**k / math.factorial(k) for k in range(60)]
    expected = sum(w * best_of_n_probs(prior_Y, factor_Y, 1 + k) for k, w in enumerate(weights))
    found = drawn(make_sampler("best_of_poisson", candidates=1 + mu), target, 1500)
    follows(counts(found), as_law(TREE, expected))
    # the density of the report, on responses in proportion to the prior
    sizes = (prior_Y * 20_000).round().long()
    factor_M = factor_Y.repeat_interleave(sizes).numpy()
    density_M = rank_density(factor_M, lambda high: high * np.exp(mu * (high - 1)))
    exact_M = (expected / prior_Y).repeat_interleave(sizes).numpy()
    assert density_M == pytest.approx(exact_M, rel=2e-3)


@pytest.mark.statistical
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_rejection_is_exact(beta: float) -> None:
    target, _, _ = world(beta=beta)
    posterior = exact_posterior(target, ASK, TREE)
    found = drawn(make_sampler("rejection", bound=1.0 / beta, most=100_000), target, 1500)
    follows(counts(found), as_law(TREE, posterior.probs_Y))
    rate = math.exp(posterior.log_z - 1.0 / beta)
    near(found.accepted / found.sampled, rate, math.sqrt(rate * (1 - rate) / found.sampled))
    assert found.distance.kl == pytest.approx(0, abs=1e-9)
    assert found.distance.kl_to_prior == pytest.approx(posterior.kl_to_prior(), abs=0.1)


@pytest.mark.statistical
def test_quasi_rejection_keeps_its_promise() -> None:
    """p_B = prior min(exp g, B) / Z_B, accepted at the rate Z_B / B, and TV to pi* is at most 1 - Z_B / Z."""
    target, prior_Y, factor_Y = world(beta=0.25)
    posterior = exact_posterior(target, ASK, TREE)
    for bound in (1.0, 2.0, 4.0):
        clipped = prior_Y * factor_Y.clamp(max=bound).exp()
        found = drawn(make_sampler("quasi_rejection", bound=bound, most=100_000), target, 1200)
        follows(counts(found), as_law(TREE, clipped))
        rate = float(clipped.sum()) / math.exp(bound)
        near(found.accepted / found.sampled, rate, math.sqrt(rate * (1 - rate) / found.sampled) + 1e-9)
        tv = total_variation(clipped / clipped.sum(), posterior.probs_Y)
        limit = 1 - float(clipped.sum()) / math.exp(posterior.log_z)
        assert tv <= limit + 1e-9
        sizes = (prior_Y * 20_000).round().long()
        assert tv_bound(factor_Y.repeat_interleave(sizes).numpy(), bound) == pytest.approx(limit, abs=2e-3)
        assert found.distance.tv == pytest.approx(tv, abs=0.05)
    assert tv == pytest.approx(0, abs=1e-12)  # the last bound is one
    pilot = drawn(make_sampler("quasi_rejection", candidates=32), target, 10)
    assert len(pilot.group.responses) == 10


@pytest.mark.statistical
def test_importance_resampling_of_two_is_the_closed_form() -> None:
    """One of two candidates by weight: p(y) sum_y' p(y') 2 w(y) / (w(y) + w(y'))."""
    target, prior_Y, factor_Y = world()
    w = factor_Y.exp()
    law = (prior_Y[:, None] * prior_Y[None] * 2 * w[:, None] / (w[:, None] + w[None])).sum(1)
    assert float(law.sum()) == pytest.approx(1)
    sampler = make_sampler("importance", candidates=2)
    prompts = [ASK] * 1500
    found = sampler.draw(target, prompts, 1, SAMPLING, seed=shifted(2))
    follows(Counter(one.group.responses[0].ids for one in found), as_law(TREE, law))
    # and the report's density, by bootstrap pools
    sizes = (prior_Y * 2000).round().long()
    density_M = sampler.density(factor_Y.repeat_interleave(sizes).numpy(), np.random.default_rng(0))
    by_response = torch.tensor(density_M).split(sizes.tolist())
    ratio = torch.tensor([float(part.mean()) for part in by_response])
    assert ratio.tolist() == pytest.approx((law / prior_Y).tolist(), abs=0.12)


def test_pessimism_picks_by_its_formula() -> None:
    """The weights max(0, g - t) have the mean 1, and over all responses they are the optimum under chi-square."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 9):
        g = rng.normal(size=size) * 2
        t = threshold(g)
        assert np.maximum(g - t, 0).mean() == pytest.approx(1)
        assert chances(g) == pytest.approx(np.maximum(g - t, 0) / size)
    # the optimum of E[g] - 1/2 chi^2: no other distribution does better
    prior, g = rng.dirichlet(np.ones(6)), rng.normal(size=6) * 3
    best = pessimism_probs(prior, g)
    assert best.sum() == pytest.approx(1)

    def value(p: np.ndarray) -> float:
        return float(p @ g - 0.5 * ((p - prior) ** 2 / prior).sum())

    for _ in range(200):
        other = rng.dirichlet(np.ones(6))
        assert value(0.9 * best + 0.1 * other) <= value(best) + 1e-12


@pytest.mark.statistical
def test_pessimism_with_two_candidates_is_enumerated() -> None:
    target, prior_Y, factor_Y = world(BANDIT, beta=0.4)
    law = torch.zeros(len(BANDIT), dtype=torch.float64)
    for i, j in itertools.product(range(len(BANDIT)), repeat=2):
        pick = chances(np.array([factor_Y[i], factor_Y[j]], dtype=np.float64))
        law[i] += prior_Y[i] * prior_Y[j] * pick[0]
        law[j] += prior_Y[i] * prior_Y[j] * pick[1]
    found = drawn(make_sampler("pessimism", candidates=2), target, 1500, longest=1)
    follows(counts(found), as_law(BANDIT, law))


def test_pessimism_does_not_get_greedier_with_more_candidates() -> None:
    """Best-of-N's KL grows without an end; pessimism's tends to that of its optimum."""
    rng = np.random.default_rng(1)
    factor_M = rng.normal(size=4000)
    kl = {
        (name, n): distance_of(make_sampler(name, candidates=n).density(factor_M, rng), factor_M).kl_to_prior
        for name in ("best_of_n", "pessimism")
        for n in (4, 64, 512)
    }
    assert kl["best_of_n", 512] > kl["best_of_n", 64] + 1.5
    assert kl["pessimism", 512] == pytest.approx(kl["pessimism", 64], abs=0.1)


def test_distances_are_those_of_enumeration() -> None:
    target, prior_Y, factor_Y = world()
    posterior = exact_posterior(target, ASK, TREE)
    p = best_of_n_probs(prior_Y, factor_Y, 3)
    sizes = (prior_Y * 50_000).round().long()
    factor_M = factor_Y.repeat_interleave(sizes).numpy()
    found = distance_of((p / prior_Y).repeat_interleave(sizes).numpy(), factor_M)
    assert found.kl == pytest.approx(posterior.kl_to_posterior(p.log()), abs=1e-3)
    assert found.tv == pytest.approx(posterior.tv_to_posterior(p.log()), abs=1e-3)
    assert found.kl_to_prior == pytest.approx(kl_divergence(p.log(), posterior.log_prior_Y), abs=1e-3)


def test_two_answers_cost_best_of_n_at_most_log_2() -> None:
    prior = policy(COIN)
    give_law(prior, torch.tensor([0.5, 0.5], dtype=torch.float64))
    target = Prior(prior) * exp(score(LEVELS) / 0.5)
    for n in (2, 64, 512):
        found = drawn(make_sampler("best_of_n", candidates=n), target, 64, longest=1)
        assert found.distance.kl_to_prior <= math.log(2) + 0.15
        assert found.group.scores[0] == max(found.group.scores)


def test_a_response_depends_on_its_prompt_and_seed_alone() -> None:
    """Not on the prompts beside it, so that a call that goes on gives what one call gives."""
    target, _, _ = world()
    prompts = [ASK] * 5
    for name, settings in {
        "best_of_n": {},
        "best_of_poisson": {},
        "pessimism": {},
        "importance": {},
        "rejection": {"bound": 2.0},
        "quasi_rejection": {},
    }.items():
        sampler = make_sampler(name, candidates=8, **settings)
        whole = sampler.draw(target, prompts, 2, SAMPLING, seed=4)
        parts = sampler.draw(target, prompts[:2], 2, SAMPLING, seed=4)
        parts += sampler.draw(target, prompts[2:], 2, SAMPLING, seed=4, first=2)
        assert [d.group for d in whole] == [d.group for d in parts], name
        assert len({tuple(r.ids for r in d.group.responses) for d in whole}) > 1, name
        assert whole[0].facts() == parts[0].facts()


def test_every_sampler_refuses_truncated_sampling() -> None:
    target, _, _ = world()
    for name, entry in SAMPLERS.items():
        settings: dict = {"bound": 2.0} if "score_bound" in entry.needs else {}
        settings |= {"value": scalar()} if "value model" in entry.needs else {}
        for sampling in (SampleSettings(top_k=1), SampleSettings(top_p=0.9), SampleSettings(temperature=0.5)):
            with pytest.raises(ConfigError, match="truncated distribution"):
                make_sampler(name, **settings).draw(target, [ASK], 1, sampling)


def test_what_samplers_refuse() -> None:
    target, _, _ = world()
    with pytest.raises(ConfigError, match="did you mean 'rejection'"):
        make_sampler("rejektion")
    with pytest.raises(ConfigError, match=r"(?s)no such setting.*leave bound out, or take: .*rejection"):
        make_sampler("best_of_n", bound=1.0)
    with pytest.raises(ConfigError, match="highest possible reward"):
        make_sampler("rejection")
    with pytest.raises(ConfigError, match="at least 1"):
        make_sampler("best_of_n", candidates=0)
    with pytest.raises(ConfigError, match="at least candidates"):
        make_sampler("rejection", bound=1.0, most=2)
    with pytest.raises(ConfigError, match="more responses are asked for"):
        make_sampler("importance", candidates=2).draw(target, [ASK], 3, SAMPLING)
    with pytest.raises(DataError, match="above its declared bound"):
        make_sampler("rejection", bound=0.5).draw(target, [ASK], 3, SAMPLING)


def test_too_few_accepted_are_given_and_reported() -> None:
    target, _, _ = world()
    (found,) = make_sampler("rejection", bound=12.0, candidates=8, most=32).draw(target, [ASK], 4, SAMPLING)
    assert len(found.group.responses) < 4
    assert found.sampled == 32
    report = report_of("rejection", [found.facts()], 0.5, weighted=True)
    assert (report.given, report.wanted) == (len(found.group.responses), 4)


def test_the_report_refuses_what_the_weights_do_not_carry() -> None:
    target, _, _ = world(beta=0.5)
    found = make_sampler("best_of_n", candidates=32).draw(target, [ASK] * 3, 1, SAMPLING)
    facts = [one.facts() for one in found]
    report = report_of("best_of_n", facts, 0.5, weighted=True)
    assert not report.refusals
    assert report.accept_rate == pytest.approx(1 / 32)
    assert report.kl.value == pytest.approx(np.mean([one.distance.kl for one in found]))
    assert report.reward.value == pytest.approx(np.mean([one.group.scores[0] for one in found]) * 0.5)
    without = report_of("best_of_n", facts, None, weighted=True)
    assert without.kl is None
    assert without.kl_to_prior is not None
    assert "a beta" in without.refusals[0]
    starved = report_of("importance", [{**f, "ess": 2.0} for f in facts], 0.5, weighted=True)
    assert starved.kl is None
    assert "ESS 2.0" in starved.refusals[0]


def test_a_pool_is_accepted_as_rejection_sampling_accepts() -> None:
    """RSO's algorithm, where the bound is the highest of the pool: its first pass is the plain test."""
    rng = np.random.default_rng(0)
    scores, u = rng.normal(size=50), rng.random(50)
    accepted = accept_from_pool(list(range(50)), scores.tolist(), 0.7, 50, lambda size: u.tolist()[:size])
    plain = np.flatnonzero(accepts(scores / 0.7, float(scores.max()) / 0.7, u)).tolist()
    assert accepted[: len(plain)] == plain
    assert sorted(accepted) == list(range(50))
