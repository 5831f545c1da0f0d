"""The items that a judge is queried about: pairs and groups of a file, or the tasks of a feedback store."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal

from tiltyard.data import BadRows, limit_of, limited, parsed_rows, read_groups
from tiltyard.data.bad_rows import BadRowRule, parse_answers
from tiltyard.data.limit import LimitBy
from tiltyard.errors import DataError
from tiltyard.feedback.settings import Ask
from tiltyard.feedback.simulated import seed_from
from tiltyard.stages.base import StageContext
from tiltyard.types import Group, Preference, dense_ranks, ranks_of

Cut = Literal["given", "random", "all"]


def items_of_file(
    context: StageContext,
    data: str,
    *,
    ask: Ask,
    pairs: Cut = "given",
    split: str = "",
    limit: int = 0,
    limit_by: LimitBy = "first",
    bad_rows: BadRowRule = "error",
    seed: int = 0,
) -> list[Group]:
    """Returns the pairs of a file in its order (`ask: pair`), or its groups, with the preferences that the data has.

    Raises:
        DataError: there is nothing to judge, or a group is too small or too large for the question.
    """
    path = context.resolve(data, want="")
    groups: Iterator[Group]
    bad = BadRows(bad_rows)
    drawn = limit_of(limit, limit_by, seed)
    if str(path).endswith(".groups.jsonl"):
        groups = limited(lambda: read_groups(path), drawn, bad.told)
    else:
        rows = parsed_rows(path, parse_answers, bad, split=split or None, limit=drawn)
        groups = (group for _, group in rows)
    if ask == "pair":
        items = [pair for number, group in enumerate(groups) for pair in pairs_of_group(group, number, pairs, seed)]
    else:
        items = [_whole(group, 2 if ask == "rank" else 1) for group in groups]
    if bad.count or bad.drawn:
        context.report("data", bad.lines())
    if not items:
        raise DataError("there is nothing to judge", where=str(path), got="no item", fix="check data and limit")
    return items


def pairs_of_group(group: Group, number: int, pairs: Cut, seed: int) -> list[Group]:
    """Cuts a group into pairs, by the setting `pairs`.

    Raises:
        DataError: more than two responses and `pairs: given`, or fewer than two.
    """
    count = len(group.responses)
    if count == 2:
        return [group]
    if count < 2 or pairs == "given":
        raise DataError(
            "a judge compares two responses",
            where=group.origin or group.prompt.id,
            got=f"{count} responses",
            expected="two",
            fix="set pairs=random or pairs=all to cut larger groups into pairs" if count > 2 else "drop the row",
        )
    indices = list(combinations(range(count), 2))
    if pairs == "random":
        indices = [random.Random(seed_from(seed, number)).choice(indices)]
    return [_sub_pair(group, ij) for ij in indices]


def _whole(group: Group, least: int) -> Group:
    if len(group.responses) < least:
        raise DataError(
            "too few responses to judge",
            where=group.origin or group.prompt.id,
            got=f"{len(group.responses)} responses",
            expected=f"at least {least}",
            fix="drop the row",
        )
    return group


def _sub_pair(group: Group, indices: tuple[int, int]) -> Group:
    """Two responses of a group, with their scores and the order in which they were preferred."""

    def pick(values: tuple | None) -> tuple | None:
        return None if values is None else tuple(values[i] for i in indices)

    origin = f"{group.origin} {indices[0]},{indices[1]}".strip()
    ranks = pick(ranks_of(group.preference))
    preference = None if ranks is None else Preference(ranks=ranks)
    return Group(group.prompt, pick(group.responses) or (), pick(group.scores), preference, origin)


def given_ranks(group: Group) -> Sequence[int] | None:
    """The ranks that the data gives, by its preference or else its scores; None where it prefers nothing."""
    ranks = ranks_of(group.preference)
    if ranks is None and group.scores is not None:
        ranks = dense_ranks(group.scores)
    return ranks if ranks is not None and len(set(ranks)) > 1 else None
