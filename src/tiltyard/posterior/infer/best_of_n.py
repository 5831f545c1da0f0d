"""Best-of-N: the highest-scoring of N responses of the prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tiltyard.posterior.infer.base import check_range, posterior_sampler
from tiltyard.posterior.infer.candidates import FromCandidates, pooled
from tiltyard.stats.importance import Floats


@posterior_sampler(
    formula="p_N(y) = prior(y | level) (F^N - F_below^N), a level being all responses of one score",
    exact="its own formula, ties included; near pi* at the beta of the same KL",
    needs="candidates",
    paper="Stiennon et al. 2020; Beirami et al. 2024 (2401.01879)",
    pitfalls="No beta: the pull to the prior is N's alone. KL grows as log N, and under a wrong reward the gold "
    "score falls again at large N.",
)
@dataclass(frozen=True)
class BestOfN(FromCandidates):
    """Each response is the best of `candidates` of its own; among equal scores the first, which is one by chance.

    Args:
        candidates: N, responses of the prior for each response.
    """

    candidates: int = 16

    name: ClassVar[str] = "best_of_n"
    ranks_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("best_of_n.candidates", self.candidates, self.candidates >= 1, "at least 1")

    def pools(self, n: int, rng: np.random.Generator) -> tuple[int, ...]:  # noqa: ARG002 - a fixed size
        """n pools of N."""
        return (self.candidates,) * n

    def pick(self, factor_M: Floats, pools: Sequence[int], n: int, rng: np.random.Generator) -> list[int]:  # noqa: ARG002
        """The best of each pool."""
        return best_of_pools(factor_M, pools)

    def density(self, factor_M: Floats, rng: np.random.Generator) -> Floats:  # noqa: ARG002 - exact
        """(F^N - F_below^N) / mass of the level."""
        return rank_density(factor_M, lambda high: high**self.candidates)


def best_of_pools(factor_M: Floats, pools: Sequence[int]) -> list[int]:
    """The place of the highest of each pool; of equal ones the first, as the draws are exchangeable."""
    return [start + int(part.argmax()) for start, part in pooled(factor_M, pools)]


def rank_density(factor_M: Floats, best: Callable[[Floats], Floats]) -> Floats:
    """The density [M], relative to the prior, of a pick by rank alone.

    Args:
        best: the probability that the pick is at most as good as a share F of the prior's responses.
    """
    _, level_M, count_L = np.unique(factor_M, return_inverse=True, return_counts=True)
    mass_L = count_L / len(factor_M)
    high_L = np.cumsum(mass_L)
    low_L = np.concatenate([[0.0], high_L[:-1]])
    found: Floats = ((best(high_L) - best(low_L)) / mass_L)[level_M]
    return found
