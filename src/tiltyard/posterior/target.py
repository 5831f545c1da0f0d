"""Targets of alignment as objects: `prior * exp(score(r) / beta)` and `prior.constrain(features, moments)`.

A target is a model of what is wanted, and separate from the way to it. RL and the DPO family train towards it,
distribution matching minimises a divergence to it, rejection, importance sampling and SMC sample from it, and
`tiltyard gap` measures the distance to it. All of them need no more than samples and log-probs of the prior, and
`Target.log_weights`.

    prior  = Prior(model)                       a model at a temperature
    target = prior * exp(score(reward) / beta)  pi*(y|x) = prior(y|x) exp(r(x,y)/beta) / Z(x)

No scorer is told for whom it scores, and no sampler or method what a scorer is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiltyard.errors import ConfigError, ScoringError
from tiltyard.models.language import LanguageModel
from tiltyard.posterior.constraints import solve_constraint
from tiltyard.scoring.base import Cost, Scorer, checked_scores
from tiltyard.types import Group


def check_beta(beta: float) -> float:
    """Returns beta.

    Raises:
        ConfigError: it is not above 0 and finite.
    """
    if not (beta > 0 and math.isfinite(beta)):
        raise ConfigError("a target needs a strength", where="beta", got=beta, expected="above 0 and finite")
    return beta


@dataclass(frozen=True)
class LogFactor:
    """A weighted sum of scores, sum_i c_i s_i(x, y): the logarithm of what a prior is multiplied with.

    Args:
        terms: (coefficient, scorer); higher scores are better, and scores of one prompt are compared with each other
            only.

    Raises:
        ConfigError: a coefficient that is not finite.
    """

    terms: tuple[tuple[float, Scorer], ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(coefficient) for coefficient, _ in self.terms):
            raise ConfigError(
                "the coefficient of a score must be finite",
                where="log factor",
                got=[coefficient for coefficient, _ in self.terms],
                expected="finite numbers",
            )

    def __truediv__(self, beta: float) -> LogFactor:
        return self * (1 / check_beta(beta))

    def __mul__(self, factor: float) -> LogFactor:
        return LogFactor(tuple((coefficient * factor, scorer) for coefficient, scorer in self.terms))

    __rmul__ = __mul__

    def __add__(self, other: LogFactor) -> LogFactor:
        return LogFactor(self.terms + other.terms)

    def values(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """The sum for each response, in the order of the groups.

        Raises:
            ScoringError: a scorer left out a response: its weight would be unknown.
        """
        sums = [[0.0] * len(group.responses) for group in groups]
        for coefficient, scorer in self.terms:
            for row, scores in zip(sums, complete_scores(scorer, groups), strict=True):
                row[:] = [value + coefficient * score for value, score in zip(row, scores, strict=True)]
        return [tuple(row) for row in sums]

    def take_cost(self) -> Cost:
        """The cost of the scorers since the last call; counting starts again."""
        return sum((scorer.take_cost() for _, scorer in self.terms), Cost())


def complete_scores(scorer: Scorer, groups: Sequence[Group]) -> list[tuple[float, ...]]:
    """The scores of all responses.

    Raises:
        ScoringError: the scorer left out a response.
    """
    scored = checked_scores(scorer, groups)
    sizes = [(len(g.responses), len(s.scores or ())) for g, s in zip(groups, scored, strict=False)]
    if len(scored) != len(groups) or any(given != found for given, found in sizes):
        raise ScoringError(
            "the target needs a score of every response",
            where=scorer.name,
            got=f"{sum(found for _, found in sizes)} scores",
            expected=f"{sum(len(g.responses) for g in groups)}",
            fix="take a scorer that leaves nothing out",
        )
    return [group.scores or () for group in scored]


@dataclass(frozen=True)
class Factor:
    """exp(log_factor), what a prior is multiplied with."""

    log: LogFactor


def score(scorer: Scorer) -> LogFactor:
    """The scorer's scores as a term of a log factor, to be divided by beta."""
    return LogFactor(((1.0, scorer),))


def exp(log_factor: LogFactor) -> Factor:
    """The factor with this logarithm."""
    return Factor(log_factor)


@dataclass(frozen=True)
class Prior:
    """A model at a temperature, as the distribution of responses that a target is built on.

    Args:
        model: the reference model.
        temperature: its logits are divided by it; responses and log-probs are those of that distribution.

    Raises:
        ConfigError: a temperature that is not above 0.
    """

    model: LanguageModel
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigError(
                "a prior must be a distribution",
                where="temperature",
                got=self.temperature,
                expected="above 0 and finite: greedy decoding has no log-probs",
            )

    def __mul__(self, factor: Factor) -> Target:
        return Target(self, factor.log)

    def constrain(self, features: Sequence[Scorer], moments: Sequence[float], samples: Sequence[Group]) -> Target:
        """The target nearest to the prior, in KL, under which each feature has the given mean over prompts.

        "Half of the people mentioned are women": one feature and the moment 0.5. A moment of 0 or 1 of a feature that
        is 0 or 1 is a pointwise constraint. See `constraints.solve_constraint`.

        Args:
            features: scorers. moments: one mean a feature. samples: of the prior, as many to each prompt.

        Raises:
            ConfigError: not one moment a feature, or moments that no tilt of the samples has. ScoringError: a scorer
            abstained.
        """
        return Target(self, LogFactor(())).constrain(features, moments, samples)


@dataclass(frozen=True)
class Target:
    """pi*(y|x) = prior(y|x) exp(log_factor(x, y)) / Z(x), known up to Z(x).

    With log_factor = r / beta it is the optimum of E[r] - beta KL(pi || prior) (Levine 2018, "Reinforcement learning
    and control as probabilistic inference"; Korbak et al. 2022), and for every policy

        log Z - (E_pi[log_factor] - KL(pi || prior)) = KL(pi || pi*).
    """

    prior: Prior
    log_factor: LogFactor

    def log_weights(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """log pi*(y|x) - log prior(y|x) + log Z(x) of each response.

        For samples of the prior these are the log importance weights of pi*.

        Raises:
            ScoringError: a scorer left out a response: its weight would be unknown.
        """
        return self.log_factor.values(groups)

    def constrain(self, features: Sequence[Scorer], moments: Sequence[float], samples: Sequence[Group]) -> Target:
        """The target nearest to this one, in KL, under which each feature has the given mean over prompts.

        Args and raises: see `Prior.constrain`; the samples are the prior's.
        """
        if len(features) != len(moments) or not features:
            raise ConfigError(
                "a constraint needs one moment a feature",
                where="moments",
                got=f"{len(moments)} moments, {len(features)} features",
                expected="as many of both, at least one",
            )
        columns = [np.array(complete_scores(feature, samples), dtype=np.float64) for feature in features]
        base = np.array(self.log_weights(samples), dtype=np.float64)
        found = solve_constraint(np.stack(columns, -1), moments, base)
        return Target(self.prior, self.log_factor + LogFactor(tuple(zip(found.tolist(), features, strict=True))))
