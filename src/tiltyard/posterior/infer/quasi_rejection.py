"""Quasi-rejection sampling: rejection with a bound that some rewards may exceed, and a price for it that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tiltyard.posterior.infer.base import Distance, Drawn, distance_of, posterior_sampler
from tiltyard.posterior.infer.rejection import InRounds, Rounds
from tiltyard.posterior.measure import Progress, silent
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings
from tiltyard.stats.importance import Floats
from tiltyard.types import Prompt


@posterior_sampler(
    formula="accept with probability min(1, exp((r - bound) / beta)): p(y) = prior(y) min(exp(r / beta), B) / Z_B",
    exact="pi* where the bound is one; else TV to pi* is at most 1 - Z_B / Z",
    needs="score_bound, or candidates of a pilot",
    paper="Eikema, Kruszewski, Dance, Elsahar & Dymetman 2022 (TMLR)",
    pitfalls="Without score_bound the bound is the highest of a first round, which finds no rare high reward.",
)
@dataclass(frozen=True)
class QuasiRejection(InRounds):
    """Candidates are accepted until there are n; those above the bound are all accepted.

    Args:
        bound: of g; None: the highest g of a first round of candidates, which are not used otherwise.
        candidates: in a round. most: candidates to a prompt in all, the first round included.
    """

    name: ClassVar[str] = "quasi_rejection"

    def draw(
        self,
        target: Target,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SampleSettings,
        *,
        seed: int = 0,
        first: int = 0,
        progress: Progress = silent,
    ) -> list[Drawn]:
        """`n` responses to each prompt; see `PosteriorSampler.draw`."""
        rounds = Rounds(target, prompts, sampling, (seed, first), self.candidates, self.most)
        if self.bound is None:
            rounds.more(range(len(prompts)))
            bounds = [float(g.max()) for g in rounds.factors]
        else:
            bounds = [self.bound] * len(prompts)
        rounds.accept(n, lambda i, g, u: u < np.exp(np.minimum(g - bounds[i], 0.0)))
        progress(len(prompts))
        found = iter(bounds)
        return rounds.results(n, lambda g: clipped_distance(g, next(found)))


def clipped_distance(factor_M: Floats, bound: float) -> Distance:
    """Distances of prior(y) min(exp(g), B) / Z_B, B = exp(bound), by M samples of the prior."""
    weight = np.exp(np.minimum(factor_M - bound, 0.0))
    return distance_of(weight / weight.mean(), factor_M)


def tv_bound(factor_M: Floats, bound: float) -> float:
    """1 - Z_B / Z, which TV to pi* does not exceed, by M samples of the prior."""
    highest = max(bound, float(factor_M.max()))
    clipped, whole = np.exp(np.minimum(factor_M, bound) - highest), np.exp(factor_M - highest)
    return float(1 - clipped.mean() / whole.mean())
