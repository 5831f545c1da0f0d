"""The two models that meet: drawn with a seed, and with a probability that is kept, since it cannot be known later."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from tiltyard.errors import ConfigError, nearest

Policy = Literal["uniform", "fewer_seen"]
POLICIES: tuple[Policy, ...] = ("uniform", "fewer_seen")
EVEN = 0.2  # share of draws of `fewer_seen` that are uniform: bounds the weights 1 / probability


class Pair(NamedTuple):
    """Two models by their places, the probability of this pair, and which of them stands on the left (0 or 1)."""

    one: int
    other: int
    probability: float
    left: int


@dataclass(frozen=True)
class Pairing:
    """Draws pairs of `count` models.

    Args:
        policy: "uniform", or "fewer_seen": pairs that met less often are drawn more often, in proportion to
            1 / (1 + battles), a fifth of the draws even.
        seed: the draw number n is a function of seed and n alone, and of the battles so far.
    """

    count: int
    policy: Policy = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(
                "unknown pairing", where="--pairing", got=self.policy, fix=nearest(str(self.policy), POLICIES)
            )
        if self.count < 2:
            raise ConfigError("an arena needs two models", where="--model", got=self.count, expected="2 at least")

    def draw(self, number: int, met: Mapping[tuple[int, int], int]) -> Pair:
        """Returns the pair of battle `number`; `met`: how often each pair (smaller place first) has met."""
        pairs = list(combinations(range(self.count), 2))
        shares = self.probabilities(pairs, met)
        rng = random.Random(f"{self.seed}:{number}")
        k = rng.choices(range(len(pairs)), shares)[0]
        return Pair(*pairs[k], shares[k], rng.randrange(2))

    def probabilities(self, pairs: Sequence[tuple[int, int]], met: Mapping[tuple[int, int], int]) -> list[float]:
        """Returns the probability of each pair; they add up to 1."""
        even = 1 / len(pairs)
        if self.policy == "uniform":
            return [even] * len(pairs)
        wanted = [1 / (1 + met.get(pair, 0)) for pair in pairs]
        return [EVEN * even + (1 - EVEN) * w / sum(wanted) for w in wanted]
