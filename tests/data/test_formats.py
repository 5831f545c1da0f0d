"""Every format becomes the same Group; every bad row says where and what to do."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tiltyard.data import Row, parse_row
from tiltyard.errors import ConfigError, DataError
from tiltyard.types import Group, Message, Preference, ranks_of, shares_of

Q = {"role": "user", "content": "q"}
A1 = {"role": "assistant", "content": "a1"}
A2 = {"role": "assistant", "content": "a2"}
SYSTEM = {"role": "system", "content": "s"}


def parse(value: dict[str, Any], kind: Any) -> Group:
    return parse_row(Row(value, "f.jsonl:17"), kind)


def texts(group: Group) -> list[str]:
    return [r.text for r in group.responses]


# -------------------------------------------------------------------------------------- good rows


def test_text() -> None:
    made = parse({"text": "Once.", "source": "book"}, "text")
    assert (made.prompt.text, made.prompt.messages, texts(made)) == ("", None, ["Once."])
    assert (made.prompt.meta, made.origin) == ({"source": "book"}, "f.jsonl:17")
    talk = parse({"messages": [Q, A1]}, "text")
    assert talk.responses[0].meta["turns"] == [Q, A1]
    assert made.prompt.id != talk.prompt.id


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a1"},
        {"prompt": [Q], "completion": [A1]},
        {"prompt": [Q], "completion": A1},
        {"prompt": "q", "completion": [Q, A1]},
        {"messages": [Q, A1]},
    ],
)
def test_demonstrations(row: dict[str, Any]) -> None:
    made = parse(row, "demonstrations")
    assert made.prompt.messages == (Message("user", "q"),)
    assert texts(made) == ["a1"]
    assert ranks_of(made.preference) is None
    assert made.responses[0].meta == {}


def test_demonstrations_of_several_turns_open_with_the_first_answer() -> None:
    made = parse({"messages": [SYSTEM, Q, A1, Q, A2]}, "demonstrations")
    assert made.prompt.messages == (Message("system", "s"), Message("user", "q"))
    assert made.responses[0].meta["turns"] == [A1, Q, A2]
    assert texts(made) == ["a1\n\na2"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a1", "rejected": "a2"},
        {"prompt": [Q], "chosen": [A1], "rejected": [A2]},
        {"prompt": "q", "chosen": [Q, A1], "rejected": [Q, A2]},
        {"chosen": [Q, A1], "rejected": [Q, A2]},
        {"prompt": None, "chosen": [Q, A1], "rejected": [Q, A2]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a1", "rejected": "\n\nHuman: q\n\nAssistant: a2"},
        {"prompt": "q", "responses": ["a1", "a2"], "ranks": [1, 2]},
        {"prompt": "q", "responses": [[A1], [Q, A2]], "ranks": [1.0, 2.0]},
    ],
)
def test_pairs(row: dict[str, Any]) -> None:
    made = parse(row | {"margin": 0.5}, "comparisons")
    assert made.prompt.messages == (Message("user", "q"),)
    assert texts(made) == ["a1", "a2"]
    assert ranks_of(made.preference) == (1, 2)
    assert made.prompt.meta == {"margin": 0.5}


def test_transcripts_split_at_the_last_shared_assistant_turn() -> None:
    shared = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: one\n\nHuman: two\n\nAssistant:"
    made = parse({"chosen": f"{shared} The same start, a", "rejected": f"{shared} The same start, b"}, "comparisons")
    assert made.prompt.messages is not None
    assert [m.role for m in made.prompt.messages] == ["user", "assistant", "user"]
    assert made.prompt.messages[-1].content == "one\n\ntwo"
    assert texts(made) == ["The same start, a", "The same start, b"]


def test_pairs_whose_answers_are_equal_or_go_on_still_split_before_an_answer() -> None:
    same = parse({"chosen": [Q, A1], "rejected": [Q, A1]}, "comparisons")
    assert texts(same) == ["a1", "a1"]
    longer = parse({"chosen": [Q, A1], "rejected": [Q, A1, Q, A2]}, "comparisons")
    assert longer.prompt.messages == (Message("user", "q"),)
    assert longer.responses[1].meta["turns"] == [A1, Q, A2]


def test_rankings_allow_ties_and_nine_answers() -> None:
    made = parse({"prompt": "q", "responses": list("abcdefghi"), "scores": [3, 2, 2, *[0.5] * 6]}, "comparisons")
    assert made.scores == (3.0, 2.0, 2.0, *[0.5] * 6)
    assert ranks_of(made.preference) == (1, 2, 2, *[3] * 6)  # scores say the ranks where none are given
    both = parse({"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 1, 2], "scores": [1, 1, 0]}, "comparisons")
    assert (ranks_of(both.preference), both.scores) == ((1, 1, 2), (1.0, 1.0, 0.0))


@pytest.mark.parametrize("row", [{"prompt": "q"}, {"prompt": [Q]}, {"messages": [Q]}])
def test_prompts(row: dict[str, Any]) -> None:
    made = parse(row | {"source": "s", "meta": {"gold": [1]}, "id": 7}, "prompts")
    assert made.prompt.messages == (Message("user", "q"),)
    assert made.responses == ()
    assert made.prompt.meta == {"source": "s", "gold": [1]}
    assert made.prompt.id == "7"


def test_ids_are_of_the_prompt_alone_and_stable() -> None:
    ids = {
        parse({"prompt": "q", "completion": "a"}, "demonstrations").prompt.id,
        parse({"messages": [Q, A1], "x": 1}, "demonstrations").prompt.id,
        parse({"prompt": "q"}, "prompts").prompt.id,
    }
    assert ids == {hashlib.sha256(b'[["user", "q"]]').hexdigest()[:16]}  # written runs refer to it: never change
    assert parse({"prompt": "other"}, "prompts").prompt.id not in ids


# -------------------------------------------------------------------------------------- soft labels, votes, labels


@pytest.mark.parametrize(
    ("p", "shares", "ranks"),
    [
        (0.8, (0.8, 0.2), (1, 2)),
        (0.25, (0.25, 0.75), (2, 1)),  # those who call it chosen may be the fewer
        (0.5, (0.5, 0.5), (1, 1)),
        (1, (1.0, 0.0), (1, 2)),
        (0, (0.0, 1.0), (2, 1)),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a1", "rejected": "a2"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a1", "rejected": "\n\nHuman: q\n\nAssistant: a2"},
    ],
    ids=["fields", "transcripts"],
)
def test_soft_labels_of_pairs(row: dict[str, Any], p: float, shares: tuple[float, ...], ranks: tuple[int, ...]) -> None:
    made = parse(row | {"p_chosen": p}, "comparisons")
    assert shares_of(made.preference) == pytest.approx(shares, abs=1e-15)
    assert ranks_of(made.preference) == ranks
    assert texts(made) == ["a1", "a2"]
    assert made.prompt.meta == {}  # the label is read, not carried along


def test_a_pair_without_a_soft_label_has_none() -> None:
    for row in ({}, {"p_chosen": None}):
        made = parse({"prompt": "q", "chosen": "a1", "rejected": "a2"} | row, "comparisons")
        assert (shares_of(made.preference), ranks_of(made.preference)) == (None, (1, 2))


@pytest.mark.parametrize(
    ("given", "shares", "ranks"),
    [
        ([0.7, 0.2, 0.1], (0.7, 0.2, 0.1), (1, 2, 3)),
        ([7, 2, 1], (0.7, 0.2, 0.1), (1, 2, 3)),  # votes
        ([0, 4, 0], (0.0, 1.0, 0.0), (2, 1, 2)),
        ([1, 1, 2], (0.25, 0.25, 0.5), (2, 2, 1)),
        ([0, 1, 0], (0.0, 1.0, 0.0), (2, 1, 2)),  # one vote, or certainty: the same
        ([0.3333, 0.3333, 0.3333], (1 / 3, 1 / 3, 1 / 3), (1, 1, 1)),  # rounded figures add up again
    ],
)
def test_shares_and_votes(given: list[float], shares: tuple[float, ...], ranks: tuple[int, ...]) -> None:
    made = parse({"prompt": "q", "responses": ["a", "b", "c"], "shares": given}, "comparisons")
    assert shares_of(made.preference) == pytest.approx(shares, abs=1e-12)
    assert sum(shares_of(made.preference) or ()) == pytest.approx(1, abs=1e-15)
    assert (ranks_of(made.preference), made.scores, made.prompt.meta) == (ranks, None, {})


def test_shares_go_before_ranks_that_they_may_not_contradict() -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "shares": [0.6, 0.4], "ranks": [1, 2], "scores": [5, 3]}
    made = parse(row, "comparisons")
    with pytest.raises(DataError, match=r"(?s)contradict.*\[0.4, 0.6\]"):
        parse(row | {"shares": [0.4, 0.6]}, "comparisons")
    assert (shares_of(made.preference), ranks_of(made.preference), made.scores) == ((0.6, 0.4), (1, 2), (5.0, 3.0))


@pytest.mark.parametrize(
    ("row", "answers", "labels"),
    [
        ({"prompt": "q", "completion": "a1", "label": True}, ["a1"], (True,)),
        ({"prompt": "q", "completion": "a1", "label": False}, ["a1"], (False,)),
        ({"prompt": [Q], "completion": [A1], "label": 0}, ["a1"], (False,)),
        ({"messages": [Q, A1], "label": 1}, ["a1"], (True,)),
        ({"prompt": "q", "responses": ["a1"], "labels": [True]}, ["a1"], (True,)),
        (
            {"prompt": "q", "responses": ["a1", "a2", "a1"], "labels": [1, 0, False]},
            ["a1", "a2", "a1"],
            (True, False, False),
        ),
        ({"prompt": "q", "chosen": "a1", "rejected": "a2"}, ["a1", "a2"], (True, False)),
        ({"chosen": [Q, A1], "rejected": [Q, A2]}, ["a1", "a2"], (True, False)),
    ],
)
def test_labelled(row: dict[str, Any], answers: list[str], labels: tuple[bool, ...]) -> None:
    made = parse(row | {"source": "s"}, "labelled")
    assert made.prompt.messages == (Message("user", "q"),)
    assert (texts(made), made.preference, made.scores) == (answers, Preference(labels=labels), None)
    assert made.prompt.meta == {"source": "s"}
    assert made.prompt.id == parse({"prompt": "q"}, "prompts").prompt.id


# -------------------------------------------------------------------------------------- bad rows

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BOTH = {"prompt": "q", "responses": ["a", "b"]}
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("text", {"txt": "x"}, "field 'text' is missing", "did you mean 'txt'\\? Rename it to 'text'"),
    ("text", {"text": 3}, "field 'text' has the wrong type", "write 'text' as a string"),
    ("text", {"text": " \n"}, "field 'text' is empty", "fill it or delete this row"),
    ("demonstrations", {}, "field 'prompt' is missing", "add field 'prompt'"),
    ("demonstrations", {"prompt": "q"}, "field 'completion' is missing", "read as demonstrations"),
    ("demonstrations", {"prompt": "q", "completions": "a"}, "'completion' is missing", "did you mean 'completions'"),
    ("demonstrations", {"prompt": "q", "completion": ""}, "field 'completion' is empty", "delete this row"),
    ("demonstrations", {"prompt": "q", "completion": 5}, "'completion' is not a list of messages", "role"),
    ("demonstrations", {"prompt": "", "completion": "a"}, "field 'prompt' is empty", "delete this row"),
    (
        "demonstrations",
        {"prompt": [Q, A1], "completion": "a"},
        "'prompt' does not end with a question",
        "remove the assistant's last turn",
    ),
    ("demonstrations", {"prompt": "q", "completion": [Q]}, "'completion' does not end with an answer", "cut"),
    ("demonstrations", {"prompt": "x", "completion": [Q, A1]}, "does not begin with the answer", "leave 'prompt' out"),
    ("demonstrations", {"messages": [Q]}, "'messages' does not end with an answer", "cut the conversation"),
    ("demonstrations", {"messages": [A1, Q, A2]}, "begins with the assistant", "put the question in front"),
    ("demonstrations", {"messages": []}, "is not a list of messages", "an empty list"),
    ("demonstrations", {"messages": "q"}, "is not a list of messages", "str q"),
    ("demonstrations", {"messages": [{"speaker": "human", "text": "q"}]}, r"messages\[0\] is not a message", "rename"),
    (
        "demonstrations",
        {"messages": [{"role": "asistant", "content": "q"}]},
        "unknown role",
        "did you mean 'assistant'",
    ),
    ("demonstrations", {"messages": [Q, {"role": "bot", "content": "q"}]}, "unknown role", "assistant, system, user"),
    ("demonstrations", {"messages": [Q, {"role": "function", "content": "q"}]}, "unknown role", "of role 'tool'"),
    ("demonstrations", {"messages": [Q, {"role": "assistant", "content": [{}]}]}, "not a string", "only text"),
    ("demonstrations", {"messages": [Q, {"role": "assistant", "content": ""}]}, r"'messages\[1\]' is empty", "fill it"),
    ("demonstrations", {"prompt": "q", "completion": "a", "meta": 3}, "field 'meta' has the wrong type", "an object"),
    ("comparisons", {"prompt": "q", "chosen": "a"}, "field 'rejected' is missing", "read as comparisons"),
    ("comparisons", {"prompt": "q", "chosen": "a", "rejected": None}, "'rejected' is not a list", "NoneType"),
    ("comparisons", {"chosen": "a", "rejected": "b"}, "field 'prompt' is missing", "transcript"),
    (
        "comparisons",
        {"chosen": [Q, A1], "rejected": [{"role": "user", "content": "z"}, A2]},
        "share no prompt",
        "'prompt'",
    ),
    ("comparisons", {"chosen": [Q, A1], "rejected": [Q]}, "'rejected' does not end with an answer", "cut"),
    (
        "comparisons",
        {"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        "empty",
        "fill",
    ),
    ("comparisons", {"prompt": "q", "responses": ["a"], "scores": [1]}, "a ranking with 1 response", "a demonstration"),
    (
        "comparisons",
        {"prompt": "q", "responses": ["a"] * 10, "scores": [1] * 10},
        "with 10 responses",
        "split or shorten",
    ),
    (
        "comparisons",
        {"prompt": "q", "responses": "ab", "scores": [1, 2]},
        "'responses' has the wrong type",
        "a list of 2",
    ),
    ("comparisons", {"prompt": "q", "responses": ["a", ""], "scores": [1, 2]}, r"'responses\[1\]' is empty", "delete"),
    ("comparisons", {"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "differ in length", "1 scores for 2"),
    (
        "comparisons",
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, float("nan")]},
        "not a finite number",
        "nan",
    ),
    (
        "comparisons",
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, None]},
        "not a finite number",
        "without a judgement",
    ),
    ("comparisons", {"prompt": "q", "responses": ["a", "b"], "scores": [True, False]}, "not a finite number", "True"),
    ("comparisons", {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1]}, "whole numbers from 1", "in 'scores'"),
    ("comparisons", {"prompt": "q", "responses": ["a", "b"], "ranks": [1.5, 2]}, "whole numbers from 1", "in 'scores'"),
    ("comparisons", {"prompt": "q", "responses": ["a", "b"]}, "field 'scores' is missing", "ranks \\(1 is best\\)"),
    ("comparisons", PAIR | {"p_chosen": 1.5}, "'p_chosen' is not a probability", "percentages by 100"),
    ("comparisons", PAIR | {"p_chosen": -0.1}, "'p_chosen' is not a probability", "a number from 0 to 1"),
    ("comparisons", PAIR | {"p_chosen": True}, "'p_chosen' is not a probability", "True"),
    ("comparisons", PAIR | {"p_chosen": "0.7"}, "'p_chosen' is not a probability", "0.7"),
    ("comparisons", PAIR | {"p_chosen": float("nan")}, "'p_chosen' is not a probability", "nan"),
    ("comparisons", BOTH | {"shares": [0.5, 0.2]}, "neither probabilities nor votes", "add up to 0.7"),
    ("comparisons", BOTH | {"shares": [0.5, 1.5]}, "neither probabilities nor votes", "add up to 2"),
    ("comparisons", BOTH | {"shares": [3, -1]}, "neither probabilities nor votes", "numbers >= 0"),
    ("comparisons", BOTH | {"shares": [0, 0]}, "neither probabilities nor votes", "in 'scores'"),
    ("comparisons", BOTH | {"shares": [1]}, "differ in length", "1 shares for 2"),
    ("comparisons", BOTH | {"shares": [0.5, None]}, "not a finite number", "without a judgement"),
    ("comparisons", {"prompt": "q", "completion": "a", "label": True}, "'chosen' is missing", "kto and click"),
    ("comparisons", BOTH | {"labels": [True, False]}, "'scores' is missing", "kto and click"),
    ("comparisons", {"prompt": "q", "completion": "a"}, "'chosen' is missing", "sft and spin"),
    ("labelled", {"prompt": "q", "completion": "a"}, "'label' is missing", "read as labelled"),
    ("labelled", {"prompt": "q", "label": True}, "'completion' is missing", "add field 'completion'"),
    ("labelled", {"prompt": "q", "completion": "a", "label": None}, "is not a label", "true"),
    ("labelled", {"prompt": "q", "completion": "a", "label": 0.5}, "is not a label", "0.5"),
    ("labelled", {"prompt": "q", "completion": "a", "label": "good"}, "is not a label", "good"),
    ("labelled", {"prompt": "q", "completion": "a", "label": [True]}, "is not a label", "true"),
    ("labelled", BOTH | {"labels": [True]}, "differ in length", "1 labels for 2"),
    ("labelled", BOTH | {"labels": [True, 2]}, "is not a label", "2"),
    ("labelled", BOTH | {"labels": True}, "'labels' has the wrong type", "a list of true and false"),
    ("labelled", BOTH | {"ranks": [1, 2]}, "'labels' is missing", "not which is good: set good_from=best"),
    ("labelled", PAIR | {"p_chosen": 0.7}, "neither good nor bad", "leave 'p_chosen' out"),
    ("labelled", {"prompt": "q"}, "'label' is missing", "add field 'label'"),
    ("prompts", {"question": "q"}, "field 'prompt' is missing", "read as prompts"),
    ("prompts", {"messages": [Q, A1]}, "'messages' does not end with a question", "use the rows as demonstrations"),
    ("prompts", {"prompt": {"role": "user"}}, "'prompt' is not a list of messages", "dict"),
]


@pytest.mark.parametrize(("kind", "row", "message", "advice"), BAD, ids=[f"{k}-{m[:28]}" for k, _, m, _ in BAD])
def test_bad_rows_name_the_line_and_say_what_to_do(kind: str, row: dict[str, Any], message: str, advice: str) -> None:
    with pytest.raises(DataError, match=rf"^f.jsonl:17: (.|\n)*{message}(.|\n)*{advice}") as caught:
        parse(row, kind)
    assert caught.value.fix
    assert caught.value.expected


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="did you mean 'comparisons'"):
        parse({"prompt": "q"}, "comparison")
