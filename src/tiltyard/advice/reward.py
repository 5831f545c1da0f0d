"""A reward that the user names, tried on the first rows before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tiltyard.advice.request import Request
from tiltyard.errors import ConfigError, ScoringError, TiltyardError
from tiltyard.scoring import FunctionScorer, RewardPart, Scorer, build_reward, checked_scores
from tiltyard.types import Group, Response

FIRST = 4  # rows
MADE_UP = "This is a short answer. It has two sentences."  # where the rows have none


def try_reward(request: Request, groups: Sequence[Group]) -> None:
    """Scores the first rows with the functions and rules of the reward; models are not loaded.

    Raises:
        ConfigError: a function that cannot be loaded, raises, or gives no number.
    """
    if not request.reward:
        return

    def stub(name: str, part: RewardPart) -> Scorer:  # noqa: ARG001
        return FunctionScorer(lambda prompt, response: 0.0, name)  # noqa: ARG005

    scorer = build_reward(request.reward_value(), stub, folders=[Path()])
    some = [
        group if group.responses else replace(group, responses=(Response(text=MADE_UP, finish="stop"),))
        for group in groups[:FIRST]
    ]
    some = [replace(group, scores=None, preference=None) for group in some]
    try:
        scored = checked_scores(scorer, some)
    except ScoringError as error:
        raise ConfigError(
            f"the reward fails on the first rows: {error.what}",
            where=f"--reward {request.reward}, {error.where}",
            got=error.got or error.what,
            expected=error.expected or "a finite number for every answer, or None where it abstains",
            fix=error.fix or "correct the function; it is called with (prompt, response) or (prompt, response, row)",
        ) from error
    except TiltyardError:
        raise
    if not scored:
        raise ConfigError(
            "the reward gives no score to any of the first rows",
            where=f"--reward {request.reward}",
            got=f"None for {len(some)} rows",
            expected="a number for most answers",
            fix="return a number; None means that the function abstains",
        )
