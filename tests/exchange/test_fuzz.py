"""Records of other tools with anything in any place: rows that parse, or an error that names the row."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data.foreign import own_rows
from tiltyard.data.judged_rows import parse_judged
from tiltyard.data.row import Row
from tiltyard.errors import DataError

PAIR = {"prompt": "Hi", "response_1": "a", "response_2": "b"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]
RECORDS = [
    {"model_a": "x", "model_b": "y", "winner": "tie", "conversation_a": TURNS, "conversation_b": TURNS, "judge": "u"},
    {"model_a": "x", "model_b": "y", "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0, "prompt": '["Hi"]',
     "response_a": '["a"]', "response_b": '["b"]'},
    {"instruction": "Hi", "completions": [{"model": "x", "response": "a", "overall_score": 3, "annotations": {}},
                                           {"model": "y", "response": "b", "overall_score": "4"}]},
    {"id": "1", "fields": PAIR, "metadata": {"annotators": ["u ada"], "models": ["x", "y"]},
     "responses": {"preference": [{"value": "response_1", "user_id": "u"}]}},
    {"fields": PAIR, "responses": [{"user_id": "u", "status": "submitted",
                                    "values": {"q": {"value": ["response_2", "response_1"]}}}]},
    {**PAIR, "q.responses": ["tie"], "q.responses.users": ["u"], "q.responses.status": ["submitted"]},
    {"data": PAIR, "annotations": [{"completed_by": 1, "result": [{"type": "choices", "value": {"choices": ["tie"]},
                                                                   "meta": {"judgement": {"shown": [0, 1]}}}]}]},
    {"prompt": "Hi", "responses": ["a", "b"], "ranks": [1, 2], "models": ["x", "y"], "judgement": {"chosen_with": 0.5}},
]  # fmt: skip
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=6))
NESTED = [
    lambda inner: st.lists(inner, max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3),
]
ANY = st.recursive(SCALAR, lambda inner: st.one_of(*(make(inner) for make in NESTED)), max_leaves=6)


def places(value, path=()):
    """Every place of a nested value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def put(value, path, new):
    """The value with something else at a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.data())
def test_anything_anywhere_is_read_or_refused_by_its_row(data) -> None:
    record = data.draw(st.sampled_from(RECORDS))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([p for p in places(record) if p]))
        record = put(record, path, data.draw(ANY))
    where = ""
    try:
        judged = [parse_judged(row) for row in own_rows(Row(record, "f.jsonl:7"))]
        assert all(len(group.responses) >= 2 and group.preference is not None for group in judged)
    except DataError as error:
        where = error.where
    assert where in ("", "f.jsonl:7")
