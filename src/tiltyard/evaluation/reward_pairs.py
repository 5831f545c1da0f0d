"""From labelled groups and a reward model's scores to pairs of answers, the preferred one first."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tiltyard.errors import DataError
from tiltyard.stats.intervals import kendall_tau_b
from tiltyard.types import Group

FIELDS = ("source", "subset", "category")  # fields of a row by which accuracy is broken down
_TWO = 2


class Pair(NamedTuple):
    """Two answers to one prompt with their scores. `q`: probability that the one called chosen is the preferred one.

    `prompt` names what the pair shares with others (any hashable). `margin` is how clearly the label prefers (nan:
    unknown). `labels` are the row's fields to break down by. `origin` and `places` say which answers of which row.
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
    places: tuple[int, int] = (0, 1)

    def swapped(self) -> Pair:
        """The same pair, the answers named the other way round."""
        return self._replace(
            chosen=self.rejected,
            rejected=self.chosen,
            q=1 - self.q,
            chosen_tokens=self.rejected_tokens,
            rejected_tokens=self.chosen_tokens,
            places=(self.places[1], self.places[0]),
        )


def pairs_of(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> list[Pair]:
    """Every pair of answers of every labelled group, the preferred one first; tied ones too, with q = 1/2.

    The label is `shares` (q = a / (a + b), the choice between two that Luce's rule gives), else `ranks`, else `scores`.
    The margin is the row's number `margin` (two answers), else the difference of the group's own scores.
    """
    found = []
    for group, given in zip(groups, scores, strict=True):
        if len(given) != len(group.responses):
            raise DataError(
                "every answer needs one score",
                where=group.origin,
                got=f"{len(given)} scores for {len(group.responses)} answers",
            )
        key, labels = prompt_key(group), _labels(group.prompt.meta)
        for i, j, q in _labelled(group):
            pair = Pair(
                key,
                float(given[i]),
                float(given[j]),
                q,
                len(group.responses[i].ids),
                len(group.responses[j].ids),
                _margin(group, i, j),
                labels,
                group.origin,
                (i, j),
            )
            found.append(pair if q >= 0.5 else pair.swapped())
    return found


def taus_of(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> list[tuple[Hashable, float]]:
    """(prompt, Kendall's tau-b of labels and scores) of each group of three and more; nan where all on a side tie."""
    found: list[tuple[Hashable, float]] = []
    for group, given in zip(groups, scores, strict=True):
        if len(group.responses) <= _TWO:
            continue
        quality = group.scores or group.shares if group.ranks is None else [-float(rank) for rank in group.ranks]
        if quality is not None:
            found.append((prompt_key(group), kendall_tau_b(quality, given)))
    return found


def prompt_key(group: Group) -> Hashable:
    """What two groups of one prompt share, whatever their rows call themselves."""
    return group.prompt.messages or group.prompt.text or group.prompt.ids


def _labelled(group: Group) -> Iterator[tuple[int, int, float]]:
    """(i, j, probability that i is the preferred one) of every pair of a group that is labelled at all."""
    shares, quality = group.shares, group.scores
    if group.ranks is not None:
        quality = tuple(-float(rank) for rank in group.ranks)
    if quality is None and shares is None:
        return
    count = len(group.responses)
    for i in range(count):
        for j in range(i + 1, count):
            if shares is not None and shares[i] + shares[j] > 0:
                yield i, j, shares[i] / (shares[i] + shares[j])
            else:
                yield i, j, 0.5 if quality is None else (float(np.sign(quality[i] - quality[j])) + 1) / 2


def _margin(group: Group, i: int, j: int) -> float:
    given = group.prompt.meta.get("margin")
    if len(group.responses) == _TWO and isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    return math.nan if group.scores is None else abs(group.scores[i] - group.scores[j])


def _labels(meta: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    values = ((name, meta.get(name)) for name in FIELDS)
    return tuple((name, str(value)) for name, value in values if isinstance(value, str | int) and str(value).strip())
