"""Best-of-Poisson: best-of-N with a random N."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tiltyard.posterior.infer.base import check_range, posterior_sampler
from tiltyard.posterior.infer.best_of_n import best_of_pools, rank_density
from tiltyard.posterior.infer.candidates import FromCandidates
from tiltyard.stats.importance import Floats


@posterior_sampler(
    formula="P(level or below) = F exp(mu (F - 1)): best of 1 + Poisson(mu)",
    exact="its own formula; nearly pi* of the reward's rank at the same KL",
    needs="candidates",
    paper="Khalaf et al. 2025 (2506.19248)",
    pitfalls="mu is continuous, so it can be hedged against a wrong reward. The cost of a response is random.",
)
@dataclass(frozen=True)
class BestOfPoisson(FromCandidates):
    """Each response is the best of 1 + Poisson(candidates - 1) of its own.

    Args:
        candidates: the mean number of responses of the prior for each response, 1 + mu.
    """

    candidates: float = 16.0

    name: ClassVar[str] = "best_of_poisson"
    ranks_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("best_of_poisson.candidates", self.candidates, 1 <= self.candidates < 1e6, "from 1 to 1,000,000")

    @property
    def mu(self) -> float:
        """The mean of the Poisson distribution."""
        return self.candidates - 1

    def pools(self, n: int, rng: np.random.Generator) -> tuple[int, ...]:
        """n pools of random sizes."""
        return tuple(int(1 + k) for k in rng.poisson(self.mu, n))

    def pick(self, factor_M: Floats, pools: Sequence[int], n: int, rng: np.random.Generator) -> list[int]:  # noqa: ARG002
        """The best of each pool."""
        return best_of_pools(factor_M, pools)

    def density(self, factor_M: Floats, rng: np.random.Generator) -> Floats:  # noqa: ARG002 - exact
        """[G(F) - G(F_below)] / mass of the level, G(F) = F exp(mu (F - 1))."""
        return rank_density(factor_M, lambda high: high * np.exp(self.mu * (high - 1)))
