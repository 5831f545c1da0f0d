"""The distance of a policy to the posterior, estimated from samples: arrays in, numbers with intervals out.

    log Z(x)     = log E_prior[exp(g)],  g = the target's log factor, r / beta
    KL(pi||pi*)  = KL(pi||prior) - E_pi[g] + log Z            the gap: (best value - value) / beta
    KL(pi*||pi)  = E_pi*[g + log prior - log pi] - log Z
    TV(pi, pi*)  = E_mix max(0, pi/mix - pi*/mix)

KL(pi||prior) is the mean over samples of the policy of the exact KL at each token's prefix (Rao-Blackwell: Amini,
Vieira & Cotterell 2504.10637): unbiased, never negative, and with less variance than the mean log-ratio. log Z and what
is weighted use the policy's and the prior's samples together, as samples of the mixture `mix` of both (Veach & Guibas
1995, the balance heuristic): a sample's weight prior exp(g) / mix is at most N/m times that of a prior's sample alone,
and constant where the policy is pi*. Their bias of order 1/N is taken out by the jackknife.

A response that the token limit cut is an outcome like any other (`cut="outcome"`), or the policy, the prior and pi* are
all conditioned on ending (`cut="ended"`); then KL(pi||prior) is the mean log-ratio, as the conditioned one has no sum
over tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tiltyard.errors import DataError
from tiltyard.stats.importance import (
    Floats,
    effective_samples,
    k_hat,
    log_mean_exp,
    normalised,
    stratified_jackknife,
)

Cut = Literal["outcome", "ended"]


@dataclass(frozen=True)
class Samples:
    """Responses of a policy and of a prior to the same prompts, the policy's `n` first along the last axis.

    Every array is [..., N] with the same leading axes, the prompts'; logarithms are natural, of whole responses. Where
    the policy is the prior itself all N are the policy's.

    Args:
        log_policy, log_prior: log-probability under both. log_factor: g, what the target multiplies the prior with.
        kl, entropy: [..., n] of the policy's: sums over tokens of the exact KL to the prior and of the entropy at each
            prefix.
        n: the number of the policy's.
        ended: whether a response ended by itself; None: all did, or being cut is an outcome.

    Raises:
        DataError: shapes that do not belong together.
    """

    log_policy: Floats
    log_prior: Floats
    log_factor: Floats
    kl: Floats
    entropy: Floats
    n: int
    ended: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.log_policy.shape
        columns = [self.log_prior, self.log_factor, *([] if self.ended is None else [self.ended])]
        own = (*shape[:-1], self.n)
        if any(c.shape != shape for c in columns) or self.kl.shape != own or self.entropy.shape != own:
            raise DataError(
                "the columns of samples have different shapes",
                got=[c.shape for c in (self.log_policy, *columns, self.kl, self.entropy)],
                expected=f"{shape} and {own}",
            )
        if not 1 <= self.n <= shape[-1]:
            raise DataError("there are no samples of the policy", got=self.n, expected=f"1 to {shape[-1]}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of the policy's and of the prior's samples."""
        return tuple(size for size in (self.n, self.log_policy.shape[-1] - self.n) if size)

    @property
    def log_mix(self) -> Floats:
        """log density of the mixture that all N samples come from."""
        n, m = self.n, self.log_policy.shape[-1] - self.n
        if not m:
            return self.log_policy
        return np.logaddexp(math.log(n / (n + m)) + self.log_policy, math.log(m / (n + m)) + self.log_prior)

    @property
    def masked_factor(self) -> Floats:
        """g, and -inf for a response outside the target."""
        return self.log_factor if self.ended is None else np.where(self.ended, self.log_factor, -np.inf)

    @property
    def log_weights(self) -> Floats:
        """log(prior exp(g) / mix): importance weights of pi*, up to Z."""
        return self.log_prior + self.masked_factor - self.log_mix


@dataclass(frozen=True)
class Terms:
    """The estimates of each prompt, [...]. KLs, entropy and log Z in nats a response, g in its own unit.

    Attributes:
        log_z, log_z_lower: corrected for bias; and without the correction, whose expectation is below log Z.
        factor, posterior_factor: E_pi[g], E_pi*[g].
        kl, kl_sampled: KL(pi || prior), Rao-Blackwellised; and as the mean log-ratio.
        posterior_kl: KL(pi* || prior).
        gap, reverse: KL(pi || pi*), KL(pi* || pi).
        tv: total variation between pi and pi*.
        entropy: of the policy's responses.
        ess: effective number of samples, of N.
    """

    log_z: Floats
    log_z_lower: Floats
    factor: Floats
    posterior_factor: Floats
    kl: Floats
    kl_sampled: Floats
    posterior_kl: Floats
    gap: Floats
    reverse: Floats
    tv: Floats
    entropy: Floats
    ess: Floats


def estimate(samples: Samples) -> Terms:
    """The terms of the identity for every prompt, each from the same samples."""
    n = samples.n
    log_w = samples.log_weights
    shift = log_w.max(-1, keepdims=True)
    shift = np.where(np.isfinite(shift), shift, 0.0)
    w = np.exp(log_w - shift)
    log_end_policy, log_end_prior = _log_ending(samples, w=np.exp(samples.log_prior - samples.log_mix))
    g = np.where(w > 0, samples.masked_factor, 0.0)
    ratio = np.where(w > 0, samples.log_prior - samples.log_policy, 0.0)

    def log_mean(mean_w: Floats, *_: Floats) -> Floats:
        return np.log(mean_w)

    def over(mean_w: Floats, mean_wf: Floats) -> Floats:
        return mean_wf / mean_w

    def less_log_z(mean_w: Floats, mean_wf: Floats) -> Floats:
        return mean_wf / mean_w - np.log(mean_w)

    sizes = samples.sizes
    log_z = stratified_jackknife(log_mean, [w], sizes) + shift[..., 0]
    posterior_factor = stratified_jackknife(over, [w, w * g], sizes)
    posterior_kl = stratified_jackknife(less_log_z, [w, w * g], sizes) - shift[..., 0]
    reverse = stratified_jackknife(less_log_z, [w, w * (g + ratio)], sizes) - shift[..., 0]
    own = slice(0, n)
    used = np.ones_like(samples.log_policy[..., own], bool) if samples.ended is None else samples.ended[..., own]
    factor = _mean_where(samples.log_factor[..., own], used)
    sampled = _mean_where((samples.log_policy - samples.log_prior)[..., own], used)
    kl = samples.kl.mean(-1) if samples.ended is None else sampled
    policy_share = np.exp(samples.log_policy - samples.log_mix - log_end_policy[..., None])
    policy_share = policy_share if samples.ended is None else policy_share * samples.ended
    # where pi is above pi*: bounded by 1/n of the mixture, while pi*'s own share has the weights' tail
    tv = np.maximum(policy_share - np.exp(log_w - log_z[..., None]), 0.0).mean(-1)
    conditioned = kl - log_end_policy
    return Terms(
        log_z=log_z - log_end_prior,
        log_z_lower=log_mean_exp(log_w) - log_end_prior,
        factor=factor,
        posterior_factor=posterior_factor,
        kl=conditioned + log_end_prior,
        kl_sampled=sampled - log_end_policy + log_end_prior,
        posterior_kl=posterior_kl + log_end_prior,
        gap=conditioned - factor + log_z,
        reverse=reverse + log_end_policy,
        tv=np.minimum(tv, 1.0),
        entropy=samples.entropy.mean(-1),
        ess=effective_samples(log_w),
    )


def _log_ending(samples: Samples, w: Floats) -> tuple[Floats, Floats]:
    """log-probability that policy and prior end a response within the limit; 0 where being cut is an outcome."""
    if samples.ended is None:
        nothing = np.zeros(samples.log_policy.shape[:-1])
        return nothing, nothing
    with np.errstate(divide="ignore"):
        return np.log(samples.ended[..., : samples.n].mean(-1)), np.log((w * samples.ended).mean(-1))


def _mean_where(x: Floats, used: np.ndarray) -> Floats:
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(used, x, 0.0).sum(-1) / used.sum(-1)
    return mean


def k_hats(samples: Samples) -> Floats:
    """The Pareto shape of each prompt's weights, [prompts]; see `stats.importance.k_hat`."""
    log_w = samples.log_weights
    return np.array([k_hat(row) for row in log_w.reshape(-1, log_w.shape[-1])]).reshape(log_w.shape[:-1])


def accepts(log_factor: Floats, highest: float, uniform: Floats) -> np.ndarray:
    """The acceptance test of rejection sampling: uniform < exp(g - highest). What passes is an exact sample of pi*.

    Args:
        log_factor: g of samples of the prior. highest: upper bound of g. uniform: random numbers in [0, 1).

    Raises:
        DataError: a g above the bound.
    """
    if log_factor.size and (found := float(log_factor.max())) > highest + 1e-9:
        raise DataError(
            "a score lies above its declared bound",
            got=f"r / beta = {found:g}",
            expected=f"at most {highest:g}",
            fix="raise score_bound, or leave it out",
        )
    return uniform < np.exp(log_factor - highest)


def posterior_weights(samples: Samples) -> Floats:
    """Each sample's share of pi*, [..., N], summing to 1."""
    return normalised(samples.log_weights)
