"""Any row is read whole, or refused with file:line: no other exception, and no text of it is lost without a word.

Rows are made in all forms that people have and then damaged: fields are added, taken away and given values of other
types. Every text holds a word of its own, which must be in the tokens or, where nothing reads the field, in the meta.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from families import family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiltyard.data import Chat, Row, parse_row
from tiltyard.data.columns import READ, REFUSED
from tiltyard.data.facts import facts_of
from tiltyard.data.formats import KINDS
from tiltyard.errors import DataError
from tiltyard.runs.groups import group_to_line
from tiltyard.types import Group

from test_message_fields import KNOWING  # isort: skip

W = "W"  # a text: each becomes a word of its own
NAMES = ["knowing", "tiltyard", "llama2", "qwen2", "qwen3", "gemma", "mistral", "r1", "gpt2"]
CALL = [{"type": "function", "function": {"name": W, "arguments": {"city": W}}}]
TOOLS = [{"type": "function", "function": {"name": W}}]
TRANSCRIPT = f"\n\nHuman: {W}\n\nAssistant: {W}\n\nHuman: {W}\n\nAssistant:"
MESSAGES = [{"role": "user", "content": W}, {"role": "assistant", "content": W}]
KEYS = [
    *(
        "text",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "responses",
        "scores",
        "ranks",
        "shares",
        "label",
        "labels",
    ),
    *("messages", "conversations", "conversation", "p_chosen", "id", "meta", "zzz", "score_chosen"),
    *READ,
    *REFUSED,
]
VALUES: list[Any] = [
    *(W, "", " ", None, 5, -1, 0, 1, 0.5, float("nan"), float("inf"), 10**400, True, [], {}, [W], [W, W], {"a": W}),
    *([W, 5], [[W, W]], [[]], [None], [{}], [1, 2], [2, 1], [0.7, 0.3], [True, False], [float("nan"), 1], TRANSCRIPT),
    *(MESSAGES, MESSAGES[:1], MESSAGES[1:], MESSAGES[1], [MESSAGES], TOOLS, json.dumps(MESSAGES), str(MESSAGES)),
    *(f"<s>[INST] {W} [/INST]", f"{W}\n\nHuman: {W}\n\nAssistant:", f"\n\nAssistant: {W}", {"role": W, "content": W}),
]
FIELDS = [
    "role",
    "content",
    "from",
    "value",
    "weight",
    "reasoning_content",
    "tool_calls",
    "name",
    "mood",
    "tool_call_id",
]
ROLES = ["user", "assistant", "system", "tool", "developer", "human", "gpt", "bot", "function"]
EXTRAS: list[dict[str, Any]] = [
    *({"weight": 0}, {"weight": 1}, {"weight": 0.5}, {"reasoning_content": W}, {"tool_calls": CALL}, {"name": W}),
    *({"tool_calls": CALL, "content": None}, {"name": None}, {"mood": [W]}),
]


@cache
def chat(name: str) -> Chat:
    tokenizer = family("qwen2" if name == "knowing" else name)
    if name == "knowing":
        tokenizer.chat_template = KNOWING
    return Chat(tokenizer)


@st.composite
def conversations(draw: st.DrawFn, *, end: str) -> list[dict[str, Any]]:
    """Alternating turns up to one of role `end`, in one of the forms; now and then with further fields."""
    count = draw(st.integers(1, 2)) * 2 - (end == "user")
    turns: list[dict[str, Any]] = [{"role": ("user", "assistant")[i % 2], "content": W} for i in range(count)]
    if draw(st.booleans()):
        turns.insert(0, {"role": "system", "content": W})
    for turn in turns:
        if turn["role"] == "assistant" and draw(st.integers(0, 3)) == 0:
            turn |= draw(st.sampled_from(EXTRAS))
    form = draw(st.sampled_from(["roles", "sharegpt", "parts"]))
    if form == "sharegpt":
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        return [{"from": names[t.pop("role")], "value": t.pop("content"), **t} for t in turns]
    if form == "parts":
        return [t | {"content": [{"type": "text", "text": t["content"]}]} if t["content"] else t for t in turns]
    return turns


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """(kind, row): in one of the forms, most often read as its own kind, with up to three damages."""
    asked = draw(st.one_of(st.just(W), st.just(TRANSCRIPT), conversations(end="user")))
    answer = draw(st.one_of(st.just(W), st.just([MESSAGES[1]]), st.just(MESSAGES[1])))
    whole = draw(conversations(end="assistant"))
    pair = {"chosen": f"{TRANSCRIPT} {W}", "rejected": f"\n\nHuman: {W}\n\nAssistant: {W}"}
    forms: list[tuple[str, dict[str, Any]]] = [
        ("text", {"text": W}),
        ("text", {"messages": whole}),
        ("prompts", {"prompt": asked}),
        ("prompts", {"prompt": W, "messages": MESSAGES}),
        ("demonstrations", {"messages": whole}),
        ("demonstrations", {"conversations": whole}),
        ("demonstrations", {"prompt": asked, "completion": answer}),
        ("labelled", {"prompt": asked, "completion": answer, "label": True}),
        ("labelled", {"prompt": asked, "responses": [answer, W], "labels": [True, False]}),
        ("comparisons", {"prompt": asked, "chosen": answer, "rejected": W}),
        ("comparisons", {"prompt": asked, "chosen": [W, W], "rejected": [W]}),
        ("comparisons", {"prompt": asked, "responses": [answer, W, W], "scores": [3, 2, 1]}),
        ("comparisons", pair),
    ]
    kind, row = draw(st.sampled_from(forms))
    if draw(st.integers(0, 4)) == 0:
        kind = draw(st.sampled_from(KINDS))
    row = json.loads(json.dumps(row))
    for _ in range(draw(st.integers(0, 3))):
        _damage(draw, row)
    return kind, _words(json.loads(json.dumps(row)))


def _damage(draw: st.DrawFn, row: dict[str, Any]) -> None:
    """Adds, replaces or removes a field of the row, or of one of its messages."""
    messages = [
        m for v in row.values() if isinstance(v, list) for m in v if isinstance(m, dict) and {"role", "from"} & m.keys()
    ]
    if messages and draw(st.booleans()):
        message = draw(st.sampled_from(messages))
        key = draw(st.sampled_from(FIELDS))
        message[key] = deepcopy(draw(st.sampled_from([*ROLES] if key in ("role", "from") else VALUES)))
        if draw(st.integers(0, 3)) == 0:
            del message[key]
        return
    key = draw(st.sampled_from(KEYS))
    row[key] = deepcopy(draw(st.sampled_from(VALUES)))
    if draw(st.integers(0, 3)) == 0:
        del row[key]


def _words(value: Any) -> Any:
    """Gives each text W a word of its own, but the same in the first turns of `chosen` and `rejected`."""
    count = 0

    def word(_: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"w{count:02d}z"

    def walk(some: Any) -> Any:
        if isinstance(some, str):
            return re.sub(r"\bW\b", word, some)
        if isinstance(some, dict):
            return {k: walk(v) for k, v in some.items()}
        return [walk(v) for v in some] if isinstance(some, list) else some

    made: dict[str, Any] = walk(value)
    first = made["messages"][0] if isinstance(made.get("messages"), list) and made["messages"] else None
    if isinstance(first, dict) and re.fullmatch(r"w\d\dz", str(made.get("prompt"))):
        made["prompt"] = first.get("content", made["prompt"])
    chosen, rejected = made.get("chosen"), made.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str) and chosen.startswith("\n\nHuman:"):
        made["rejected"] = chosen.rpartition("Assistant:")[0] + "Assistant: " + rejected[-4:]
    return made


def words_in(value: Any) -> set[str]:
    return set(re.findall(r"w\d\dz", json.dumps(value, default=str)))


def read(value: dict[str, Any], kind: Any, name: str) -> Group:
    row = Row(value, "f.jsonl:17")
    group = parse_row(row, kind)
    facts_of(row, group)
    assert group_to_line(group)
    return chat(name).encode_document(group) if kind == "text" else chat(name).encode_groups([group])[0]


def attempt(value: dict[str, Any], kind: Any, name: str) -> Group | DataError:
    try:
        return read(value, kind, name)
    except DataError as error:
        return error


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=rows(), name=st.sampled_from(NAMES))
def test_a_row_is_read_whole_or_refused_with_its_place(drawn: tuple[Any, dict[str, Any]], name: str) -> None:
    kind, value = drawn
    found = attempt(value, kind, name)
    if isinstance(found, DataError):
        assert found.where == "f.jsonl:17"
        assert found.fix
        return
    ids = [*found.prompt.ids, *(i for r in found.responses for i in r.ids)]
    seen = chat(name).tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    expected = words_in(value) - words_in(dict(found.prompt.meta)) - words_in(found.prompt.id)
    if kind == "demonstrations" and "chosen" in value:
        expected -= words_in(value.get("rejected"))  # of pairs the chosen
    if any("last_turn_only" in r.meta for r in found.responses):  # noted in the report
        expected &= words_in([r.text for r in found.responses])
    assert {word for word in expected if word not in seen} == set()
    assert all(r.ids for r in found.responses)
