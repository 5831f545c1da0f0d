"""What `clean` takes out, and that it rewrites nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import BadRows, Kind, check_data, parse_row, parsed_rows
from tiltyard.data.clean import REPEATED, Cleaned, kind_of
from tiltyard.data.clean import clean_rows as clean_parsed
from tiltyard.data.keys import near_key
from tiltyard.data.read import Row

TRICK = "} } verify {"


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, f"rows.jsonl:{i}") for i, value in enumerate(values, 1)]


def clean_rows(given: list[Row], max_prompts: int, kind: Kind = "comparisons") -> Cleaned:
    return clean_parsed([(row, parse_row(row, kind)) for row in given], kind, max_prompts)


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
    fill = [pair(f"q{i}", TRICK, f"a{i}") for i in range(4)]
    ranking = {
        "prompt": "x",
        "responses": ["a", TRICK, "b"],
        "scores": [3, 2, 1],
        "ranks": [1, 2, 3],
        "shares": [0.5, 0.3, 0.2],
        "source": ["kept", "as", "it is"],
    }
    short = {"prompt": "y", "responses": [TRICK, "b"], "scores": [2, 1]}
    found = clean_rows(rows(*fill, ranking, short), max_prompts=3)
    assert found.rows == [
        {**ranking, "responses": ["a", "b"], "scores": [3, 1], "ranks": [1, 3], "shares": [0.5 / 0.7, 0.2 / 0.7]},
    ]
    assert found.dropped["answers of rankings given to too many prompts"] == 2
    assert found.dropped["fewer than two answers left"] == 1
    assert ranking["responses"] == ["a", TRICK, "b"], "the rows that were read stay as they are"


def test_repetitions_and_pairs_without_a_choice() -> None:
    turns = [{"role": "assistant", "content": "same"}]
    ranked = {"prompt": "q", "responses": ["same"] * 3, "scores": [1, 2, 3]}
    data = [pair("q", "a", "b"), pair("q", "a", "b"), pair("q", "b", "a"), pair("q", turns, list(turns)), ranked]
    data.append({**pair("q", "a", "b"), "id": "another"})
    found = clean_rows(rows(*data), max_prompts=20)
    assert found.rows == [pair("q", "a", "b"), pair("q", "b", "a")]
    assert found.dropped == {
        "equal to an earlier row": 1,
        "chosen and rejected are the same": 1,
        "all answers are the same": 1,
        REPEATED: 1,
    }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("abcd"), st.sampled_from("abcd"))), st.integers(0, 3))
def test_what_is_left_was_there_and_needs_no_second_cleaning(data: list[tuple[str, str, str]], limit: int) -> None:
    given_rows = rows(*(pair(*row) for row in data))
    once = clean_rows(given_rows, limit)
    assert all(row in [r.value for r in given_rows] for row in once.rows)
    assert len(once.rows) + sum(once.dropped.values()) == len(given_rows)
    assert all(parse_row(Row(row, ""), "comparisons").responses for row in once.rows)
    left = check_data(once.groups)
    assert (left.duplicates, left.identical) == (0, 0)
    assert clean_rows(rows(*once.rows), limit).rows == once.rows


def test_real_preferences(real_data: Any) -> None:
    """Half of the preferred answers are one string that fooled the judge."""
    data = list(parsed_rows(real_data / "preferences" / "dev.jsonl.gz", "comparisons", BadRows()))
    found = clean_parsed(data, "comparisons", 20)
    assert len(found.repeated) == 1
    assert found.repeated[0][1] > 50
    assert len(found.rows) < 0.6 * len(data)


def transcript(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {name: f"\n\nHuman: {prompt}\n\nAssistant: {a}" for name, a in (("chosen", chosen), ("rejected", rejected))}


def listed(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return pair(prompt, [{"role": "assistant", "content": chosen}], [{"role": "assistant", "content": rejected}])


def ranking(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "responses": [rejected, chosen], "ranks": [2, 1]}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1),
    st.integers(0, 3),
)
def test_what_is_found_does_not_depend_on_the_format(data: list[tuple[str, str, str]], limit: int) -> None:
    """Pairs, message lists and transcripts of the same words: the same rows go, for the same number of reasons."""
    outcomes = []
    for form in (pair, listed, transcript):
        given_rows = rows(*(form(*row) for row in data))
        found = clean_rows(given_rows, limit)
        outcomes.append(([given_rows.index(Row(row, w)) for row, w in places(found)], sum(found.dropped.values())))
        report = check_data([parse_row(row, "comparisons") for row in given_rows])
        assert found.dropped["equal to an earlier row"] + found.dropped[REPEATED] == report.duplicates
    assert outcomes[0] == outcomes[1] == outcomes[2]


def places(found: Cleaned) -> list[tuple[dict[str, Any], str]]:
    return [(row, group.origin) for row, group in zip(found.rows, found.groups, strict=True)]


def test_soft_labels_and_labels_are_part_of_the_verdict() -> None:
    soft = [pair("q", "a", "b") | {"p_chosen": p} for p in (0.9, 0.6, 0.9)]
    assert clean_rows(rows(*soft), 0).rows == soft[:2]
    good = [{"prompt": "q", "completion": "a", "label": label} for label in (True, False, True)]
    assert clean_rows(rows(*good), 0, "labelled").rows == good[:2]
    report = check_data([parse_row(row, "labelled") for row in rows(*good)])
    assert (report.duplicates, report.contradictions) == (1, 1)


def test_held_out_prompts_are_taken_out() -> None:
    held = [parse_row(row, "comparisons") for row in rows(pair("Who  IS\u00a0it?", "x", "y"))]
    data = rows(pair("Who is it? ", "a", "b"), pair("Who was it?", "a", "b"))
    parsed = [(row, parse_row(row, "comparisons")) for row in data]
    found = clean_parsed(parsed, "comparisons", 0, {near_key(group) for group in held})
    assert found.rows == [data[1].value]
    assert found.dropped == {"the prompt of a held-out row": 1}


def test_the_kind_of_a_file_is_what_most_rows_fit() -> None:
    good = {"prompt": "q", "completion": "a"}
    cases: list[tuple[Kind, list[dict[str, Any]]]] = [
        ("comparisons", [pair("q", "a", "b")] * 3 + [{"prompt": "q", "chosen": "a"}] * 2),
        ("comparisons", [transcript("q", "a", "b")]),
        ("comparisons", [ranking("q", "a", "b")]),
        ("comparisons", [{"prompt": "q", "responses": ["a", "b"]}]),
        ("demonstrations", [good] * 3 + [{"prompt": "q"}]),
        ("demonstrations", [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]),
        ("labelled", [good | {"label": True}]),
        ("labelled", [{"prompt": "q", "responses": ["a", "b"], "labels": [True, False]}]),
        ("text", [{"text": "words"}]),
        ("prompts", [{"prompt": "q"}]),
    ]
    for kind, values in cases:
        assert kind_of(rows(*values)) == kind
