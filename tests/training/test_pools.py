"""Pools over rounds: scores that are not on one scale are never held against each other."""

from __future__ import annotations

from typing import Any

import pytest

from tiltyard.errors import ConfigError
from tiltyard.feedback import GradeScorer, JudgeScorer, Verdict
from tiltyard.feedback.verdicts import Usage
from tiltyard.methods import rft
from tiltyard.types import Group, Response

from . import round_runs as runs


class Comparing:
    """A judge of pairs by the sum of ids."""

    def __init__(self) -> None:
        self.usage = Usage()

    def __call__(self, pairs: list[Group]) -> list[Verdict]:
        worth = [[runs.score(g.prompt, r) for r in g.responses] for g in pairs]
        return [Verdict(0.5 if a == b else float(a > b)) for a, b in worth]


def test_wins_within_a_group_are_on_no_scale() -> None:
    """Answers of worth 1 and 2, then of worth 5 and 6: the judge of pairs says 0 and 1 both times.

    So a pool of both would take 2 for as good as 6, which is what is refused.
    """
    scorer = JudgeScorer(Comparing())
    rounds = [[Group(runs.prompts()[0], answers(a, b))] for a, b in ((1, 2), (5, 6))]
    scored = [scorer.score(groups)[0] for groups in rounds]
    assert [g.scores for g in scored] == [(0.0, 1.0), (0.0, 1.0)]
    with pytest.raises(ConfigError, match="not on one scale") as caught:
        rft(runs.rounds(scorer=scorer))
    assert "pool=last" in caught.value.fix
    assert "judge.ask=score" in caught.value.fix


def answers(*firsts: int) -> Any:
    return tuple(Response(ids=(i,), text=str(i)) for i in firsts)


def test_a_judge_that_learns_is_another_one_in_each_round() -> None:
    scorer = GradeScorer(runs.Grader())
    rft(runs.rounds(scorer=scorer))
    scorer = GradeScorer(runs.Grader(), moving=True)
    with pytest.raises(ConfigError, match="not on one scale") as caught:
        rft(runs.rounds(scorer=scorer))
    assert "another judge in every round" in caught.value.got
    assert "stays" in caught.value.fix


@pytest.mark.parametrize("moving", [False, True])
def test_a_round_by_itself_has_one_scale(moving: bool) -> None:
    """The best of each group by a judge of pairs, from the newest round alone."""
    scorer = JudgeScorer(Comparing(), moving=moving)
    source: Any = rft(runs.rounds(scorer=scorer, size=7, every=1, prompts_per_step=7), pool="last").source
    for group in source(runs.models(), 0).groups:
        (known,) = [g for g in source.held[0] if g.prompt.ids == group.prompt.ids]
        best = max(runs.score(g.prompt, r) for g in [known] for r in g.responses)
        assert [runs.score(group.prompt, r) for r in group.responses] == [best]
