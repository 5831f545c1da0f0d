"""The target of KL-regularised RLHF: a prior, a scorer and a strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiltyard.errors import ConfigError, ScoringError
from tiltyard.models.language import LanguageModel
from tiltyard.scoring.base import Scorer, checked_scores
from tiltyard.types import Group


@dataclass(frozen=True)
class Target:
    """pi*(y|x) = prior(y|x) * exp(score(x, y) / beta) / Z(x), known up to Z(x).

    It is the optimum of E[score] - beta KL(pi || prior) (Levine 2018, "Reinforcement learning and control as
    probabilistic inference"; Korbak et al. 2022). RL fine-tuning, RSO, best-of-N and decoding-time samplers are ways
    to it that need only what is here: samples of the prior, scores, beta.

    Args:
        prior: the reference model.
        scorer: higher is better; scores of one prompt are compared with each other only.
        beta: strength of the pull to the prior, in units of the score; above 0.

    Raises:
        ConfigError: beta is not above 0.
    """

    prior: LanguageModel
    scorer: Scorer
    beta: float

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError("a target needs a strength", where="beta", got=self.beta, expected="above 0")

    def log_weights(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """score / beta of each response: log pi*(y|x) - log prior(y|x) up to the prompt's log Z(x).

        For samples of the prior these are the log importance weights of pi*.

        Raises:
            ScoringError: the scorer left out a response: its weight would be unknown.
        """
        scored = checked_scores(self.scorer, groups)
        sizes = [(len(g.responses), len(s.scores or ())) for g, s in zip(groups, scored, strict=False)]
        if len(scored) != len(groups) or any(given != found for given, found in sizes):
            raise ScoringError(
                "the target needs a score of every response",
                where=self.scorer.name,
                got=f"{sum(found for _, found in sizes)} scores",
                expected=f"{sum(len(g.responses) for g in groups)}",
                fix="take a scorer that leaves nothing out",
            )
        return [tuple(score / self.beta for score in group.scores or ()) for group in scored]
