"""The protocol of everything that scores responses, and what a scorer reports beside its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from tiltyard.batch.batch import Metrics, summed
from tiltyard.errors import DataError
from tiltyard.types import Group, Response


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
    groups that it cannot score may be left out of the result. The score of a group depends on that group alone, not on
    its neighbours in the call.
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
    return scored.responses[0] in given.responses if scored.responses else not given.responses


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
        means = {f"reward/{scorer.name}": score_sum(scorer.score(groups) if groups else []) for scorer in self.scorers}
        return summed([means, *map(scorer_metrics, self.scorers)])
