"""Pairs of labelled responses with a reward model's scores, the preferred response first."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from tiltyard.errors import DataError
from tiltyard.stats.correlation import kendall_tau_b
from tiltyard.types import Group, Preference, pairs_of, ranks_of

FIELDS = ("source", "subset", "category")  # fields of a row by which accuracy is broken down
_TWO = 2


class ScoredPair(NamedTuple):
    """Two responses to one prompt with their scores; `q`: probability that `chosen` is the preferred one.

    `prompt`: the cluster of the pair (any hashable). `margin`: strength of the preference in the label (nan: unknown).
    `labels`: fields of the row for breakdowns. `origin`: the row. `indices`: the two responses in the row.
    """

    prompt: Hashable
    chosen: float
    rejected: float
    q: float = 1.0
    chosen_tokens: int = 0
    rejected_tokens: int = 0
    margin: float = math.nan
    labels: tuple[tuple[str, str], ...] = ()
    origin: str = ""
    indices: tuple[int, int] = (0, 1)

    def swapped(self) -> ScoredPair:
        """Returns the pair with chosen and rejected exchanged, and 1 - q."""
        return self._replace(
            chosen=self.rejected,
            rejected=self.chosen,
            q=1 - self.q,
            chosen_tokens=self.rejected_tokens,
            rejected_tokens=self.chosen_tokens,
            indices=(self.indices[1], self.indices[0]),
        )


def scored_pairs(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> list[ScoredPair]:
    """Returns every pair of responses of every labelled group, the preferred one first; ties have q = 1/2.

    The label is `shares` (q = a / (a + b), Luce's choice rule), else `ranks`, else `scores`. The margin is the row's
    number `margin` (two responses), else the difference of the group's scores.

    Args:
        scores: of each group, the reward model's score of each response.

    Raises:
        DataError: a group with more or fewer scores than responses.
    """
    pairs = []
    for group, group_scores in zip(groups, scores, strict=True):
        if len(group_scores) != len(group.responses):
            raise DataError(
                "every response needs one score",
                where=group.origin,
                got=f"{len(group_scores)} scores for {len(group.responses)} responses",
            )
        key, labels = prompt_key(group), _labels(group.prompt.meta)
        for i, j, q in pairs_of(_preference(group)):
            pairs.append(
                ScoredPair(
                    key,
                    float(group_scores[i]),
                    float(group_scores[j]),
                    q,
                    len(group.responses[i].ids),
                    len(group.responses[j].ids),
                    _margin(group, i, j),
                    labels,
                    group.origin,
                    (i, j),
                )
            )
    return pairs


def ranking_taus(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> list[tuple[Hashable, float]]:
    """Returns (prompt, Kendall's tau-b of labels and scores) of each group of three and more; nan if undefined."""
    taus: list[tuple[Hashable, float]] = []
    for group, group_scores in zip(groups, scores, strict=True):
        if len(group.responses) <= _TWO:
            continue
        ranks = ranks_of(_preference(group))
        if ranks is not None:
            taus.append((prompt_key(group), kendall_tau_b([-float(rank) for rank in ranks], group_scores)))
    return taus


def prompt_key(group: Group) -> Hashable:
    """Returns a key that is equal for groups of the same prompt, whatever their ids."""
    return group.prompt.messages or group.prompt.text or group.prompt.ids


def _preference(group: Group) -> Preference | None:
    """Returns the preference of a group, or else the scores of its data as ratings; None if it has neither."""
    return group.preference or (None if group.scores is None else Preference(ratings=group.scores))


def _margin(group: Group, i: int, j: int) -> float:
    margin = group.prompt.meta.get("margin")
    if len(group.responses) == _TWO and isinstance(margin, int | float) and not isinstance(margin, bool):
        return float(margin)
    return math.nan if group.scores is None else abs(group.scores[i] - group.scores[j])


def _labels(meta: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    values = ((name, meta.get(name)) for name in FIELDS)
    return tuple((name, str(value)) for name, value in values if isinstance(value, str | int) and str(value).strip())
