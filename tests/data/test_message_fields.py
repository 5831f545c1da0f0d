"""What a message says beside its words reaches the tokens, or the row is refused by name: over all templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, family

from tiltyard.data import Chat, Row, load_groups, parse_row
from tiltyard.data.pairwise_prompt import both_orders
from tiltyard.errors import DataError
from tiltyard.feedback.verdicts import response_text
from tiltyard.runs.groups import group_from_dict, group_to_dict
from tiltyard.types import Group

NAMES = ["tiltyard", "llama2", *FAMILIES]
# as templates of models that reason and call tools have it
KNOWING = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>user\n<tool>' + m.content + '</tool>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oakford"}}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "the weather of a city"}}]
# (messages' further content, the words of it that must be in the tokens, the name that an error gives)
WITH: dict[str, tuple[list[dict[str, Any]], list[str], str]] = {
    "reasoning": (
        [{"role": "assistant", "content": "4", "reasoning_content": "two and two make four"}],
        ["two and two make four", "4"],
        "reasoning_content",
    ),
    "call": ([{"role": "assistant", "content": None, "tool_calls": CALL}], ["Oakford"], "tool_calls"),
    "result": (
        [
            {"role": "assistant", "content": "", "tool_calls": CALL},
            {"role": "tool", "content": "it rains"},
            {"role": "assistant", "content": "Rain."},
        ],
        ["Oakford", "it rains", "Rain."],
        "tool",
    ),
    "name": ([{"role": "assistant", "content": "hello", "name": "Tamwen"}], ["Tamwen"], "name"),
    "unknown": ([{"role": "assistant", "content": "hello", "mood": ["glad"]}], ["glad"], "mood"),
    "developer": (
        [{"role": "developer", "content": "be brief"}, {"role": "assistant", "content": "a"}],
        ["be brief"],
        "",
    ),
}


def knowing() -> Chat:
    tokenizer = family("qwen2")
    tokenizer.chat_template = KNOWING
    return Chat(tokenizer)


def group(value: dict[str, Any], kind: Any = "demonstrations") -> Group:
    made = parse_row(Row(value, "f.jsonl:17"), kind)
    return group_from_dict(json.loads(json.dumps(group_to_dict(made))))  # as a stage stores it


def attempt(chat: Chat, made: Group) -> Group | DataError:
    try:
        return chat.encode_group(made)
    except DataError as error:
        return error


def words(chat: Chat, encoded: Group) -> str:
    return chat.tokenizer.decode([*encoded.prompt.ids, *encoded.responses[0].ids], clean_up_tokenization_spaces=False)


def trained_words(chat: Chat, encoded: Group) -> list[str]:
    response = encoded.responses[0]
    spans = response.loss_spans or ((0, len(response.ids)),)
    return [chat.decode(response.ids[start:stop]) for start, stop in spans]


@pytest.mark.parametrize("case", WITH)
@pytest.mark.parametrize("name", [*NAMES, "knowing"])
def test_further_fields_reach_the_tokens_or_are_refused_by_name(name: str, case: str) -> None:
    chat = knowing() if name == "knowing" else Chat(family(name))
    messages, expected, key = WITH[case]
    made = group({"messages": [{"role": "user", "content": "2+2?"}, *messages]})
    found = attempt(chat, made)
    if isinstance(found, DataError):
        assert found.where == "f.jsonl:17"
        assert name != "knowing" or case in ("name", "unknown")
        assert key in str(found) or "rejects this conversation" in str(found)
        return
    encoded = found
    assert case not in ("name", "unknown")  # no template here knows them
    for word in expected:
        assert word in words(chat, encoded)


def test_a_template_that_knows_them_renders_reasoning_calls_results_and_tools() -> None:
    chat = knowing()
    for case in ("reasoning", "call", "result"):
        messages, expected, _ = WITH[case]
        encoded = chat.encode_group(group({"messages": [{"role": "user", "content": "2+2?"}, *messages]}))
        assert all(word in words(chat, encoded) for word in expected)
        assert "it rains" not in "".join(trained_words(chat, encoded))
    row = {"prompt": "Weather?", "completion": "Let me look.", "tools": TOOLS}
    for tools in (TOOLS, json.dumps(TOOLS)):
        encoded = chat.encode_group(group(row | {"tools": tools}))
        assert "the weather of a city" in chat.tokenizer.decode(encoded.prompt.ids)
        prompt = group({"prompt": "Weather?", "tools": tools}, "prompts").prompt
        assert chat.encode_prompt(prompt).ids == encoded.prompt.ids  # sampled as trained
    assert group(row).prompt.id != group(row | {"tools": None}).prompt.id


@pytest.mark.parametrize("name", NAMES)
def test_tools_are_refused_by_templates_that_do_not_know_them(name: str) -> None:
    with pytest.raises(DataError, match=r"^f.jsonl:17: (.|\n)*'tools'"):
        Chat(family(name)).encode_group(group({"prompt": "Weather?", "completion": "Hm.", "tools": TOOLS}))


def test_control_tokens_in_further_fields_stay_text() -> None:
    chat = knowing()
    text = "<|im_end|>\n<|im_start|>user"
    call = [{"function": {"name": text, "arguments": {"x": text}}}]
    turns = [{"role": "assistant", "content": "", "reasoning_content": text, "tool_calls": call}]
    tools = [{"function": {"name": text}}]
    encoded = chat.encode_group(group({"prompt": "q", "completion": turns, "tools": tools}))
    marks = [chat.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")]
    counts = [[*encoded.prompt.ids, *encoded.responses[0].ids].count(mark) for mark in marks]
    assert counts == [3, 3]  # system, user, assistant


def test_readers_of_texts_are_shown_the_fields_and_one_turn_has_no_role() -> None:
    messages, *_ = WITH["reasoning"]
    made = group({"prompt": "q", "completion": messages}).responses[0]
    assert made.text == "4"
    assert response_text(made) == "4\nreasoning_content: two and two make four"
    call = group({"prompt": "q", "completion": WITH["call"][0]})
    assert "Oakford" in call.responses[0].text
    assert "two and two" in both_orders(call.prompt, made, made)[0].text


# ------------------------------------------------------------------------------------------------------------- weight 0

WRONG = ["wrong one", "wrong two"]
ROLES = ("user", "assistant")


def conversation(weights: list[int | None], texts: list[str]) -> list[dict[str, Any]]:
    turns = [{"role": ROLES[i % 2], "content": text} for i, text in enumerate(texts)]
    for turn, weight in zip(turns[1::2], weights, strict=True):
        if weight is not None:
            turn["weight"] = weight  # type: ignore[assignment]
    return turns


@pytest.mark.parametrize("name", [*NAMES, "knowing"])
@pytest.mark.parametrize(
    ("weights", "answers"),
    [
        ([0, 1], [WRONG[0], "right one"]),
        ([0, None, 0], [WRONG[0], "right one", WRONG[1]]),
        ([1, 0, 1], ["right one", WRONG[0], "right two"]),
        ([1, 0], ["right one", WRONG[0]]),
        ([0.0, False, True], [*WRONG, "right one"]),
    ],
)
def test_turns_of_weight_0_have_no_loss(name: str, weights: list[Any], answers: list[str]) -> None:
    chat = knowing() if name == "knowing" else Chat(family(name))
    texts = [text for i, answer in enumerate(answers) for text in (f"question {i}", answer)]
    made = group({"messages": conversation(weights, texts)})
    encoded = chat.encode_group(made)
    trained = "".join(trained_words(chat, encoded))
    assert not any(text in trained for text in (*WRONG, "question"))
    expected = [answer for answer in answers if answer.startswith("right")]
    last_only = "last_turn_only" in encoded.responses[0].meta
    assert all(answer in trained for answer in (expected[-1:] if last_only else expected))
    if not last_only:  # all other text is that of the row without weights
        plain = chat.encode_group(group({"messages": conversation([None] * len(answers), texts)}))
        assert "".join(words(chat, encoded).split()) == "".join(words(chat, plain).split())


@pytest.mark.parametrize("kind", ["demonstrations", "comparisons", "labelled"])
def test_a_row_whose_answers_all_have_weight_0_is_refused(kind: Any) -> None:
    wrong = [{"role": "assistant", "content": "x", "weight": 0}]
    row = {"prompt": "q", "completion": wrong, "chosen": wrong, "rejected": "b", "label": True}
    with pytest.raises(DataError, match=r"^f.jsonl:17: no turn of field '(completion|chosen)' is trained"):
        parse_row(Row(row, "f.jsonl:17"), kind)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "a", "weight": 0.5},
        {"role": "assistant", "content": "a", "weight": "0"},
        {"role": "assistant", "content": "a", "weight": -1},
        {"role": "user", "content": "a", "weight": 1},
    ],
)
def test_other_weights_are_refused(turn: dict[str, Any]) -> None:
    before = [{"role": "user", "content": "q"}] if turn["role"] == "assistant" else []
    after = [] if before else [{"role": "assistant", "content": "a"}]
    with pytest.raises(DataError, match=r"^f.jsonl:17: field 'weight' of messages\[\d\](.|\n)*0 \(no loss"):
        group({"messages": [*before, turn, *after]})


def test_documents_have_no_weights() -> None:
    with pytest.raises(DataError, match=r"^f.jsonl:17: (.|\n)*weight 0"):
        group({"messages": conversation([0], ["q", "a"])}, "text")


Write = Callable[[list[dict[str, Any]]], Path]


def test_the_report_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    rows = [{"messages": conversation([0, 1], ["q", "a", "r", "b"])}, {"prompt": "q", "completion": "a", "system": "s"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = load_groups(path, "demonstrations", Chat(family("tiltyard")))
    assert report.notes == {
        "rows with turns of weight 0, which no loss counts": 1,
        "rows whose field 'system' is read as turns": 1,
    }


def test_rows_that_stages_write_keep_tools_and_fields() -> None:
    turns = [{"role": "user", "content": "q"}, *WITH["result"][0][:2]]
    prompt = group({"prompt": turns, "tools": TOOLS, "id": "x"}, "prompts").prompt
    again = group(json.loads(json.dumps(prompt.to_row())), "prompts").prompt
    assert (again.messages, again.tools, again.id) == (prompt.messages, prompt.tools, "x")
    assert again.tools
