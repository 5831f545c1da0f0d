"""Sampling importance resampling: responses of the prior, drawn again by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tiltyard.errors import ConfigError
from tiltyard.posterior.infer.base import check_range, posterior_sampler
from tiltyard.posterior.infer.candidates import FromCandidates, bootstrap_density
from tiltyard.stats.importance import Floats, normalised


@posterior_sampler(
    formula="P(y_i | y_1..y_N) = w_i / sum w, w = exp(r / beta)",
    exact="pi* as N grows; one candidate gives the prior",
    needs="candidates",
    paper="Rubin 1987, sampling importance resampling (also called soft best-of-N)",
    pitfalls="All responses to a prompt come from the same candidates: more of them than the effective number are "
    "copies. Needs about exp(KL(pi* || prior)) candidates.",
)
@dataclass(frozen=True)
class Importance(FromCandidates):
    """Responses are drawn, with replacement, from `candidates` of the prior by their importance weights.

    Args:
        candidates: N, responses of the prior to each prompt, for all its responses together.
    """

    candidates: int = 64

    name: ClassVar[str] = "importance"

    def __post_init__(self) -> None:
        check_range("importance.candidates", self.candidates, self.candidates >= 1, "at least 1")

    def pools(self, n: int, rng: np.random.Generator) -> tuple[int, ...]:  # noqa: ARG002 - a fixed size
        """One pool.

        Raises:
            ConfigError: more responses than candidates.
        """
        if n > self.candidates:
            raise ConfigError(
                "more responses are asked for than there are candidates to draw them from",
                where="importance.candidates",
                got=f"{self.candidates} candidates, {n} responses",
                expected=f"at least {n}, better several times as many",
                fix=f"set candidates to {8 * n} or so",
            )
        return (self.candidates,)

    def pick(self, factor_M: Floats, pools: Sequence[int], n: int, rng: np.random.Generator) -> list[int]:  # noqa: ARG002
        """n places, independently by the weights."""
        return [int(i) for i in rng.choice(len(factor_M), size=n, p=normalised(factor_M))]

    def density(self, factor_M: Floats, rng: np.random.Generator) -> Floats:
        """That of one response, by bootstrap pools."""
        return bootstrap_density(factor_M, self.candidates, normalised, rng)
