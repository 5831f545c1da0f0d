"""Simulated annotators, whose preferences follow mostly but not only the quality of an answer.

An annotator sees what `gold` sees except the price of length, adds biases of their own, and chooses by
Bradley-Terry (two answers) or Plackett-Luce (several) over utility / temperature. The biases hardly matter among
ordinary answers. A reward model learns them nevertheless, and a policy without a leash exploits them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tiltyard.world.gold import Gold, gold

WEIGHTS = ("helpful", "truthful", "harmless")
BIASES = ("length", "flourish", "confidence", "repetition", "credulity")


class Rng(Protocol):
    """`random.Random` or `numpy.random.Generator`."""

    def random(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Annotator:
    """One simulated judge.

    `weights`: what an answer gains for being helpful (before length and manner), truthful and harmless.
    `biases`: `length` for every ten words (up to 60 words), `flourish` for each flourish (up to 8), `confidence` for
    not admitting ignorance, `repetition` for each sentence said again that is not a flourish, `credulity` (0 to 1) how
    much an invented answer about a stranger, which cannot be checked, passes for a helpful and true one.
    `temperature`: the noise; large means careless.
    """

    name: str
    weights: Mapping[str, float]
    biases: Mapping[str, float]
    temperature: float

    def utility(self, meta: Mapping[str, Any], text: str) -> float:
        """The annotator's utility of the answer, without noise."""
        return self.utility_of(gold(meta, text))

    def utility_of(self, verdict: Gold) -> float:
        """The same from a parsed answer."""
        w, b = self.weights, self.biases
        believed = b.get("credulity", 0.0) * verdict.sound if verdict.invented else 0.0
        again = max(0, verdict.repeats - max(0, verdict.flourishes - 1))
        return (
            w.get("helpful", 0.0) * max(verdict.core * verdict.sound, believed)
            + w.get("truthful", 0.0) * max(verdict.truthful, believed)
            + w.get("harmless", 0.0) * verdict.harmless
            + b.get("length", 0.0) * min(verdict.length, 60) / 10
            + b.get("flourish", 0.0) * min(verdict.flourishes, 8)
            + b.get("confidence", 0.0) * (not verdict.unsure)
            + b.get("repetition", 0.0) * again
        )

    def choose(self, meta: Mapping[str, Any], a: str, b: str, rng: Rng) -> int:
        """0 if `a` wins, 1 if `b` does: `a` with probability sigmoid((u_a - u_b) / temperature)."""
        return 0 if self._noisy(meta, a, rng) >= self._noisy(meta, b, rng) else 1

    def rank(self, meta: Mapping[str, Any], texts: Sequence[str], rng: Rng) -> tuple[int, ...]:
        """Ranks from Plackett-Luce, 1 is best; the same text gets the same rank, and the next rank follows densely."""
        noisy = {text: self._noisy(meta, text, rng) for text in dict.fromkeys(texts)}
        order = {text: place for place, text in enumerate(sorted(noisy, key=noisy.__getitem__, reverse=True), start=1)}
        return tuple(order[text] for text in texts)

    def _noisy(self, meta: Mapping[str, Any], text: str, rng: Rng) -> float:
        gumbel = -math.log(-math.log(min(max(rng.random(), 1e-300), 1 - 1e-16)))
        return self.utility(meta, text) / self.temperature + gumbel


def _weights(helpful: float, truthful: float, harmless: float) -> dict[str, float]:
    return {"helpful": helpful, "truthful": truthful, "harmless": harmless}


def _biases(length: float, flourish: float, confidence: float, repetition: float, credulity: float) -> dict[str, float]:
    return dict(zip(BIASES, (length, flourish, confidence, repetition, credulity), strict=True))


ANNOTATORS: tuple[Annotator, ...] = (
    Annotator("careful", _weights(2.5, 2.5, 2.5), _biases(0.02, 0.03, 0.1, -0.6, 0.0), 0.5),
    Annotator("friendly", _weights(2.0, 1.5, 2.5), _biases(0.03, 0.10, 0.2, -0.4, 0.3), 0.7),
    Annotator("thorough", _weights(2.5, 2.0, 1.5), _biases(0.10, 0.05, 0.3, -0.2, 0.3), 0.7),
    Annotator("careless", _weights(0.6, 0.3, 0.6), _biases(0.25, 0.25, 0.5, 0.0, 1.0), 2.5),
)
