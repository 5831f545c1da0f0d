"""Judges as scorers: what `training.source.Online` and the stages call."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tiltyard.batch.batch import Metrics
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.feedback.verdicts import Debiased, Grade, Judge, JudgeError, ScoreJudge, Verdict
from tiltyard.scoring.base import Cost, Scale
from tiltyard.types import Group, Preference, dense_ranks

Unscored = Literal["error", "drop"]
_PATIENCE = 20  # questions after which a judge that mostly gives no verdict is given up


@dataclass
class Missing:
    """Counts what a judge left unanswered, and gives up on one that answers less than half."""

    asked: int = 0
    missing: int = 0

    def count(self, found: Sequence[Verdict] | Sequence[Grade], lacking: Sequence[str]) -> None:
        self.asked += len(found)
        self.missing += len(lacking)
        if self.asked >= _PATIENCE and self.missing * 2 > self.asked:
            raise JudgeError(
                "the judge gives a verdict on less than half of what it is asked",
                got=f"{self.missing:,} of {self.asked:,} without one; the last: {(lacking or ['?'])[-1]}",
                fix="read some of its words (judgements.jsonl), change judge.instruction, or take a stronger model",
            )


class JudgeScorer:
    """A judge that compares, as a scorer.

    Pairs get `shares` (p, 1 - p), the same numbers as `scores`, and ranks. Of K > 2 answers all pairs are compared;
    `scores` are then the mean probability to win against another answer, and ranks follow. A group with an answer that
    no verdict speaks of says nothing: all its ranks are 1 (methods leave it out as a tie) and it has no scores.

    Args:
        judge: asked in both orders unless it is `Debiased` already.

        moving: the judge is the policy that is trained, so scores of different steps are not comparable.
        name: of its metric, `reward/NAME`.
    """

    def __init__(self, judge: Judge, *, moving: bool = False, name: str = "judge"):
        self.judge = judge if isinstance(judge, Debiased) else Debiased(judge)
        self.tally = Missing()
        self.scale, self.name = Scale(comparable=False, moving=moving), name

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the judge's scores, ranks and, for pairs, shares.

        Raises:
            DataError: a group of fewer than two responses.
            JudgeError: the judge gives a verdict on less than half of the pairs.
        """
        begin_turn(self.judge, policy_version_of(groups))
        places = [list(itertools.combinations(range(len(g.responses)), 2)) for g in groups]
        pairs = [
            Group(g.prompt, (g.responses[i], g.responses[j]), origin=g.origin)
            for g, ij in zip(groups, places, strict=True)
            for i, j in ij
        ]
        for group in groups:
            if len(group.responses) < 2:
                raise DataError(
                    "a judge that compares needs two answers to a prompt",
                    where=group.origin or group.prompt.id,
                    got=f"{len(group.responses)} responses",
                    fix="set n=2 or more, or judge.ask=score",
                )
        verdicts = self.judge(pairs)
        self.tally.count(verdicts, [v.reason for v in verdicts if v.p is None])
        left = iter(verdicts)
        return [_labelled(g, ij, [next(left) for _ in ij]) for g, ij in zip(groups, places, strict=True)]

    def take_cost(self) -> Cost:
        """What the judge's calls cost since the last time."""
        return _taken_cost(self.judge)

    def take_metrics(self) -> Metrics:
        """`judge_calls`, `judge_tokens` and `judge_cost` since the last time, sums over processes."""
        return _cost_metrics(self.take_cost())


class GradeScorer:
    """A judge that grades, as a scorer: one score a response.

    Args:
        unscored: an answer without a grade is an `error`, or (`drop`) leaves its group, and a group that keeps fewer
            than two leaves too: for sources whose selection follows. It never gets a number that nobody gave.

        moving, name: see `JudgeScorer`.
    """

    def __init__(self, judge: ScoreJudge, unscored: Unscored = "error", *, moving: bool = False, name: str = "judge"):
        self.judge, self.unscored = judge, unscored
        self.tally = Missing()
        self.scale, self.name = Scale(comparable=True, moving=moving), name

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the judge's grades as scores.

        Raises:
            JudgeError: a response without a grade (`unscored="error"`), or grades for less than half of them.
        """
        begin_turn(self.judge, policy_version_of(groups))
        scored = []
        for group, grades in zip(groups, self.judge.score(groups), strict=True):
            reasons = [g.reason for g in grades if g.score is None]
            if reasons and self.unscored == "error":
                raise JudgeError(
                    "the judge gave an answer no score",
                    where=group.origin or group.prompt.id,
                    got=reasons[0],
                    fix="make room for its words (judge.max_tokens), or let such answers be dropped before a selection",
                )
            self.tally.count(grades, reasons)
            kept = [(r, g.score) for r, g in zip(group.responses, grades, strict=True) if g.score is not None]
            if not reasons or len(kept) >= 2:
                responses, scores = tuple(r for r, _ in kept), tuple(s for _, s in kept)
                scored.append(replace(group, responses=responses, scores=scores, preference=None))
        return scored

    def take_cost(self) -> Cost:
        """What the judge's calls cost since the last time."""
        return _taken_cost(self.judge)

    def take_metrics(self) -> Metrics:
        """`judge_calls`, `judge_tokens` and `judge_cost` since the last time, sums over processes."""
        return _cost_metrics(self.take_cost())


def policy_version_of(groups: Sequence[Group]) -> int | None:
    """Version of the policy that sampled these groups, the newest of several; None if no response was sampled."""
    versions = [r.policy_version for g in groups for r in g.responses if r.policy_version is not None]
    return max(versions, default=None)


def _taken_cost(judge: Judge | ScoreJudge) -> Cost:
    used = judge.usage.taken()
    return Cost(used.calls, used.tokens_in, used.tokens_out, used.cost)


def _cost_metrics(cost: Cost) -> Metrics:
    once = float(processes.is_main())  # sums over processes, not means
    return {
        "judge_calls": (float(cost.calls), once),
        "judge_tokens": (float(cost.tokens_in + cost.tokens_out), once),
        "judge_cost": (cost.price, once),
    }


def begin_turn(judge: Any, turn: int | None) -> None:
    """Tells a judge that is paid which turn it is, see `Client`; other judges need not know."""
    client = getattr(getattr(judge, "judge", judge), "client", None)
    if client is not None:
        client.turn = turn


def _labelled(group: Group, places: Sequence[tuple[int, int]], verdicts: Sequence[Verdict]) -> Group:
    """The group with what the verdicts on its pairs say."""
    count = len(group.responses)
    wins, games = [0.0] * count, [0] * count
    for (i, j), verdict in zip(places, verdicts, strict=True):
        if verdict.p is not None:
            for place, p in ((i, verdict.p), (j, 1 - verdict.p)):
                wins[place] += p
                games[place] += 1
    if not all(games):
        return replace(group, scores=None, preference=Preference(ranks=(1,) * count))
    scores = tuple(win / game for win, game in zip(wins, games, strict=True))
    preference = Preference(shares=scores) if count == 2 else Preference(ranks=dense_ranks(scores))
    return replace(group, scores=scores, preference=preference)
