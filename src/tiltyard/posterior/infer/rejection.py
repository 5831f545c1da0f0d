"""Rejection sampling: exact samples of pi*, for a reward with a known bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tiltyard.errors import ConfigError
from tiltyard.posterior.estimates import accepts
from tiltyard.posterior.infer.base import Distance, Drawn, check_range, distance_of, drawn_from, posterior_sampler
from tiltyard.posterior.infer.candidates import KEY
from tiltyard.posterior.measure import Progress, check_sampling, draw, silent
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings
from tiltyard.stats.importance import Floats, normalised
from tiltyard.types import Group, Prompt


@dataclass(frozen=True)
class InRounds:
    """Base of samplers that draw candidates in rounds: a bound of g and sizes."""

    bound: float | None = None
    candidates: int = 64
    most: int = 4096

    name: ClassVar[str]
    ranks_only: ClassVar[bool] = False
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range(f"{self.name}.candidates", self.candidates, self.candidates >= 1, "at least 1")
        enough = f"at least candidates = {self.candidates}"
        check_range(f"{self.name}.most", self.most, self.most >= self.candidates, enough)

    def rows(self, n: int) -> int:  # noqa: ARG002 - a fixed size
        """Candidates of a round."""
        return self.candidates


@posterior_sampler(
    formula="accept y of the prior with probability exp((r(y) - bound) / beta)",
    exact="pi*, whatever the number of candidates",
    needs="score_bound",
    paper="von Neumann 1951",
    pitfalls="Accepts Z exp(-bound / beta) of the candidates: a small beta or a loose bound accepts hardly any.",
)
@dataclass(frozen=True)
class Rejection(InRounds):
    """Candidates of the prior are accepted until there are n, in rounds of `candidates` to a prompt.

    Args:
        bound: an upper bound of g, that of the reward over beta. candidates: in a round. most: candidates to a prompt
            in all; then the responses are fewer.
    """

    name: ClassVar[str] = "rejection"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound is None or not math.isfinite(self.bound):
            raise ConfigError(
                "rejection sampling needs the highest possible reward",
                where="rejection.score_bound",
                got=self.bound,
                expected="a finite number that no response scores above",
                fix="set score_bound (1 for a reward from 0 to 1), or take quasi_rejection, which needs none",
            )

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
        """`n` responses to each prompt; see `PosteriorSampler.draw`.

        Raises:
            DataError: a reward above its bound.
        """
        assert self.bound is not None
        bounds = [self.bound] * len(prompts)
        rounds = Rounds(target, prompts, sampling, (seed, first), self.candidates, self.most)
        rounds.accept(n, lambda i, g, u: accepts(g, bounds[i], u))
        progress(len(prompts))
        return rounds.results(n, lambda g: distance_of(normalised(g) * len(g), g))


class Rounds:
    """Candidates of the prior that are drawn in rounds until every prompt has enough that are accepted.

    Args:
        keys: the seed, and the index of the first prompt. size: candidates in a round. most: to a prompt in all.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Prompt],
        sampling: SampleSettings,
        keys: tuple[int, int],
        size: int,
        most: int,
    ):
        check_sampling(target, sampling)
        self.target, self.sampling, (self.seed, self.first) = target, sampling, keys
        self.size, self.most = size, most
        self.generators = [np.random.default_rng((self.seed, KEY, self.first + i)) for i in range(len(prompts))]
        self.pools = [Group(prompt, ()) for prompt in prompts]
        self.factors = [np.zeros(0) for _ in prompts]
        self.accepted: list[list[int]] = [[] for _ in prompts]
        self.number = 0

    def more(self, places: Sequence[int]) -> None:
        """Draws and scores another round of candidates for these prompts."""
        self.number += 1
        prompts = [self.pools[i].prompt for i in places]
        keys = (self.seed, KEY, self.number)  # and each prompt's index, whichever others are left
        indices = [self.first + i for i in places]
        groups = draw(self.target.prior.model, prompts, self.size, self.sampling, keys, indices=indices)
        for i, group, g in zip(places, groups, self.target.log_weights(groups), strict=True):
            self.pools[i] = replace(self.pools[i], responses=self.pools[i].responses + group.responses)
            self.factors[i] = np.concatenate([self.factors[i], g])

    def accept(self, n: int, rule: Callable[[int, Floats, Floats], np.ndarray]) -> None:
        """Draws rounds until each prompt has n accepted or its most candidates.

        Args:
            rule: (index of the prompt, g [size], uniform numbers [size]) -> whether each is accepted.
        """
        while places := [
            i
            for i, taken in enumerate(self.accepted)
            if len(taken) < n and len(self.factors[i]) + self.size <= self.most
        ]:
            starts = [len(self.factors[i]) for i in places]
            self.more(places)
            for i, start in zip(places, starts, strict=True):
                g = self.factors[i][start:]
                taken = np.flatnonzero(rule(i, g, self.generators[i].random(len(g))))
                self.accepted[i] += [start + int(k) for k in taken]

    def results(self, n: int, distance: Callable[[Floats], Distance]) -> list[Drawn]:
        """The first n accepted of each prompt."""
        return [
            drawn_from(pool, g, taken[:n], n, distance(g), accepted=len(taken))
            for pool, g, taken in zip(self.pools, self.factors, self.accepted, strict=True)
        ]


def accept_from_pool(
    pool: list[int],
    scores: Sequence[float],
    beta: float,
    n: int,
    uniform: Callable[[int], list[float]],
    *,
    replacement: bool = False,
) -> list[int]:
    """Statistical rejection sampling from a fixed pool, for a reward without a bound (Liu et al. 2023, algorithm 1).

    In passes over the pool each candidate is accepted with probability exp((score - highest left) / beta), until n
    are; what was accepted leaves the pool. Each pass accepts the highest left, so there are at most n passes. The
    accepted follow pi* where n is well below the number of candidates.

    Args:
        pool: places of the candidates in `scores`, in the order of the passes.
        beta: 0 accepts the highest alone. uniform: gives that number of uniform numbers.
        replacement: leaves what was accepted in the pool.

    Returns:
        Places in the order of acceptance; fewer than n where the pool runs out.
    """
    accepted: list[int] = []
    while len(accepted) < n and pool:
        highest = max(scores[i] for i in pool)
        taken = set()
        for u, i in zip(uniform(len(pool)), pool, strict=True):
            gap = scores[i] - highest
            if (gap == 0) if beta == 0 else (u < math.exp(gap / beta)):
                accepted.append(i)
                taken.add(i)
                if len(accepted) == n:
                    break
        if not replacement:
            pool = [i for i in pool if i not in taken]
    return accepted
