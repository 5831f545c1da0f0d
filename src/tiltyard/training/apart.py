"""Scores of responses that are not a step's own: of the reference, for a constraint or for ranks."""

from __future__ import annotations

from tiltyard.batch.batch import Metrics
from tiltyard.scoring.base import Scorer, scorer_metrics
from tiltyard.training.source import score
from tiltyard.types import Group


def score_apart(scorer: Scorer, groups: list[Group]) -> tuple[list[Group], Metrics]:
    """The scored groups, and the cost of a judge.

    What else the scorer counts of them (the mean of each part) is dropped, so that a step's metrics are its own.
    """
    scored = score(scorer, groups)
    return scored, costs_apart(scorer)


def costs_apart(scorer: Scorer) -> Metrics:
    """The cost of a judge since the last call, to be added to the step's own sums; all other metrics are dropped."""
    return {k: (value, 0.0) for k, (value, _) in scorer_metrics(scorer).items() if k.startswith("judge_")}
