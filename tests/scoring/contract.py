"""What every scorer promises, checked for all of them by `test_contract.py`.

A case is a scorer and groups that it can score, with an origin each and no two alike; `bad` is a group that it cannot
score, named by its origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.errors import TiltyardError
from tiltyard.scoring import Cost, Scale, Scorer
from tiltyard.scoring.base import matched_groups, matched_responses
from tiltyard.types import Group, ranks_of


@dataclass
class Case:
    """`make` builds the scorer afresh; `tolerance` is what rounding may change when groups are packed otherwise."""

    make: Callable[[], Scorer]
    groups: list[Group]
    bad: Group | None = None
    tolerance: float = 0.0


def names_itself(case: Case) -> None:
    scorer = case.make()
    assert isinstance(scorer.name, str)
    assert scorer.name
    assert isinstance(scorer.scale, Scale)


def keeps_the_order_and_changes_nothing_else(case: Case) -> None:
    scored = case.make().score(case.groups)
    for index, group in zip(matched_groups(case.groups, scored), scored, strict=True):
        given_group = case.groups[index]
        assert (group.prompt, group.origin) == (given_group.prompt, given_group.origin)
        for k, response in zip(matched_responses(given_group.responses, group.responses), group.responses, strict=True):
            assert response is given_group.responses[k] or response == given_group.responses[k]


def scores_are_finite_floats(case: Case) -> None:
    scored = case.make().score(case.groups)
    assert any(group.scores for group in scored)
    for group in scored:
        if group.scores is None:
            assert ranks_of(group.preference) is not None  # it says that it has no verdict
            continue
        assert len(group.scores) == len(group.responses)
        assert all(type(score) is float and math.isfinite(score) for score in group.scores)


def depends_on_the_group_alone(case: Case) -> None:
    """The same scores in any order and any split into calls."""
    scorer = case.make()
    whole = _by_origin(scorer.score(case.groups))

    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(st.permutations(case.groups), st.integers(1, len(case.groups)))
    def check(groups: list[Group], size: int) -> None:
        parts = [scorer.score(groups[i : i + size]) for i in range(0, len(groups), size)]
        again = _by_origin([group for part in parts for group in part])
        assert again.keys() == whole.keys()
        for origin, scores in whole.items():
            if scores is None or again[origin] is None:
                assert scores is again[origin] is None
            else:
                assert again[origin] == pytest.approx(scores, abs=case.tolerance, rel=0)

    check()


def cost_adds_up_and_resets(case: Case) -> None:
    scorer = case.make()
    assert scorer.take_cost() == Cost()
    scorer.score(case.groups)
    whole = scorer.take_cost()
    assert whole.calls > 0
    assert scorer.take_cost() == Cost()
    parts = Cost()
    for group in case.groups:
        scorer.score([group])
        parts += scorer.take_cost()
    assert replace(parts, price=0.0) == replace(whole, price=0.0)
    assert parts.price == pytest.approx(whole.price)


def nothing_and_empty_groups(case: Case) -> None:
    """No groups: none. A group without responses: no scores, or an error that names it."""
    scorer = case.make()
    assert scorer.score([]) == []
    empty = replace(case.groups[0], responses=(), scores=None, preference=None)
    error = ""
    try:
        scored = scorer.score([empty])
    except TiltyardError as refusal:
        scored, error = [], str(refusal)
    assert [group.scores or () for group in scored] in ([], [()])
    assert not error or empty.origin in error


def an_error_names_the_row(case: Case) -> None:
    if case.bad is None:
        return  # it can score anything
    with pytest.raises(TiltyardError) as caught:
        case.make().score([*case.groups, case.bad])
    assert case.bad.origin in caught.value.where
    assert caught.value.fix or caught.value.expected


CONTRACT: Sequence[Callable[[Case], None]] = (
    names_itself,
    keeps_the_order_and_changes_nothing_else,
    scores_are_finite_floats,
    depends_on_the_group_alone,
    cost_adds_up_and_resets,
    nothing_and_empty_groups,
    an_error_names_the_row,
)


def _by_origin(groups: Sequence[Group]) -> dict[str, tuple[float, ...] | None]:
    return {group.origin: group.scores for group in groups}
