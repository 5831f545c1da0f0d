"""Rankings cut into pairs, and ranks or scores turned into labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tiltyard.errors import DataError
from tiltyard.inputs.workspace import Workspace
from tiltyard.numerals import plural
from tiltyard.training.prepare import binary_labels
from tiltyard.training.select import all_pairs, best_worst
from tiltyard.training.source import generator
from tiltyard.types import Group, Preference, ranks_of, shares_of


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
            ranked = [replace(group, scores=tuple(-float(k) for k in ranks_of(group.preference) or ()))]
            cut = best_worst(ranked, stream) if how == "best_worst" else all_pairs(ranked)
            made, ties = made + len(cut), ties + cut.dropped
            yield from cut
    work.report(
        key, [f"{plural(made, 'pair')} of {plural(len(groups), 'row')} (pairs={how}), {plural(ties, 'tie')} left out"]
    )


def is_tie(group: Group) -> bool:
    """True if all responses rank equal and no soft label gives a preference between them."""
    return shares_of(group.preference) is None and len(set(ranks_of(group.preference) or ())) < 2


def is_same(group: Group) -> bool:
    """True if a group of two or more has one and the same response, so that nothing can be learnt from their order."""
    return len(group.responses) > 1 and len({response.ids for response in group.responses}) == 1


def check_differences(groups: Sequence[Group], where: str) -> None:
    """Checks that some group prefers one response to a different one.

    Raises:
        DataError: all are ties, or compare a response with itself (in the file, or after being cut).
    """
    if all(is_tie(group) or is_same(group) for group in groups):
        ties, same = sum(map(is_tie, groups)), sum(map(is_same, groups))
        raise DataError(
            "every comparison is a tie: there is nothing to learn"
            if not same
            else "no comparison has two answers that differ and a preference: there is nothing to learn",
            where=where,
            got=f"{len(groups):,} groups: {ties:,} ties, {same:,} whose answers are the same"
            + (" (as far as max_length leaves them)" if same else ""),
            expected="some response that is ranked above another",
            fix="check how the file was made" + (", and raise max_length if answers were cut" if same else ""),
        )


def check_labels_differ(groups: Sequence[Group], where: str) -> None:
    """Checks that not every group calls one and the same response good and bad.

    Raises:
        DataError: all do.
    """
    if groups and all(is_same(g) and len(set(binary_labels(g) or ())) > 1 for g in groups):
        raise DataError(
            "every answer is labelled good and bad: there is nothing to learn",
            where=where,
            got=f"{len(groups):,} groups whose answers are the same (as far as max_length leaves them)",
            expected="good and bad answers that differ",
            fix="check how the file was made, and raise max_length if answers were cut",
        )


def labelled(group: Group, good_from: float | str) -> Group:
    """Scores turned into labels, at least `good_from` being good; or ranks, the best alone being good."""
    ranks = ranks_of(group.preference)
    if good_from == "best" and ranks is not None:
        return replace(group, preference=Preference(labels=tuple(k == min(ranks) for k in ranks)))
    if group.scores is None or isinstance(good_from, str):
        raise DataError(
            "good_from compares what this row does not have",
            where=group.origin or group.prompt.id,
            got="no scores" if group.scores is None else "no ranks",
            expected="scores for a number, ranks for good_from=best",
            fix="leave good_from out where the rows are labelled already",
        )
    return replace(group, preference=Preference(labels=tuple(s >= good_from for s in group.scores)))


def check_labels(group: Group) -> Group:
    """Returns the group with its labels, also where a scorer gave 1 (good) and 0 (bad); sampled groups may have others.

    Raises:
        DataError: a response is not; the error names how labels can be made of ranks or scores.
    """
    labels = binary_labels(group)
    if labels is None:
        raise DataError(
            "these responses are not labelled good or bad",
            where=group.origin or group.prompt.id,
            got=f"scores {group.scores}" if group.scores is not None else "ranks" if group.preference else "no scores",
            expected="1 (good) or 0 (bad) for each response",
            fix="set good_from=best: the best-ranked responses are good, or good_from=NUMBER: those with that score",
        )
    return replace(group, preference=Preference(labels=labels))
