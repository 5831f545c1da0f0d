"""Rankings cut into pairs, and ranks or scores turned into labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tiltyard.errors import DataError
from tiltyard.inputs.workspace import Workspace
from tiltyard.training.select import all_pairs, best_worst
from tiltyard.training.source import generator
from tiltyard.types import Group


def as_pairs(work: Workspace, key: str, groups: Sequence[Group], how: str, seed: int) -> Iterator[Group]:
    """The pairs among the groups as they are, soft labels too; then every ranking cut into pairs."""
    made = ties = 0
    for group in groups:
        if len(group.responses) == 2:
            made += 1
            yield group
    stream = generator(seed, 6)
    for group in groups:
        if len(group.responses) > 2:
            ranked = [replace(group, scores=tuple(-float(k) for k in group.ranks or ()))]
            cut = best_worst(ranked, stream) if how == "best_worst" else all_pairs(ranked)
            made, ties = made + len(cut), ties + cut.dropped
            yield from cut
    work.report(key, [f"{made:,} pairs of {len(groups):,} rows (pairs={how}), {ties:,} ties left out"])


def labelled(group: Group, good_from: float | str) -> Group:
    """Scores turned into labels, at least `good_from` being good; or ranks, the best alone being good."""
    if good_from == "best" and group.ranks is not None:
        return replace(group, scores=tuple(float(k == min(group.ranks)) for k in group.ranks))
    if group.scores is None or isinstance(good_from, str):
        raise DataError(
            "good_from compares what this row does not have",
            where=group.origin or group.prompt.id,
            got="no scores" if group.scores is None else "no ranks",
            expected="scores for a number, ranks for good_from=best",
            fix="leave good_from out where the rows are labelled already",
        )
    return replace(group, scores=tuple(float(s >= good_from) for s in group.scores))


def check_labels(group: Group) -> Group:
    """Returns the group if every response is labelled good (1) or bad (0); sampled groups may have other scores.

    Raises:
        DataError: a response is not; the error names how labels can be made of ranks or scores.
    """
    if group.scores is None or not set(group.scores) <= {0.0, 1.0}:
        raise DataError(
            "these responses are not labelled good or bad",
            where=group.origin or group.prompt.id,
            got=f"scores {group.scores}" if group.scores is not None else "ranks" if group.ranks else "no scores",
            expected="1 (good) or 0 (bad) for each response",
            fix="set good_from=best: the best-ranked responses are good, or good_from=NUMBER: those with that score",
        )
    return group
