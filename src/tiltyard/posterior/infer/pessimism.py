"""Inference-time pessimism: the optimum of E[r] under a chi-square instead of a KL penalty, by its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tiltyard.posterior.infer.base import check_range, posterior_sampler
from tiltyard.posterior.infer.candidates import FromCandidates, bootstrap_density, pooled
from tiltyard.stats.importance import Floats


@posterior_sampler(
    formula="p(y) = prior(y) max(0, (r - lambda) / beta), lambda such that it sums to 1",
    exact="its own formula as N grows: argmax of E[r] - beta/2 chi^2(p || prior)",
    needs="candidates",
    paper="Huang et al. 2025 (2503.21878), InferenceTimePessimism",
    pitfalls="Not pi*: its density grows as r and not as exp r, so more candidates do not make it greedier. beta is "
    "the chi-square's.",
)
@dataclass(frozen=True)
class Pessimism(FromCandidates):
    """Each response is drawn from `candidates` of its own by the weights max(0, g - lambda), lambda that of the pool.

    The paper accepts candidates in turn, against a known bound of the reward; the distribution is the same as N grows.

    Args:
        candidates: N, responses of the prior for each response.
    """

    candidates: int = 64

    name: ClassVar[str] = "pessimism"

    def __post_init__(self) -> None:
        check_range("pessimism.candidates", self.candidates, self.candidates >= 2, "at least 2")

    def pools(self, n: int, rng: np.random.Generator) -> tuple[int, ...]:  # noqa: ARG002 - a fixed size
        """n pools of N."""
        return (self.candidates,) * n

    def pick(self, factor_M: Floats, pools: Sequence[int], n: int, rng: np.random.Generator) -> list[int]:  # noqa: ARG002
        """One of each pool by its weight."""
        return [start + int(rng.choice(len(part), p=chances(part))) for start, part in pooled(factor_M, pools)]

    def density(self, factor_M: Floats, rng: np.random.Generator) -> Floats:
        """That of a pick from N candidates, by bootstrap pools."""
        return bootstrap_density(factor_M, self.candidates, chances, rng)


def threshold(factor: Floats, share: Floats | None = None) -> Floats:
    """lambda / beta: the number t for which the mean of max(0, g - t) is 1, [...].

    Args:
        factor: g of responses [..., N]. share: their probabilities [..., N]; None: all the same.
    """
    share = np.full(factor.shape, 1 / factor.shape[-1]) if share is None else share
    order = np.argsort(-factor, axis=-1, kind="stable")
    g, p = np.take_along_axis(factor, order, -1), np.take_along_axis(share, order, -1)
    # were only the k highest above t, t would be (sum p g - 1) / sum p; the sum over max(0, .) is the largest of these
    found: Floats = ((np.cumsum(p * g, -1) - 1) / np.cumsum(p, -1)).max(-1)
    return found


def chances(factor: Floats) -> Floats:
    """The probability of each candidate of a pool [..., N] to be drawn: max(0, g - t) / N."""
    found: Floats = np.maximum(factor - threshold(factor)[..., None], 0.0) / factor.shape[-1]
    return found / found.sum(-1, keepdims=True)


def pessimism_probs(prior_Y: Floats, factor_Y: Floats) -> Floats:
    """Probabilities [Y] of the optimum, prior(y) max(0, g(y) - t), over all responses."""
    found: Floats = prior_Y * np.maximum(factor_Y - threshold(factor_Y, prior_Y), 0.0)
    return found
