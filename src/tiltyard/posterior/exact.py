"""The exact posterior where all responses to a prompt can be enumerated: a few tokens, a few steps.

    log pi*(y) = log prior(y) + g(y) - log Z,    log Z = log sum_y prior(y) exp(g(y)),    g = r / beta or another factor

Every policy's value is E[g] - KL(policy || prior) = log Z - KL(policy || pi*), so log Z is the highest value and the
gap to it is KL(policy || pi*). It is the oracle of every estimator and sampler.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.models.language import LanguageModel
from tiltyard.posterior.target import Target
from tiltyard.types import Group, Prompt, Response

Tokens = tuple[int, ...]


def all_responses(vocabulary: int, longest: int, stop_id: int) -> list[Tokens]:
    """Every response over token ids below `vocabulary`: it ends with `stop_id` or is cut after `longest` tokens.

    Sorted by length of what ends, then those that are cut; (vocabulary - 1)^longest of these alone.
    """
    others = [token for token in range(vocabulary) if token != stop_id]
    ended = [(*y, stop_id) for n in range(longest) for y in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=longest))


@torch.no_grad()
def response_log_probs(
    model: LanguageModel, prompt: Prompt, responses: Sequence[Tokens], temperature: float = 1.0
) -> Tensor:
    """log pi(y|x) in nats of each response at a temperature, [Y] in float64: the sum over its tokens."""
    forest = pack([Group(prompt, tuple(Response(ids=y) for y in responses))], model.device)
    logp_R, _ = model.logp_R(forest, temperature=temperature)
    return torch.zeros(len(responses), dtype=torch.float64).index_add(0, forest.response_R.cpu(), logp_R.double().cpu())


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """pi* over enumerated responses. KLs, entropies and values are in nats.

    Args:
        responses: all responses with probability under the prior.
        log_prior_Y: log prior(y), [Y] in float64. log_factor_Y: g of each response, [Y].
    """

    responses: tuple[Tokens, ...]
    log_prior_Y: Tensor
    log_factor_Y: Tensor

    @property
    def log_z(self) -> float:
        """log Z in nats."""
        return float((self.log_prior_Y + self.log_factor_Y).logsumexp(0))

    @property
    def log_probs_Y(self) -> Tensor:
        """log pi*(y), [Y]."""
        return self.log_prior_Y + self.log_factor_Y - self.log_z

    @property
    def probs_Y(self) -> Tensor:
        """pi*(y), [Y]."""
        return self.log_probs_Y.exp()

    @property
    def entropy(self) -> float:
        """Entropy of pi*."""
        return entropy_of(self.log_probs_Y)

    def kl_to_prior(self, log_probs_Y: Tensor | None = None) -> float:
        """KL(policy || prior); of pi* itself without an argument."""
        return kl_divergence(self.log_probs_Y if log_probs_Y is None else log_probs_Y, self.log_prior_Y)

    def kl_to_posterior(self, log_probs_Y: Tensor) -> float:
        """KL(policy || pi*): the gap."""
        return kl_divergence(log_probs_Y, self.log_probs_Y)

    def kl_from_posterior(self, log_probs_Y: Tensor) -> float:
        """KL(pi* || policy), which is large where the policy leaves out what pi* covers."""
        return kl_divergence(self.log_probs_Y, log_probs_Y)

    def tv_to_posterior(self, log_probs_Y: Tensor) -> float:
        """Total variation between a policy and pi*."""
        return total_variation(log_probs_Y.exp(), self.probs_Y)

    def expected_factor(self, log_probs_Y: Tensor | None = None) -> float:
        """E[g] under a policy; under pi* without an argument."""
        probs_Y = (self.log_probs_Y if log_probs_Y is None else log_probs_Y).exp()
        return float((probs_Y * self.log_factor_Y).sum())

    def value(self, log_probs_Y: Tensor | None = None) -> float:
        """E[g] - KL(policy || prior), the objective of RLHF over beta; its maximum is log Z, at pi*."""
        return self.expected_factor(log_probs_Y) - self.kl_to_prior(log_probs_Y)

    def given(self, keep_Y: Tensor) -> ExactPosterior:
        """The posterior of the prior conditioned on these responses, e.g. on those that ended."""
        log_prior_Y = self.log_prior_Y.where(keep_Y, -torch.inf)
        return ExactPosterior(self.responses, log_prior_Y - log_prior_Y.logsumexp(0), self.log_factor_Y)


def exact_posterior(target: Target, prompt: Prompt, responses: Sequence[Tokens]) -> ExactPosterior:
    """The posterior of a target over all responses to a prompt.

    Args:
        responses: all of them, e.g. `all_responses`.

    Raises:
        ScoringError: the scorer leaves out a response.
    """
    model = target.prior.model
    texts = tuple(Response(ids=y, text=model.chat.decode(y)) for y in responses)
    (factor,) = target.log_weights([Group(prompt, texts)])
    log_prior_Y = response_log_probs(model, prompt, responses, target.prior.temperature)
    return ExactPosterior(tuple(responses), log_prior_Y, torch.tensor(factor, dtype=torch.float64))


def best_of_n_probs(prior_Y: Tensor, score_Y: Tensor, n: float) -> Tensor:
    """Probabilities [Y] of the highest-scoring of n draws from the prior, equal ones by chance.

    p_n(y) = [p(y) / p(level)] (F(level)^n - F(below)^n), where a level is all responses of one score (Beirami et al.
    2401.01879).
    """
    scores, level_Y = torch.unique(score_Y, return_inverse=True)
    mass_L = torch.zeros(len(scores), dtype=prior_Y.dtype).index_add(0, level_Y, prior_Y)
    high_L = mass_L.cumsum(0)
    low_L = torch.cat([high_L.new_zeros(1), high_L[:-1]])
    return prior_Y * ((high_L**n - low_L**n) / mass_L)[level_Y]


def entropy_of(log_p_Y: Tensor) -> float:
    """Entropy in nats; outcomes of probability 0 count 0."""
    p_Y = log_p_Y.exp()
    return -float(torch.where(p_Y > 0, p_Y * log_p_Y, 0.0).sum())


def kl_divergence(log_p_Y: Tensor, log_q_Y: Tensor) -> float:
    """KL(p || q) in nats; outcomes of probability 0 under p count 0."""
    p_Y = log_p_Y.exp()
    return float(torch.where(p_Y > 0, p_Y * (log_p_Y - log_q_Y), 0.0).sum())


def total_variation(p_Y: Tensor, q_Y: Tensor) -> float:
    """Total variation of two distributions; mass that one lacks to 1 lies where the other has none."""
    return 0.5 * float((p_Y - q_Y).abs().sum() + abs(p_Y.sum() - q_Y.sum()))
