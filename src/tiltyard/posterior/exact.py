"""The exact posterior where all responses to a prompt can be enumerated: a few tokens, a few steps.

    log pi*(y) = log prior(y) + score(y) / beta - log Z,    log Z = log sum_y prior(y) exp(score(y) / beta)

Every policy's value is E[score] - beta KL(policy || prior) = beta (log Z - KL(policy || pi*)), so beta log Z is the
highest value and the gap to it is beta KL(policy || pi*).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.errors import ConfigError
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
def response_log_probs(model: LanguageModel, prompt: Prompt, responses: Sequence[Tokens]) -> Tensor:
    """log pi(y|x) in nats of each response, [Y] in float64: the sum over its tokens."""
    forest = pack([Group(prompt, tuple(Response(ids=y) for y in responses))], model.device)
    logp_R, _ = model.logp_R(forest)
    return torch.zeros(len(responses), dtype=torch.float64).index_add(0, forest.response_R.cpu(), logp_R.double().cpu())


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """pi* over enumerated responses.

    Args:
        responses: all responses with probability under the prior.
        log_prior_Y: log prior(y), [Y] in float64. score_Y: score of each response, [Y]. beta: see `Target`.

    Raises:
        ConfigError: beta is not above 0.
    """

    responses: tuple[Tokens, ...]
    log_prior_Y: Tensor
    score_Y: Tensor
    beta: float

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError("a posterior needs a strength", where="beta", got=self.beta, expected="above 0")

    @property
    def log_z(self) -> float:
        """log Z in nats."""
        return float((self.log_prior_Y + self.score_Y / self.beta).logsumexp(0))

    @property
    def log_probs_Y(self) -> Tensor:
        """log pi*(y), [Y]."""
        return self.log_prior_Y + self.score_Y / self.beta - self.log_z

    @property
    def probs_Y(self) -> Tensor:
        """pi*(y), [Y]."""
        return self.log_probs_Y.exp()

    def kl_to_prior(self, log_probs_Y: Tensor | None = None) -> float:
        """KL(policy || prior) in nats; of pi* itself without an argument."""
        return kl_divergence(self.log_probs_Y if log_probs_Y is None else log_probs_Y, self.log_prior_Y)

    def kl_to_posterior(self, log_probs_Y: Tensor) -> float:
        """KL(policy || pi*) in nats."""
        return kl_divergence(log_probs_Y, self.log_probs_Y)

    def expected_score(self, log_probs_Y: Tensor | None = None) -> float:
        """E[score] under a policy; under pi* without an argument."""
        probs_Y = (self.log_probs_Y if log_probs_Y is None else log_probs_Y).exp()
        return float((probs_Y * self.score_Y).sum())

    def value(self, log_probs_Y: Tensor | None = None) -> float:
        """E[score] - beta KL(policy || prior), the objective of RLHF; its maximum is beta log Z, at pi*."""
        return self.expected_score(log_probs_Y) - self.beta * self.kl_to_prior(log_probs_Y)


def exact_posterior(target: Target, prompt: Prompt, responses: Sequence[Tokens]) -> ExactPosterior:
    """The posterior of a target over all responses to a prompt.

    Args:
        responses: all of them, e.g. `all_responses`.

    Raises:
        ScoringError: the scorer leaves out a response.
    """
    chat = target.prior.chat
    texts = tuple(Response(ids=y, text=chat.decode(y)) for y in responses)
    (weights,) = target.log_weights([Group(prompt, texts)])
    score_Y = torch.tensor(weights, dtype=torch.float64) * target.beta
    return ExactPosterior(tuple(responses), response_log_probs(target.prior, prompt, responses), score_Y, target.beta)


def kl_divergence(log_p_Y: Tensor, log_q_Y: Tensor) -> float:
    """KL(p || q) in nats; outcomes of probability 0 under p count 0."""
    p_Y = log_p_Y.exp()
    return float(torch.where(p_Y > 0, p_Y * (log_p_Y - log_q_Y), 0.0).sum())


def total_variation(p_Y: Tensor, q_Y: Tensor) -> float:
    """Total variation of two distributions; mass that one lacks to 1 lies where the other has none."""
    return 0.5 * float((p_Y - q_Y).abs().sum() + abs(p_Y.sum() - q_Y.sum()))
