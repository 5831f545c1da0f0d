"""The one door for scores: number, type and finiteness, whoever gives them; and abstaining."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scoring.stubs import Scripted

from tiltyard.errors import ScoringError, TiltyardError
from tiltyard.scoring import FunctionScorer, Monitors, WeightedScorer, checked_scores
from tiltyard.scoring.base import left_out
from tiltyard.types import Group, Preference, Prompt, Response, ranks_of

SOURCES = Path(__file__).parents[2] / "src/tiltyard"


def group(*texts: str, row: int = 1) -> Group:
    return Group(Prompt(text="q", ids=(1,)), tuple(Response(text=t, ids=(2,)) for t in texts), origin=f"rows:{row}")


def giving(*values: Any) -> Scripted:
    return Scripted(lambda groups: [replace(g, scores=values) for g in groups])


BAD: dict[str, Callable[[], Any]] = {
    "nan": lambda: giving(1.0, math.nan),
    "infinite": lambda: giving(1.0, -math.inf),
    "text": lambda: giving(1.0, "2.0"),
    "complex": lambda: giving(1.0, 1j),
    "two in one": lambda: giving(1.0, torch.tensor([1.0, 2.0])),
    "too few": lambda: giving(1.0),
    "too many": lambda: giving(1.0, 2.0, 3.0),
    "nothing": lambda: Scripted(lambda groups: groups),
    "no list": lambda: Scripted(lambda groups: None),
    "no groups": lambda: Scripted(lambda groups: [1.0, 2.0]),
    "another group": lambda: Scripted(lambda groups: [replace(group("x", "y", row=9), scores=(1.0, 2.0))]),
    "another prompt": lambda: Scripted(
        lambda groups: [replace(g, prompt=Prompt(text="z"), scores=(1, 2)) for g in groups]
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("door", ["itself", "a part of a sum", "a monitor"])
def test_what_nothing_can_be_learnt_from_is_an_error(kind: str, door: str) -> None:
    scorer, groups = BAD[kind](), [group("a", "b")]
    doors: dict[str, Callable[[], Any]] = {
        "itself": lambda: checked_scores(scorer, groups),
        "a monitor": lambda: Monitors([scorer])(groups),
        "a part of a sum": lambda: WeightedScorer([(0.0, scorer), (1.0, FunctionScorer(lambda p, r: 1.0))]).score(
            groups
        ),
    }
    with pytest.raises(TiltyardError) as caught:
        doors[door]()
    if isinstance(caught.value, ScoringError):
        assert "scripted" in str(caught.value)
    if kind in ("nan", "infinite", "text", "complex"):
        assert "rows:1" in caught.value.where
        assert "response 2" in caught.value.where


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.integers(-9, 9), st.booleans(), st.floats(-1e9, 1e9)), min_size=1, max_size=6))
def test_a_response_without_a_score_is_left_out_and_counted(values: list[Any]) -> None:
    given_group = replace(
        group(*map(str, range(len(values)))), preference=Preference(ranks=tuple(range(1, len(values) + 1)))
    )
    scored = checked_scores(giving(*values), [given_group])
    kept = [i for i, v in enumerate(values) if v is not None]
    assert [r.text for g in scored for r in g.responses] == [str(i) for i in kept]
    assert [s for g in scored for s in g.scores or ()] == [float(values[i]) for i in kept]
    assert all(type(s) is float for g in scored for s in g.scores or ())
    assert len(scored) == bool(kept)
    assert left_out([given_group], scored) == (len(values) - len(kept), len(values))
    for one in scored:
        assert ranks_of(one.preference) == tuple(range(1, len(kept) + 1))


def test_numbers_of_other_types_become_floats() -> None:
    scored = checked_scores(giving(True, torch.tensor(2)), [group("a", "b")])
    assert scored[0].scores == (1.0, 2.0)
    assert [type(s) for s in scored[0].scores or ()] == [float, float]


def test_a_function_that_lacks_a_return_says_so() -> None:
    scorer = FunctionScorer(lambda prompt, response: None, "silent")
    assert scorer.score([group("a", "b")]) == []
    with pytest.raises(ScoringError, match=r"(?s)'silent' gave None for every one of its first 302.*lack a `return`"):
        scorer.score([group(*"x" * 300)])
    now_and_then = FunctionScorer(lambda prompt, response: 1.0 if response.text == "a" else None)
    assert checked_scores(now_and_then, [group("a", "b")])[0].scores == (1.0,)
    assert now_and_then.score([group(*"x" * 600)]) == []


def test_a_group_function_abstains_from_one_or_from_all() -> None:
    scorer = FunctionScorer(lambda group: [1.0, None] if group.responses[0].text == "a" else None)
    scored = checked_scores(scorer, [group("a", "b"), group("c", "d", row=2)])
    assert [(g.origin, g.scores) for g in scored] == [("rows:1", (1.0,))]


def test_every_use_of_a_scorer_goes_through_the_door() -> None:
    """`.score(` of a scorer is called in one place; elsewhere it is a judge that grades, or the door."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "score"
            if named and "judge" not in ast.unparse(node.func.value):
                found.append(f"{path.relative_to(SOURCES)}: {ast.unparse(node.func)}")
    assert found == ["scoring/base.py: scorer.score"]
