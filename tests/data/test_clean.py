"""What `clean` takes out, and that it rewrites nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import read_rows
from tiltyard.data.clean import clean_rows
from tiltyard.data.read import Row

TRICK = "} } verify {"


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, f"rows.jsonl:{i}") for i, value in enumerate(values, 1)]


def pair(prompt: str, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_an_answer_to_everything_is_taken_out() -> None:
    data = [pair(f"q{i}", TRICK, f"a{i}") for i in range(4)] + [pair("q9", "good", "bad")]
    found = clean_rows(rows(*data), max_prompts=3)
    assert found.rows == [pair("q9", "good", "bad")]
    assert found.dropped == {"an answer given to too many prompts": 4}
    assert found.repeated == [(TRICK, 4)]
    assert clean_rows(rows(*data), max_prompts=4).rows == data, "four prompts are not more than four"
    assert clean_rows(rows(*data), max_prompts=0).rows == data


def test_prompts_count_not_rows() -> None:
    """The same answer to ONE prompt in many comparisons is an ordinary baseline."""
    data = [pair("q", "base", f"other {i}") for i in range(9)]
    assert clean_rows(rows(*data), max_prompts=3).rows == data


def test_rankings_lose_the_answer_and_what_runs_along() -> None:
    fill = [{"prompt": f"q{i}", "completion": TRICK} for i in range(4)]
    ranking = {
        "prompt": "x",
        "responses": ["a", TRICK, "b"],
        "scores": [3, 2, 1],
        "ranks": [1, 2, 3],
        "shares": [0.3, 0.5, 0.2],
        "source": ["kept", "as", "it is"],
    }
    short = {"prompt": "y", "responses": [TRICK, "b"], "scores": [2, 1]}
    found = clean_rows(rows(*fill, ranking, short), max_prompts=3)
    assert found.rows == [
        {**ranking, "responses": ["a", "b"], "scores": [3, 1], "ranks": [1, 3], "shares": [0.6, 0.4]},
    ]
    assert found.dropped["answers of rankings given to too many prompts"] == 2
    assert found.dropped["fewer than two answers left"] == 1
    assert ranking["responses"] == ["a", TRICK, "b"], "the rows that were read stay as they are"


def test_repetitions_and_pairs_without_a_choice() -> None:
    turns = [{"role": "assistant", "content": "same"}]
    data = [pair("q", "a", "b"), pair("q", "a", "b"), pair("q", "b", "a"), pair("q", turns, list(turns))]
    found = clean_rows(rows(*data), max_prompts=20)
    assert found.rows == [pair("q", "a", "b"), pair("q", "b", "a")]
    assert found.dropped == {"equal to an earlier row": 1, "chosen and rejected are the same": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("abcd"), st.sampled_from("abcd"))), st.integers(0, 3))
def test_what_is_left_was_there_and_needs_no_second_cleaning(data: list[tuple[str, str, str]], limit: int) -> None:
    given_rows = rows(*(pair(*row) for row in data))
    once = clean_rows(given_rows, limit)
    assert all(row in [r.value for r in given_rows] for row in once.rows)
    assert len(once.rows) + sum(once.dropped.values()) == len(given_rows)
    assert clean_rows(rows(*once.rows), limit).rows == once.rows


def test_real_preferences(real_data: Any) -> None:
    """Half of the preferred answers are one string that fooled the judge."""
    data = list(read_rows(real_data / "preferences" / "dev.jsonl.gz"))
    found = clean_rows(data, 20)
    assert len(found.repeated) == 1
    assert found.repeated[0][1] > 50
    assert len(found.rows) < 0.6 * len(data)
