"""The protocol of everything that scores responses, and what a scorer reports beside its scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tiltyard.batch.batch import Metrics, summed
from tiltyard.distributed.parts import gathered
from tiltyard.errors import DataError, ScoringError
from tiltyard.models.backbone import Backbone
from tiltyard.types import Group, Preference, Response


class Scale(NamedTuple):
    """Comparability of a scorer's numbers.

    `comparable`: scores mean the same for responses of different prompts. False: only within one group (a pairwise
    judge). `moving`: the scorer changes while the policy trains (the policy as its own judge), so scores of different
    steps are not comparable.
    """

    comparable: bool = True
    moving: bool = False


@dataclass(frozen=True)
class Cost:
    """Cost of scoring: calls of a judge, model or function, tokens read and written, and money.

    `price` is in the currency of the judge's `price_in` and `price_out`; 0 for whatever runs locally.
    """

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    price: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.price + other.price,
        )


class Scorer(Protocol):
    """Adds one score a response (higher is better) to groups; some scorers add ranks and shares as well.

    A scorer keeps the order of the groups and leaves prompts, ids, texts and log-probs as they are. Responses or whole
    groups that it cannot score may be left out of the result, or have None in place of a score (it abstains). The score
    of a group depends on that group alone, not on its neighbours in the call.

    Code that learns from scores calls `checked_scores`, never `score` itself.
    """

    @property
    def name(self) -> str:
        """Key of its metrics, `reward/NAME`."""

    @property
    def scale(self) -> Scale: ...

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with scores, in the same order."""

    def take_cost(self) -> Cost:
        """The cost of scoring since the last call; counting starts again."""


@runtime_checkable
class Reporting(Protocol):
    """A scorer with metrics of its own: the parts of a weighted sum, the calls of a judge."""

    def take_metrics(self) -> Metrics:
        """(sum, count) by name since the last call, `take_cost` included; counting starts again."""


def scorer_metrics(scorer: object) -> Metrics:
    """The scorer's own metrics since the last call; empty for a scorer without any."""
    return scorer.take_metrics() if isinstance(scorer, Reporting) else {}


def scores_together(scorer: object) -> bool:
    """True for a scorer that all processes call together, also one without groups: its model may be spread."""
    return bool(getattr(scorer, "together", False))


def whole_models(scorer: object) -> tuple[Backbone, ...]:
    """The models that must be whole in each process while it scores: a judge that generates, above all the policy."""
    return tuple(getattr(scorer, "whole_models", ()))


def highest_score(scorer: object) -> float | None:
    """The highest score that any response can have, where the scorer declares one as `highest`."""
    found = getattr(scorer, "highest", None)
    return None if found is None else float(found)


def checked_scores(scorer: Scorer, groups: Sequence[Group]) -> list[Group]:
    """Scores groups and checks the result; every use of a scorer goes through this function.

    Returns the groups in their order with one finite float a response. Responses of which the scorer abstained (None in
    place of a score), and groups without any response left, are not among them: `left_out` counts them. A group may
    have a preference and no scores (a pairwise judge without a verdict).

    Raises:
        ScoringError: not a list of groups, not one score a response, or a score that is no finite number; it names the
            scorer, the row and the response.
        DataError: groups or responses that were not given, or not in this order.
    """
    with gathered(*(model.module for model in whole_models(scorer))):
        if not groups and not scores_together(scorer):
            return []
        scored = scorer.score(groups)
    if not isinstance(scored, list | tuple) or not all(isinstance(group, Group) for group in scored):
        raise ScoringError(
            f"the scorer '{scorer.name}' gave no list of groups", got=type(scored).__name__, expected="list[Group]"
        )
    matched_groups(groups, scored)
    checked = [_with_numbers(scorer.name, group) for group in scored]
    return [group for group in checked if group.responses]


def left_out(given: Sequence[Group], scored: Sequence[Group]) -> tuple[float, float]:
    """(responses that got no score, all responses): those of which a scorer abstained or that it could not score."""
    count = [sum(len(group.responses) for group in groups) for groups in (given, scored)]
    return float(count[0] - count[1]), float(count[0])


def _with_numbers(name: str, group: Group) -> Group:
    if group.scores is None:
        if group.preference is None:
            raise _bad_score(name, group, None, "neither scores nor a preference", "one number a response")
        return group
    if len(group.scores) != len(group.responses):
        raise _bad_score(name, group, None, f"{len(group.scores)} scores", f"{len(group.responses)}, one a response")
    values = [_number(name, group, k, value) for k, value in enumerate(group.scores)]
    return without_abstentions(group, values)


def without_abstentions(group: Group, values: Sequence[float | None]) -> Group:
    """The group with these scores, without the responses whose value is None."""
    kept = [k for k, value in enumerate(values) if value is not None]
    if len(kept) == len(values):
        return replace(group, scores=tuple(value for value in values if value is not None))
    ranks = None if group.preference is None else group.preference.ranks
    return replace(
        group,
        responses=tuple(group.responses[k] for k in kept),
        scores=tuple(value for value in values if value is not None),
        preference=None if ranks is None else Preference(ranks=_dense([ranks[k] for k in kept])),
    )


def _dense(ranks: Sequence[int]) -> tuple[int, ...]:
    order = sorted(set(ranks))
    return tuple(order.index(rank) + 1 for rank in ranks)


def as_float(value: Any) -> float:
    """Returns a score as a float; NaN for what is no number, texts included."""
    if isinstance(value, str | bytes | bytearray):  # "1.0" is no number
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def _number(name: str, group: Group, k: int, value: Any) -> float | None:
    if value is None:
        return None
    number = as_float(value)
    if not math.isfinite(number):
        raise _bad_score(name, group, k, repr(value)[:200], "a finite number, or None where the scorer abstains")
    return number


def _bad_score(name: str, group: Group, k: int | None, got: str, expected: str) -> ScoringError:
    where = [group.origin, f"prompt {group.prompt.id}" if group.prompt.id else ""]
    where += [] if k is None else [f"response {k + 1}"]
    text = "" if k is None else f" ({group.responses[k].text[:80]!r})"
    return ScoringError(
        f"the scorer '{name}' gave no score that can be learnt from",
        where=", ".join(part for part in where if part),
        got=got,
        expected=expected,
        fix=f"mend the scorer for this response{text}; a reward model with broken weights must be trained again, "
        "one that overflows wants dtype=float32",
    )


def score_sum(groups: Sequence[Group]) -> tuple[float, float]:
    """(sum, count) of all scores of the groups."""
    scores = [score for group in groups for score in group.scores or ()]
    return float(sum(scores)), float(len(scores))


def matched_groups(given: Sequence[Group], scored: Sequence[Group]) -> list[int]:
    """For each scored group its index in `given`: a scorer keeps the order and may leave out responses and groups.

    Raises:
        DataError: a group that was not given, or not in this order.
    """
    remaining = iter(enumerate(given))
    indices = []
    for group in scored:
        index = next((i for i, g in remaining if g.prompt == group.prompt and _may_be(group, g)), None)
        if index is None:
            raise DataError(
                "the scorer gave back a group that it was not given",
                where=group.origin or group.prompt.id,
                expected="the groups in their order, without those that it could not score",
            )
        indices.append(index)
    return indices


def _may_be(scored: Group, given: Group) -> bool:
    """True if the scored group is the given one, or that one without some of its responses."""
    if not scored.responses:
        return not given.responses
    remaining = iter(given.responses)
    return all(any(response == other for other in remaining) for response in scored.responses)


def matched_responses(given: Sequence[Response], scored: Sequence[Response]) -> list[int]:
    """For each scored response its index among the given ones, in their order.

    Raises:
        DataError: a response that was not given, or not in this order.
    """
    remaining = iter(enumerate(given))
    indices = [next((i for i, r in remaining if r == response), None) for response in scored]
    found = [i for i in indices if i is not None]
    if len(found) < len(indices):
        raise DataError(
            "the scorer gave back a response that it was not given",
            expected="the responses in their order, without those that it could not score",
        )
    return found


class Monitors:
    """Scorers whose mean score is logged as `reward/NAME` and never trained on.

    Args:
        scorers: measured on each step's responses, each under its `name`.
    """

    def __init__(self, scorers: Sequence[Scorer]):
        self.scorers = list(scorers)

    def __call__(self, groups: list[Group]) -> Metrics:
        """(sum, count) of each monitor's scores on these groups, and its own metrics."""
        means = {f"reward/{scorer.name}": score_sum(checked_scores(scorer, groups)) for scorer in self.scorers}
        return summed([means, *map(scorer_metrics, self.scorers)])
