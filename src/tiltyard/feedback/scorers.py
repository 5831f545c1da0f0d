"""Judges as scorers, for `training.source.Online` and the stages."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tiltyard.batch.batch import Metrics
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.feedback.listwise import ListJudge
from tiltyard.feedback.verdicts import Debiased, Grade, Judge, JudgeError, ScoreJudge, Usage, Verdict
from tiltyard.models.backbone import Backbone
from tiltyard.scoring.base import Cost, Scale
from tiltyard.types import Group, Preference, dense_ranks

MAX_MISSING = 0.5  # share of queries without a verdict at which a run stops
_MIN_QUERIES = 20  # before it does


@dataclass
class ParseFailures:
    """Counts queries without a usable verdict by their causes, and stops a run whose judge fails on too many.

    `causes` are those since the last `take`, `every` all of them.

    Args:
        limit: the share of the queries that may have no verdict.
        who, where: of `Client`, for errors. what: what a query is to bring. way: how to mend it besides max_tokens.
    """

    limit: float = MAX_MISSING
    queries: int = 0
    failures: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    every: dict[str, int] = field(default_factory=dict)
    last: str = "?"
    who: str = "judge"
    where: str = "judge"
    what: str = "verdict"
    way: str = "change judge.instruction, or take a stronger model"

    def add(self, results: Sequence[Verdict] | Sequence[Grade]) -> None:
        """Adds the results of some queries.

        Raises:
            JudgeError: more than `limit` of at least 20 queries failed.
        """
        for result in results:
            value = result.p if isinstance(result, Verdict) else result.score
            if value is None:
                cause = result.cause or "unreadable"
                for causes in (self.causes, self.every):
                    causes[cause] = causes.get(cause, 0) + 1
                self.failures, self.last = self.failures + 1, result.reason or self.last
        self.queries += len(results)
        self.check(_MIN_QUERIES)

    def check(self, least: int = 1) -> None:
        """Checks the share, if there were at least that many queries.

        Raises:
            JudgeError: more than `limit` of them failed.
        """
        if self.queries >= least and self.failures > self.limit * self.queries:
            counts = counted(self.every)
            raise JudgeError(
                f"the {self.who} gives no {self.what} on more than {self.limit:.0%} of its queries",
                where=f"{self.where}.max_missing",
                got=f"{self.failures:,} of {self.queries:,} without one: {counts}; the last: {self.last}",
                fix=f"raise {self.where}.max_tokens if replies are cut, {self.way}; "
                f"{self.where}.max_missing=1 goes on whatever is missing",
            )

    def take(self) -> dict[str, int]:
        """Returns the causes since the last call; the share goes on."""
        causes, self.causes = self.causes, {}
        return causes


def counted(causes: Mapping[str, int]) -> str:
    """Formats counts by cause, the most frequent first: `3 cut, 1 filtered`."""
    return ", ".join(f"{n:,} {cause}" for cause, n in sorted(causes.items(), key=lambda item: (-item[1], item[0])))


class JudgeScorer:
    """A judge that compares, as a scorer.

    Pairs get the preference with `shares` (p, 1 - p), and the same numbers as `scores`. Of K > 2 responses all pairs
    are compared; `scores` are then the mean win probability against the others, and the preference has their ranks. A
    response without any verdict is left out of its group, and a group without any is left out.

    Args:
        judge: wrapped in `Debiased` unless it is one.

        moving: the judge is the policy that is trained, so scores of different steps are not comparable.
        name: of its metric, `reward/NAME`. max_missing: share of the pairs that may have no verdict.
    """

    def __init__(self, judge: Judge, *, moving: bool = False, name: str = "judge", max_missing: float = MAX_MISSING):
        self.judge = judge if isinstance(judge, Debiased) else Debiased(judge)
        self.failures = ParseFailures(max_missing)
        self.scale, self.name = Scale(comparable=False, moving=moving), name

    @property
    def whole_models(self) -> tuple[Backbone, ...]:
        """The judge's model, where it is one of this process: it may generate, one token after the other."""
        return model_of(self.judge)

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the judge's scores, ranks and, for pairs, shares.

        Raises:
            DataError: a group of fewer than two responses.
            JudgeError: the judge gives no verdict on more than `max_missing` of the pairs.
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
        self.failures.add(verdicts)
        remaining = iter(verdicts)
        judged = [_with_verdicts(g, ij, [next(remaining) for _ in ij]) for g, ij in zip(groups, indices, strict=True)]
        return [group for group in judged if group is not None]

    def take_cost(self) -> Cost:
        """Returns the cost of the judge since the last call."""
        return _taken_cost(self.judge)

    def take_metrics(self) -> Metrics:
        """`judge_calls`, `judge_tokens`, `judge_cost` and `judge_missing` since the last time, sums over processes."""
        return _metrics(self.judge, self.failures)


class GradeScorer:
    """A judge that grades, as a scorer: one score a response.

    A response without a grade is left out of its group, and a group of which fewer than two are left is left out too:
    no number is imputed.

    Args:
        moving, name, max_missing: see `JudgeScorer`.
    """

    def __init__(
        self, judge: ScoreJudge, *, moving: bool = False, name: str = "judge", max_missing: float = MAX_MISSING
    ):
        self.judge = judge
        self.failures = ParseFailures(max_missing)
        self.scale, self.name = Scale(comparable=True, moving=moving), name

    @property
    def whole_models(self) -> tuple[Backbone, ...]:
        """The judge's model, where it is one of this process: it may generate, one token after the other."""
        return model_of(self.judge)

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the judge's grades as scores.

        Raises:
            JudgeError: the judge gives no grade to more than `max_missing` of the responses.
        """
        set_turn(self.judge, policy_version_of(groups))
        scored = []
        for group, grades in zip(groups, self.judge.score(groups), strict=True):
            self.failures.add(grades)
            graded = [(r, g.score) for r, g in zip(group.responses, grades, strict=True) if g.score is not None]
            if len(graded) == len(grades) or len(graded) >= 2:
                responses, scores = tuple(r for r, _ in graded), tuple(s for _, s in graded)
                scored.append(replace(group, responses=responses, scores=scores, preference=None))
        return scored

    def take_cost(self) -> Cost:
        """Returns the cost of the judge since the last call."""
        return _taken_cost(self.judge)

    def take_metrics(self) -> Metrics:
        """`judge_calls`, `judge_tokens`, `judge_cost` and `judge_missing` since the last time, sums over processes."""
        return _metrics(self.judge, self.failures)


class ListScorer:
    """A judge that ranks whole lists, as a scorer: two requests a group, in place of two for each of its pairs.

    The score of a response is the share of the others that it is ranked above, a tie one half: on the scale of
    `JudgeScorer`, a mean win probability. A group without a ranking is left out.

    Args:
        judge: wrapped in `BothLists` by the settings. moving, name, max_missing: see `JudgeScorer`.
    """

    def __init__(
        self, judge: ListJudge, *, moving: bool = False, name: str = "judge", max_missing: float = MAX_MISSING
    ):
        self.judge = judge
        self.failures = ParseFailures(max_missing)
        self.scale, self.name = Scale(comparable=False, moving=moving), name

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with scores and ranks.

        Raises:
            DataError: a group of fewer than two responses, or of more than nine.
            JudgeError: the judge ranks fewer than 1 - `max_missing` of the groups.
        """
        set_turn(self.judge, policy_version_of(groups))
        rankings = self.judge.rank(groups)
        self.failures.add([Verdict(None if r.ranks is None else 0.5, r.reason, cause=r.cause) for r in rankings])
        scored = []
        for group, ranking in zip(groups, rankings, strict=True):
            if ranking.ranks is not None:
                others = len(ranking.ranks) - 1
                scores = tuple(
                    (sum(r > rank for r in ranking.ranks) + (ranking.ranks.count(rank) - 1) / 2) / others
                    for rank in ranking.ranks
                )
                scored.append(replace(group, scores=scores, preference=Preference(ranks=ranking.ranks)))
        return scored

    def take_cost(self) -> Cost:
        """Returns the cost of the judge since the last call."""
        return _taken_cost(self.judge)

    def take_metrics(self) -> Metrics:
        """As of `JudgeScorer`; `judge_missing` counts groups."""
        return _metrics(self.judge, self.failures)


def policy_version_of(groups: Sequence[Group]) -> int | None:
    """Version of the policy that sampled these groups, the newest of several; None if no response was sampled."""
    versions = [r.policy_version for g in groups for r in g.responses if r.policy_version is not None]
    return max(versions, default=None)


def _taken_cost(judge: Judge | ScoreJudge | ListJudge) -> Cost:
    return _cost(judge.usage.taken())


def _cost(used: Usage) -> Cost:
    return Cost(used.calls, used.tokens_in, used.tokens_out, used.cost)


def _metrics(judge: Judge | ScoreJudge | ListJudge, failures: ParseFailures) -> Metrics:
    """The cost and the missing verdicts, these also by cause; verdicts from words where log-probs were requested."""
    once = float(processes.is_main())  # sums over processes, not means
    used, causes = judge.usage.taken(), failures.take()
    values: dict[str, float] = {
        "judge_calls": float(used.calls),
        "judge_tokens": float(used.tokens_in + used.tokens_out),
        "judge_cost": used.cost,
        "judge_missing": float(sum(causes.values())),
    }
    values |= {f"judge_missing/{cause.replace(' ', '_')}": float(n) for cause, n in sorted(causes.items())}
    values |= {"judge_from_words": float(used.hard)} if used.hard else {}
    values |= {"judge_unmetered": float(used.unmetered)} if used.unmetered else {}
    return {name: (value, once) for name, value in values.items()}


def model_of(judge: Any) -> tuple[Backbone, ...]:
    """Returns the model of a judge that runs in this process; none of another."""
    model = getattr(getattr(judge, "judge", judge), "model", None)
    return (model,) if isinstance(model, Backbone) else ()


def set_turn(judge: Any, turn: int | None) -> None:
    """Sets the turn of a paid judge, see `Client`; other judges have none."""
    client = getattr(getattr(judge, "judge", judge), "client", None)
    if client is not None:
        client.turn = turn


def _with_verdicts(group: Group, indices: Sequence[tuple[int, int]], verdicts: Sequence[Verdict]) -> Group | None:
    """Returns the group with the scores and the preference that the verdicts on its pairs give; None without any."""
    count = len(group.responses)
    wins, games = [0.0] * count, [0] * count
    for (i, j), verdict in zip(indices, verdicts, strict=True):
        if verdict.p is not None:
            for index, p in ((i, verdict.p), (j, 1 - verdict.p)):
                wins[index] += p
                games[index] += 1
    kept = [k for k in range(count) if games[k]]
    if not kept:
        return None
    scores = tuple(wins[k] / games[k] for k in kept)
    preference = Preference(shares=scores) if count == 2 else Preference(ranks=dense_ranks(scores))
    return replace(group, responses=tuple(group.responses[k] for k in kept), scores=scores, preference=preference)
