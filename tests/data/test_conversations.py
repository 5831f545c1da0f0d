"""A conversation is the same in every form that people have; what is not read is refused with file:line and name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tiltyard.data import Row, parse_row
from tiltyard.data.facts import facts_of
from tiltyard.errors import DataError
from tiltyard.types import Group, ranks_of

SYSTEM = "Answer in French."
TURNS = [("user", "Hi"), ("assistant", "Hello!"), ("user", "And you?"), ("assistant", "Fine.")]
OTHER = "What."
SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}


def parse(value: dict[str, Any], kind: Any) -> Group:
    return parse_row(Row(value, "f.jsonl:17"), kind)


def refused(value: dict[str, Any], kind: Any, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(value, kind)
    assert caught.value.where == "f.jsonl:17"
    assert caught.value.fix
    for word in words:
        assert word in str(caught.value)


def facts(value: dict[str, Any], kind: Any) -> list[str]:
    return facts_of(Row(value, "f.jsonl:17"), parse(value, kind))


def roles(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


def sharegpt(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"from": SHAREGPT[role], "value": text} for role, text in turns]


def parts(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """As OpenAI's content parts, each text in two; a column store gives every part every key."""
    return [
        {"role": r, "content": [{"type": "text", "text": t[:1], "image_url": None}, {"type": "text", "text": t[1:]}]}
        for r, t in turns
    ]


def empty_fields(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": r, "content": t, "tool_calls": None, "name": "", "reasoning_content": None} for r, t in turns]


FORMS = [roles, sharegpt, parts, empty_fields]
COLUMNS = ["messages", "conversations", "conversation"]


# ------------------------------------------------------------------------------ the same in any form


def same(made: Group, expected: Group) -> None:
    assert made.prompt.messages == expected.prompt.messages
    assert made.prompt.id == expected.prompt.id
    assert made.responses == expected.responses
    assert made.preference == expected.preference


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_demonstrations_are_the_same_in_every_form(form: Any, column: str, system: str) -> None:
    turns = [("system", system)] * bool(system) + TURNS
    expected = parse({"messages": roles(turns)}, "demonstrations")
    assert [m.content for m in expected.prompt.messages or ()] == [system] * bool(system) + ["Hi"]
    same(parse({column: form(turns)}, "demonstrations"), expected)
    same(parse({column: form(turns), "prompt": "Hi", "prompt_id": "f0"}, "demonstrations"), expected)
    same(parse({column: form(TURNS), "system": system}, "demonstrations"), expected)
    same(parse({column: form(TURNS[2:]), "history": [["Hi", "Hello!"]]}, "demonstrations"),
         parse({"prompt": roles(TURNS[:3]), "completion": "Fine."}, "demonstrations"))  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("system", ["", SYSTEM])
def test_pairs_are_the_same_in_every_form(form: Any, system: str) -> None:
    before = [("system", system)] * bool(system)
    asked = [*before, *TURNS[:3]]
    expected = parse({"prompt": roles(asked), "chosen": "Fine.", "rejected": OTHER}, "comparisons")
    whole = [form([*asked, ("assistant", text)]) for text in ("Fine.", OTHER)]
    alone = [form([("assistant", text)]) for text in ("Fine.", OTHER)]
    text = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: And you?\n\nAssistant:"
    beside = {"system": system} if system else {}
    rows: list[dict[str, Any]] = [
        {"chosen": whole[0], "rejected": whole[1]},
        {"prompt": form(asked), "chosen": whole[0], "rejected": whole[1]},
        {"prompt": form(asked), "chosen": alone[0], "rejected": alone[1]},
        {"prompt": form(asked), "chosen": alone[0][0], "rejected": alone[1][0]},
        {"conversations": form(asked), "chosen": alone[0][0], "rejected": alone[1][0]},
        {"prompt": form(asked), "chosen": ["Fine."], "rejected": [OTHER]},
        {"prompt": form(asked), "chosen": "Fine.", "rejected": OTHER, "responses": ["Fine.", OTHER]},
        {"prompt": form(asked), "chosen": "Fine.", "rejected": OTHER, "messages": form([*asked, TURNS[3]])},
        {"prompt": "And you?", "history": [["Hi", "Hello!"]], "chosen": "Fine.", "rejected": OTHER, **beside},
        {"prompt": "And you?", "history": form(TURNS[:2]), "chosen": "Fine.", "rejected": OTHER, **beside},
        {"prompt": text, "chosen": " Fine.", "rejected": f" {OTHER}", **beside},
        {"chosen": f"{text} Fine.", "rejected": f"{text} {OTHER}", **beside},
        {"prompt": text, "chosen": f"{text} Fine.", "rejected": f"{text} {OTHER}", **beside},
        {"prompt": text, "chosen": "\n\nAssistant: Fine.", "rejected": f"\n\nAssistant: {OTHER}", **beside},
    ]
    for row in rows:
        same(parse(row, "comparisons"), expected)
        chosen = parse({k: v for k, v in row.items() if k not in ("messages", "responses")}, "demonstrations")
        assert chosen.prompt.messages == expected.prompt.messages  # of pairs the chosen
        assert chosen.responses == expected.responses[:1]


@pytest.mark.parametrize("form", FORMS)
def test_prompts_are_the_same_in_every_form(form: Any) -> None:
    expected = parse({"messages": roles([("system", SYSTEM), TURNS[0]])}, "prompts")
    rows: list[dict[str, Any]] = [
        {"prompt": form([("system", SYSTEM), TURNS[0]])},
        {"prompt": "Hi", "system": SYSTEM},
        {"prompt": "Hi", "system_prompt": SYSTEM, "system": SYSTEM},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "system": SYSTEM},
        {"prompt": "Hi", "messages": form([("system", SYSTEM), *TURNS])},  # the column's system turn is not lost
        {"conversations": form([("system", SYSTEM), TURNS[0]])},
    ]
    for row in rows:
        made = parse(row, "prompts")
        assert (made.prompt.messages, made.prompt.id) == (expected.prompt.messages, expected.prompt.id)


def test_lists_of_answers_are_rankings() -> None:
    row = {"prompt": "q", "chosen": ["good"], "rejected": ["bad", "worse", "worst"], "subset": "Focus"}
    made = parse(row, "comparisons")
    assert [r.text for r in made.responses] == ["good", "bad", "worse", "worst"]
    assert ranks_of(made.preference) == (1, 2, 2, 2)
    assert made.prompt.meta == {"subset": "Focus"}
    labels = parse(row, "labelled").preference
    assert labels is not None
    assert labels.labels == (True, False, False, False)
    messages = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    assert [r.text for r in parse({"prompt": "q", "chosen": messages, "rejected": "c"}, "comparisons").responses] == [
        *"abc"
    ]
    refused(row | {"chosen": ["good"] * 9}, "comparisons", "12 in fields", "2 to 9")
    refused(row | {"p_chosen": 0.7}, "comparisons", "p_chosen", "shares")
    refused(row, "demonstrations", "a demonstration has one answer")
    refused(
        {"prompt": "q", "completion": ["a", "b"]}, "demonstrations", "'completion' is a list of answers", "one answer"
    )


# ---------------------------------------------------------------------------- transcripts, JSON text


@pytest.mark.parametrize(
    "text",
    [
        "Human: what a word.",
        "Human rights: a question",
        "Write a dialogue.\n\nHuman: hi",
        "[1, 2]",
        '{"role": "x"',
        "[INSTRUMENTS]",
    ],
)
def test_a_prompt_that_only_resembles_a_transcript_is_text(text: str) -> None:
    made = parse({"prompt": text, "completion": text}, "demonstrations")
    assert [m.content for m in made.prompt.messages or ()] == [made.responses[0].text] == [text]


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("\n\nHuman: hi\n\nAssistant: hello", "does not end with a question"),
        ("\n\nHuman: \n\nAssistant:", "is empty"),
        ("<|im_start|>user\nhi<|im_end|>\n", "control tokens"),
        ("<s>[INST] hi [/INST]", "control tokens"),
        ('[{"role": "user", "content": "hi"}]', "in quotes"),
        ("[{'role': 'user', 'content': 'it''s'}]", "in quotes"),
        ('[{"from": "human", "value": "hi"}]', "in quotes"),
    ],
)
@pytest.mark.parametrize("kind", ["prompts", "demonstrations", "comparisons", "labelled"])
def test_conversations_in_one_text_are_refused(prompt: str, word: str, kind: str) -> None:
    refused({"prompt": prompt, "completion": "a", "chosen": "a", "rejected": "b", "label": True}, kind, word, "prompt")


@pytest.mark.parametrize("quote", ["json", "repr"])
def test_messages_in_quotes_are_refused_wherever_they_stand(quote: str) -> None:
    messages = roles(TURNS[:2])
    text = json.dumps(messages) if quote == "json" else str(messages)
    for row, kind, name in [
        ({"messages": text}, "demonstrations", "messages"),
        ({"messages": text}, "text", "messages"),
        ({"prompt": "q", "completion": text}, "demonstrations", "completion"),
        ({"prompt": "q", "chosen": text, "rejected": "b"}, "comparisons", "chosen"),
        ({"chosen": text, "rejected": text}, "comparisons", "chosen"),
        ({"prompt": "q", "chosen": "a", "rejected": text}, "comparisons", "rejected"),
        ({"prompt": "q", "responses": ["a", text], "scores": [1, 2]}, "comparisons", "responses[1]"),
        ({"prompt": "q", "responses": ["a", text], "labels": [1, 0]}, "labelled", "responses[1]"),
    ]:
        refused(row, kind, f"'{name}'", "in quotes", "json.loads")  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------- refused by name


@pytest.mark.parametrize("kind", ["demonstrations", "comparisons", "labelled", "prompts"])
@pytest.mark.parametrize("name", ["image", "images", "videos", "audio", "documents", "context", "input", "functions"])
def test_columns_that_change_the_prompt_and_are_not_read_are_refused(name: str, kind: str) -> None:
    row = {"prompt": "What is in <image>?", "completion": "a", "chosen": "a", "rejected": "b", "label": True}
    refused(row | {name: ["a.png"]}, kind, f"'{name}'")
    for nothing in (None, [], "", " "):
        assert parse(row | {name: nothing}, kind)
    assert parse(row | {"meta": {name: ["a.png"]}}, kind).prompt.meta[name] == ["a.png"]  # asked to be ignored


def test_a_text_column_that_the_prompt_holds_already_is_no_loss() -> None:
    row = {"prompt": "Read this: the lamp stands. Where is it?", "context": "the lamp stands", "completion": "there"}
    assert parse(row, "demonstrations").prompt.meta == {"context": "the lamp stands"}
    refused(row | {"context": "the lamp lies"}, "demonstrations", "'context'", "write it into 'prompt'")


def test_two_places_for_one_thing_must_agree() -> None:
    first = roles([("system", "other"), *TURNS])
    refused({"system": SYSTEM, "messages": first}, "demonstrations", "system turn", "'other'")
    refused({"system": SYSTEM, "system_prompt": "other", "prompt": "q"}, "prompts", "'system_prompt' differ")
    refused({"history": [["Hi", "Hello!"]], "messages": first}, "demonstrations", "history")
    refused({"messages": roles(TURNS), "conversations": roles(TURNS[:2])}, "demonstrations", "'conversations'")
    refused({"prompt": "Bye", "messages": roles(TURNS)}, "demonstrations", "'messages'", "'Bye'")
    refused({"prompt": "Bye", "messages": roles(TURNS)}, "prompts", "'messages'", "'Bye'")
    refused({"prompt": "Hi", "completion": "x", "messages": roles(TURNS)}, "demonstrations", "'messages'", "Hello!")
    refused({"prompt": "Hi", "chosen": "x", "rejected": "y", "messages": first}, "comparisons", "'other'")
    refused({"prompt": "q", "chosen": "x", "rejected": "y", "label": True}, "labelled", "one label for two answers")


def test_malformed_columns_name_themselves() -> None:
    row = {"prompt": "q", "completion": "a"}
    refused(row | {"system": ["x"]}, "demonstrations", "'system'", "a string")
    refused(row | {"history": "x"}, "demonstrations", "'history'", "[question, answer]")
    refused(row | {"history": [["a", "b", "c"]]}, "demonstrations", "history[0]")
    refused(row | {"tools": "weather"}, "demonstrations", "'tools'", "its JSON text")
    refused({"instruction": "q", "output": "a"}, "demonstrations", "did you mean 'instruction'? Rename it to 'prompt'")
    refused({"prompt": "q", "response": "a"}, "demonstrations", "did you mean 'response'? Rename it to 'completion'")


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": "x"}, {"type": "text"}, {"type": "text", "text": "x", "n": 1}]
)
def test_parts_that_are_not_text_alone_are_refused(part: dict[str, Any]) -> None:
    refused(
        {"messages": [{"role": "user", "content": [part]}, *roles(TURNS[1:2])]},
        "demonstrations",
        "messages[0]",
        "part 0",
    )


# ---------------------------------------------------------------------------------- scores and ranks


@pytest.mark.parametrize(
    ("judgements", "words"),
    [
        ({"scores": [9, 1], "ranks": [2, 1]}, ("ranks", "scores")),
        ({"scores": [9, 1], "shares": [0.2, 0.8]}, ("scores", "shares")),
        ({"ranks": [2, 1], "shares": [0.9, 0.1]}, ("ranks", "shares")),
        ({"ranks": [2, 1], "chosen": "a", "rejected": "b"}, ("chosen", "ranking")),
        ({"scores": [1, 2], "chosen": "a", "rejected": "b"}, ("chosen", "ranking")),
    ],
)
def test_judgements_that_contradict_each_other_are_refused(judgements: dict[str, Any], words: tuple[str, ...]) -> None:
    refused({"prompt": "q", "responses": ["a", "b"], **judgements}, "comparisons", "contradict", *words)
    name = next(iter(judgements))
    agreeing = judgements | {name: judgements[name][::-1]}
    assert parse({"prompt": "q", "responses": ["a", "b"], **agreeing}, "comparisons").preference


def test_ties_contradict_nothing() -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 1, 2], "scores": [3, 2, 2]}
    assert ranks_of(parse(row, "comparisons").preference) == (1, 1, 2)


# ----------------------------------------------------------------------------------- counted by name


@pytest.mark.parametrize(
    ("row", "kind", "word"),
    [
        ({"prompt": "q", "completion": "a", "system": "s"}, "demonstrations", "'system'"),
        ({"prompt": "q", "completion": "a", "history": [["a", "b"]]}, "demonstrations", "'history'"),
        ({"prompt": "q", "completion": "a", "tools": [{"type": "function"}]}, "demonstrations", "'tools'"),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "completion": "a"}, "demonstrations", "transcript"),
        ({"prompt": "Go on:\n\nHuman: q\n\nAssistant:", "completion": "a"}, "demonstrations", "one user turn"),
        ({"prompt": "q", "completion": {"role": "assistant", "content": "a", "name": "x"}}, "demonstrations", "'name'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": 0.2}, "demonstrations", "worse"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
            "comparisons",
            "worse",
        ),
    ],
)
def test_what_is_read_beside_the_format_is_counted(row: dict[str, Any], kind: str, word: str) -> None:
    (fact,) = facts(row, kind)
    assert word in fact
    assert facts({"prompt": "q", "completion": "a", "chosen": "a", "rejected": "b"}, kind) == []


def test_fields_that_would_hide_each_other_are_refused() -> None:
    hidden = {"prompt": "q", "source": "a", "meta": {"source": "b"}}
    assert parse(hidden, "prompts").prompt.meta == {"source": "b"}  # and counted by name
    assert facts(hidden, "prompts") == ["rows with 'source' in 'meta' too, which is the value kept"]
    assert parse({"prompt": "q", "source": "a", "meta": {"source": "a"}}, "prompts").prompt.meta == {"source": "a"}
    both = [{"from": "human", "value": "q", "content": "other"}]
    refused({"prompt": both}, "prompts", "prompt[0]", "two ways")
    refused({"prompt": "q", "labels": [True]}, "labelled", "'responses' is missing")
    scored = parse({"prompt": "q", "chosen": "a", "rejected": "b", "scores": [1, 2]}, "labelled")
    assert scored.prompt.meta == {"scores": [1, 2]}
    refused({"prompt": "q", "responses": ["a", "b"], "scores": [1, 10**400]}, "comparisons", "finite number")
