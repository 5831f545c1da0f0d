"""The estimators against the exact posterior of enumerable worlds, given as tables: samples without a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.chance import near, share, shifted

from tiltyard.errors import DataError
from tiltyard.posterior import ExactPosterior, Samples, estimate
from tiltyard.posterior.estimates import k_hats
from tiltyard.posterior.support import support_of
from tiltyard.stats.importance import log_mean_exp
from tiltyard.stats.intervals import mean_ci


@dataclass(frozen=True)
class Table:
    """Prompts whose responses are pairs of tokens: laws [X, A, B], log factors [X, A, B], the second token's given the
    first; `kl_XAB` and `entropy_XAB` are what the Rao-Blackwell sums of a response are."""

    policy: np.ndarray
    prior: np.ndarray
    factor: np.ndarray

    @property
    def kl_XAB(self) -> np.ndarray:
        return self._prefix_sums(lambda p, q: (p * np.log(p / q)).sum(-1))

    @property
    def entropy_XAB(self) -> np.ndarray:
        return self._prefix_sums(lambda p, q: -(p * np.log(p)).sum(-1))

    def _prefix_sums(self, f) -> np.ndarray:
        first = f(self.policy.sum(-1), self.prior.sum(-1))
        second = f(*(x / x.sum(-1, keepdims=True) for x in (self.policy, self.prior)))
        return np.broadcast_to((first[:, None] + second)[..., None], self.policy.shape)

    def exact(self, x: int) -> tuple[ExactPosterior, torch.Tensor]:
        flat = [torch.tensor(t[x].ravel()) for t in (self.policy, self.prior, self.factor)]
        return ExactPosterior((), flat[1].log(), flat[2]), flat[0].log()

    def draw(self, rng: np.random.Generator, prompts: np.ndarray, n: int, m: int) -> Samples:
        """`n` of the policy's and `m` of the prior's responses to each of these prompts, [..., n + m]."""
        own = _categorical(rng, self.policy.reshape(len(self.policy), -1)[prompts], n)
        other = _categorical(rng, self.prior.reshape(len(self.prior), -1)[prompts], m)
        both = np.concatenate([own, other], -1)

        def at(table: np.ndarray, places: np.ndarray) -> np.ndarray:
            return np.take_along_axis(table.reshape(len(table), -1)[prompts], places, -1)

        return Samples(
            np.log(at(self.policy, both)),
            np.log(at(self.prior, both)),
            at(self.factor, both),
            at(self.kl_XAB, own),
            at(self.entropy_XAB, own),
            n,
        )


def _categorical(rng: np.random.Generator, p: np.ndarray, n: int) -> np.ndarray:
    cdf = p.cumsum(-1)
    return (rng.random((*p.shape[:-1], n))[..., None] > cdf[..., None, :-1]).sum(-1)


def world(seed: int, prompts: int, *, policy: str = "other", spread: float = 1.0) -> Table:
    rng = np.random.default_rng(seed)

    def law() -> np.ndarray:
        p = np.exp(rng.normal(size=(prompts, 3, 3)))
        return p / p.sum((-2, -1), keepdims=True)

    prior, factor = law(), spread * rng.normal(size=(prompts, 3, 3))
    tilted = prior * np.exp(factor)
    tilted /= tilted.sum((-2, -1), keepdims=True)
    return Table({"other": law(), "prior": prior, "posterior": tilted}[policy], prior, factor)


QUANTITIES = {
    "log_z": lambda e, p: e.log_z,
    "factor": lambda e, p: e.expected_factor(p),
    "posterior_factor": lambda e, p: e.expected_factor(),
    "kl": lambda e, p: e.kl_to_prior(p),
    "kl_sampled": lambda e, p: e.kl_to_prior(p),
    "posterior_kl": lambda e, p: e.kl_to_prior(),
    "gap": lambda e, p: e.kl_to_posterior(p),
    "reverse": lambda e, p: e.kl_from_posterior(p),
    "tv": lambda e, p: e.tv_to_posterior(p),
    "entropy": lambda e, p: -float((p.exp() * p).sum()),
}


@pytest.mark.statistical
@pytest.mark.parametrize("policy", ["other", "prior", "posterior"])
def test_every_estimate_is_the_exact_value(policy: str) -> None:
    """Means over many repetitions; the total variation has a bias of order 1/sqrt(N) upwards where it is 0."""
    table = world(1, 2, policy=policy)
    repeats = 3000
    terms = estimate(table.draw(np.random.default_rng(shifted(1)), np.tile([0, 1], (repeats, 1)), 48, 48))
    for x in range(2):
        exact, policy_Y = table.exact(x)
        for name, value in QUANTITIES.items():
            found = getattr(terms, name)[:, x]
            slack = 0.03 if name == "tv" else 1e-3
            near(found.mean(), value(exact, policy_Y), found.std() / math.sqrt(repeats) + slack / 4, name)


@pytest.mark.statistical
def test_z_is_unbiased_and_its_logarithm_is_low() -> None:
    table = world(2, 1, spread=1.5)
    drawn = table.draw(np.random.default_rng(shifted(2)), np.zeros((20_000, 1), int), 6, 6)
    z = np.exp(log_mean_exp(drawn.log_weights))[:, 0]
    exact, _ = table.exact(0)
    near(z.mean(), math.exp(exact.log_z), z.std() / math.sqrt(len(z)))
    terms = estimate(drawn)
    low, error = terms.log_z_lower, terms.log_z_lower.std() / math.sqrt(len(z))
    assert low.mean() < exact.log_z - 4 * error
    assert abs(terms.log_z.mean() - exact.log_z) < abs(low.mean() - exact.log_z) / 3


@pytest.mark.statistical
def test_rao_blackwell_kl_has_the_value_and_less_variance() -> None:
    """Amini et al. 2504.10637: the same expectation, never negative, a variance ratio below 1."""
    table = world(3, 1)
    terms = estimate(table.draw(np.random.default_rng(shifted(4)), np.zeros((4000, 1), int), 16, 0))
    exact, policy_Y = table.exact(0)
    near(terms.kl.mean(), exact.kl_to_prior(policy_Y), terms.kl.std() / math.sqrt(4000))
    assert terms.kl.min() >= 0 > terms.kl_sampled.min()
    assert terms.kl.var() < 0.5 * terms.kl_sampled.var()


def test_a_policy_that_is_the_posterior_has_no_gap() -> None:
    """From its own samples alone every weight is Z: log Z and the gap are exact up to the sampling of KL - E[g]."""
    table = world(4, 12, policy="posterior")
    terms = estimate(table.draw(np.random.default_rng(0), np.arange(12), 64, 0))
    assert terms.log_z == pytest.approx([table.exact(x)[0].log_z for x in range(12)], abs=1e-9)
    gap = mean_ci(terms.gap)
    assert gap.low <= 0 <= gap.high
    assert terms.reverse == pytest.approx(0, abs=1e-9)
    assert terms.tv == pytest.approx(0, abs=1e-9)
    assert terms.ess == pytest.approx(64)


COVERED = tuple(QUANTITIES)


@pytest.mark.statistical
@pytest.mark.parametrize(("prompts", "spread"), [(400, 1.0), (1, 0.7)])
def test_intervals_cover(prompts: int, spread: float) -> None:
    """95% of 500 runs within chance, where prompts differ and where sampling alone makes the noise."""
    runs, drawn = 500, 40
    rng = np.random.default_rng(shifted(6))
    table = world(5, prompts, spread=spread)
    terms = estimate(table.draw(rng, rng.integers(prompts, size=(runs, drawn)), 32, 32))
    exact = [table.exact(x) for x in range(prompts)]
    for name in COVERED:
        truth = sum(QUANTITIES[name](*one) for one in exact) / prompts
        intervals = [mean_ci(row, rounds=300, skewed=True) for row in getattr(terms, name)]
        covered = sum(i.low <= truth <= i.high for i in intervals)
        print(f"{name}: {covered / runs:.3f}")
        share(covered, runs, 0.95, name)


@pytest.mark.statistical
@pytest.mark.parametrize("cut", ["outcome", "ended"])
def test_a_cut_response_is_an_outcome_or_is_left_out(cut: str) -> None:
    """Conditioned on ending, everything is that of the conditioned laws."""
    table = world(8, 1)
    kept = np.ones((3, 3), bool)
    kept[2] = False  # whose first token is the third are cut
    rng = np.random.default_rng(shifted(8))
    drawn = table.draw(rng, np.zeros((3000,), int), 64, 64)
    exact, policy_Y = table.exact(0)
    if cut == "ended":
        places = np.isclose(drawn.log_policy[..., None], np.log(table.policy[0]).ravel()).argmax(-1)
        ended = kept.ravel()[places]
        columns = (drawn.log_policy, drawn.log_prior, drawn.log_factor, drawn.kl, drawn.entropy)
        drawn = Samples(*columns, drawn.n, ended)
        keep_Y = torch.tensor(kept.ravel())
        exact = exact.given(keep_Y)
        policy_Y = policy_Y.where(keep_Y, -torch.inf)
        policy_Y = policy_Y - policy_Y.logsumexp(0)
    terms = estimate(drawn)
    for name in ("log_z", "factor", "posterior_factor", "kl", "posterior_kl", "gap", "reverse", "tv"):
        found = getattr(terms, name)
        slack = 0.02 if name == "tv" else 3e-3
        value = _given(exact, policy_Y, name)
        near(found.mean(), value, found.std() / math.sqrt(len(found)) + slack / 4, name)


def _given(exact: ExactPosterior, policy_Y: torch.Tensor, name: str) -> float:
    kept = torch.isfinite(policy_Y)
    part = ExactPosterior((), exact.log_prior_Y[kept], exact.log_factor_Y[kept])
    return QUANTITIES[name](part, policy_Y[kept])


def test_what_diagnostics_refuse() -> None:
    fine = support_of(np.full(20, 30.0), np.full(20, 0.4), 64)
    assert fine.ok
    assert support_of(np.full(20, 30.0), np.full(20, np.nan), 64).ok
    few = support_of(np.full(20, 4.0), np.full(20, 0.4), 64)
    assert [r.needed for r in few.refusals] == [160]
    heavy = support_of(np.full(20, 30.0), np.full(20, 0.8), 64)
    assert heavy.refusals[0].needed == pytest.approx(100_000, abs=1)
    assert "k-hat 0.80" in heavy.refusals[0].reason
    hopeless = support_of(np.full(20, 30.0), np.full(20, 1.2), 64)
    assert hopeless.refusals[0].needed is None
    apart = support_of(np.full(20, 30.0), np.full(20, 0.3), 64, 1.0)
    assert apart.refusals[0].needed == 128
    assert not support_of(np.full(20, 30.0), np.full(20, 0.3), 64, math.nan).ok
    # a prompt with a heavy tail is noise of k-hat, most of them are not; one prompt in ten may have few samples
    k, ess = np.full(20, 0.3), np.full(20, 30.0)
    for bad, ok in ((4, True), (12, False)):
        k[:bad] = 0.9
        assert support_of(ess, k, 64).ok is ok
    for bad, ok in ((1, True), (4, False)):
        ess[:bad] = 5.0
        assert support_of(ess, np.full(20, 0.3), 64).ok is ok


def test_a_gaussian_tail_is_reliable_and_a_wide_one_is_not() -> None:
    rng = np.random.default_rng(0)

    def drawn(spread: float) -> Samples:
        g = spread * rng.normal(size=(40, 64))
        none = np.zeros((40, 64))
        return Samples(none, none, g, none, none, 64)

    for spread, ok in ((0.3, True), (0.6, True), (4.0, False)):
        samples = drawn(spread)
        assert support_of(estimate(samples).ess, k_hats(samples), 64).ok is ok


def test_columns_that_do_not_belong_together() -> None:
    with pytest.raises(DataError, match="different shapes"):
        Samples(np.zeros((2, 4)), np.zeros((2, 4)), np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 2)), 2)
    with pytest.raises(DataError, match="no samples of the policy"):
        Samples(*[np.zeros((2, 4))] * 3, np.zeros((2, 0)), np.zeros((2, 0)), 0)
