"""Judges as scorers, for `training.source.Online` and the stages."""

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

OnMissing = Literal["error", "drop"]
_MIN_QUERIES = 20  # before a run is stopped because its judge mostly gives no verdict


@dataclass
class ParseFailures:
    """Counts queries without a usable verdict, and stops a run whose judge fails on more than half of them."""

    queries: int = 0
    failures: int = 0

    def add(self, results: Sequence[Verdict] | Sequence[Grade], reasons: Sequence[str]) -> None:
        """Adds the results of some queries and the reasons of those without a verdict.

        Raises:
            JudgeError: more than half of at least 20 queries failed.
        """
        self.queries += len(results)
        self.failures += len(reasons)
        if self.queries >= _MIN_QUERIES and self.failures * 2 > self.queries:
            raise JudgeError(
                "the judge gives a verdict on less than half of its queries",
                got=f"{self.failures:,} of {self.queries:,} without one; the last: {(reasons or ['?'])[-1]}",
                fix="read some of its replies (judgements.jsonl), change judge.instruction, or take a stronger model",
            )


class JudgeScorer:
    """A judge that compares, as a scorer.

    Pairs get the preference with `shares` (p, 1 - p), and the same numbers as `scores`. Of K > 2 responses all pairs
    are compared; `scores` are then the mean win probability against the others, and the preference has their ranks. A
    group where a response has no verdict has no scores and equal ranks (methods leave it out as a tie).

    Args:
        judge: wrapped in `Debiased` unless it is one.

        moving: the judge is the policy that is trained, so scores of different steps are not comparable.
        name: of its metric, `reward/NAME`.
    """

    def __init__(self, judge: Judge, *, moving: bool = False, name: str = "judge"):
        self.judge = judge if isinstance(judge, Debiased) else Debiased(judge)
        self.failures = ParseFailures()
        self.scale, self.name = Scale(comparable=False, moving=moving), name

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the judge's scores, ranks and, for pairs, shares.

        Raises:
            DataError: a group of fewer than two responses.
            JudgeError: the judge gives a verdict on less than half of the pairs.
        """
        set_turn(self.judge, policy_version_of(groups))
        indices = [list(itertools.combinations(range(len(g.responses)), 2)) for g in groups]
        pairs = [
            Group(g.prompt, (g.responses[i], g.responses[j]), origin=g.origin)
            for g, ij in zip(groups, indices, strict=True)
            for i, j in ij
        ]
        for group in groups:
            if len(group.responses) < 2:
                raise DataError(
                    "a judge that compares needs two responses to a prompt",
                    where=group.origin or group.prompt.id,
                    got=f"{len(group.responses)} responses",
                    fix="set samples_per_prompt=2 or more, or judge.ask=score",
                )
        verdicts = self.judge(pairs)
        self.failures.add(verdicts, [v.reason for v in verdicts if v.p is None])
        remaining = iter(verdicts)
        return [_with_verdicts(g, ij, [next(remaining) for _ in ij]) for g, ij in zip(groups, indices, strict=True)]

    def take_cost(self) -> Cost:
        """Returns the cost of the judge since the last call."""
        return _taken_cost(self.judge)

    def take_metrics(self) -> Metrics:
        """`judge_calls`, `judge_tokens` and `judge_cost` since the last time, sums over processes."""
        return _cost_metrics(self.take_cost())


class GradeScorer:
    """A judge that grades, as a scorer: one score a response.

    Args:
        on_missing: a response without a grade is an `error`, or (`drop`) is removed from its group, and a group with
            fewer than two left is removed too: for sources with a selection step. No number is imputed.

        moving, name: see `JudgeScorer`.
    """

    def __init__(
        self, judge: ScoreJudge, on_missing: OnMissing = "error", *, moving: bool = False, name: str = "judge"
    ):
        self.judge, self.on_missing = judge, on_missing
        self.failures = ParseFailures()
        self.scale, self.name = Scale(comparable=True, moving=moving), name

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the judge's grades as scores.

        Raises:
            JudgeError: a response without a grade (`on_missing="error"`), or grades for less than half of them.
        """
        set_turn(self.judge, policy_version_of(groups))
        scored = []
        for group, grades in zip(groups, self.judge.score(groups), strict=True):
            reasons = [g.reason for g in grades if g.score is None]
            if reasons and self.on_missing == "error":
                raise JudgeError(
                    "the judge gave a response no score",
                    where=group.origin or group.prompt.id,
                    got=reasons[0],
                    fix="raise judge.max_tokens, or drop such responses before a selection",
                )
            self.failures.add(grades, reasons)
            graded = [(r, g.score) for r, g in zip(group.responses, grades, strict=True) if g.score is not None]
            if not reasons or len(graded) >= 2:
                responses, scores = tuple(r for r, _ in graded), tuple(s for _, s in graded)
                scored.append(replace(group, responses=responses, scores=scores, preference=None))
        return scored

    def take_cost(self) -> Cost:
        """Returns the cost of the judge since the last call."""
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


def set_turn(judge: Any, turn: int | None) -> None:
    """Sets the turn of a paid judge, see `Client`; other judges have none."""
    client = getattr(getattr(judge, "judge", judge), "client", None)
    if client is not None:
        client.turn = turn


def _with_verdicts(group: Group, indices: Sequence[tuple[int, int]], verdicts: Sequence[Verdict]) -> Group:
    """Returns the group with the scores and the preference that the verdicts on its pairs give."""
    count = len(group.responses)
    wins, games = [0.0] * count, [0] * count
    for (i, j), verdict in zip(indices, verdicts, strict=True):
        if verdict.p is not None:
            for index, p in ((i, verdict.p), (j, 1 - verdict.p)):
                wins[index] += p
                games[index] += 1
    if not all(games):
        return replace(group, scores=None, preference=Preference(ranks=(1,) * count))
    scores = tuple(win / game for win, game in zip(wins, games, strict=True))
    preference = Preference(shares=scores) if count == 2 else Preference(ranks=dense_ranks(scores))
    return replace(group, scores=scores, preference=preference)
