"""Samplers that draw whole responses of the prior and pick among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from tiltyard.posterior.infer.base import Drawn, distance_of, drawn_from
from tiltyard.posterior.measure import Progress, check_sampling, draw, silent
from tiltyard.posterior.target import Target
from tiltyard.sampling import SampleSettings
from tiltyard.stats.importance import Floats
from tiltyard.types import Group, Prompt

KEY = 7  # tells the samplers' random numbers from those of other calls with the same seed
NUMBERS = 1 << 17  # candidates of the bootstrap pools from which the distribution of a pick is computed


class FromCandidates(ABC):
    """Draws pools of candidates for each prompt and picks one response from each, or several from one."""

    ranks_only: ClassVar[bool] = False
    weighted: ClassVar[bool] = True

    @abstractmethod
    def pools(self, n: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Sizes of the pools for n responses to a prompt."""

    @abstractmethod
    def pick(self, factor_M: Floats, pools: Sequence[int], n: int, rng: np.random.Generator) -> list[int]:
        """Places of the n responses among all candidates, which lie pool after pool."""

    @abstractmethod
    def density(self, factor_M: Floats, rng: np.random.Generator) -> Floats:
        """The density [M] of one response relative to the prior at each candidate, with mean 1."""

    def rows(self, n: int) -> int:
        """Candidates to a prompt."""
        return sum(self.pools(n, np.random.default_rng(0)))

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
        check_sampling(target, sampling)
        generators = [np.random.default_rng((seed, KEY, first + i)) for i in range(len(prompts))]
        sizes = [self.pools(n, rng) for rng in generators]
        counts = [sum(pools) for pools in sizes]
        found: list[Drawn] = []
        for start, end in _runs(counts):
            indices = range(first + start, first + end)
            groups = draw(target.prior.model, prompts[start:end], counts[start], sampling, (seed, KEY), indices=indices)
            for i, (group, g) in enumerate(zip(groups, target.log_weights(groups), strict=True), start):
                found.append(self._one(group, np.array(g, dtype=np.float64), sizes[i], n, generators[i]))
                progress(1)
        return found

    def _one(self, group: Group, factor_M: Floats, pools: Sequence[int], n: int, rng: np.random.Generator) -> Drawn:
        picked = self.pick(factor_M, pools, n, rng)
        distance = distance_of(self.density(factor_M, rng), factor_M)
        return drawn_from(group, factor_M, picked, n, distance)


def _runs(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(first, end) of the runs of equal numbers: their prompts are sampled in one call."""
    edges = [i for i in range(len(counts)) if not i or counts[i] != counts[i - 1]]
    return list(zip(edges, [*edges[1:], len(counts)], strict=True))


def pooled(factor_M: Floats, pools: Sequence[int]) -> list[tuple[int, Floats]]:
    """(place of its first candidate, factors) of each pool."""
    ends = np.cumsum(pools)
    return [(int(end - size), factor_M[end - size : end]) for size, end in zip(pools, ends, strict=True)]


def bootstrap_density(
    factor_M: Floats, size: int, chances: Callable[[Floats], Floats], rng: np.random.Generator
) -> Floats:
    """The density [M] of a pick from a pool of `size` candidates, with mean 1, by pools drawn from the M candidates.

    Args:
        chances: (pools [repeats, size]) -> the probability of each candidate to be picked from its pool.
    """
    repeats = max(1, min(20 * len(factor_M), NUMBERS // size))
    places = rng.integers(len(factor_M), size=(repeats, size))
    mass = np.bincount(places.ravel(), chances(factor_M[places]).ravel(), minlength=len(factor_M))
    found: Floats = np.asarray(mass * (len(factor_M) / repeats), dtype=np.float64)
    return found
