"""Limits are kept, and nothing disappears without being counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import family

from tiltyard.data import Chat, load_groups, load_prompts
from tiltyard.errors import ConfigError, DataError

LONG = "The quick brown fox jumps over the lazy dog. " * 8
Write = Callable[[list[dict[str, Any]]], Path]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(family("tiltyard"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "f.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


ROWS = [
    {"prompt": "hello", "completion": "hi"},
    {"prompt": LONG, "completion": "hi"},
    {"prompt": "hello", "completion": LONG},
    {"prompt": LONG, "completion": LONG},
]


def test_without_limits_everything_is_kept(chat: Chat, write: Write) -> None:
    groups, report = load_groups(write(ROWS), "demonstrations", chat)
    assert (report.rows, report.kept, report.groups, report.dropped, report.truncated) == (4, 4, 4, {}, {})
    assert report.tokens == sum(g.tokens for g in groups)
    assert report.lines() == [f"4 of 4 rows kept, {report.tokens:,} tokens"]


def test_dropping_counts_reasons_and_gives_places(chat: Chat, write: Write) -> None:
    groups, report = load_groups(write(ROWS), "demonstrations", chat, max_length=60, max_prompt=40)
    assert [g.origin for g in groups] == ["f.jsonl:1"]
    assert report.dropped == {"prompt longer than its limit": 2, "prompt and answer longer than max_length": 1}
    assert report.examples == ("f.jsonl:2", "f.jsonl:3", "f.jsonl:4")
    assert any("f.jsonl:2" in line for line in report.lines())


@pytest.mark.parametrize("max_prompt", [None, 12, 40])
def test_truncating_keeps_the_prompts_end_and_the_answers_beginning(
    chat: Chat, write: Write, max_prompt: int | None
) -> None:
    whole, _ = load_groups(write(ROWS), "demonstrations", chat)
    cut, report = load_groups(
        write(ROWS), "demonstrations", chat, max_length=60, max_prompt=max_prompt, too_long="truncate"
    )
    assert report.kept == 4
    assert sum(report.truncated.values()) == 4
    for before, after in zip(whole, cut, strict=True):
        a, b = before.responses[0], after.responses[0]
        assert after.tokens <= 60
        assert before.prompt.ids[-len(after.prompt.ids) :] == after.prompt.ids
        assert a.ids[: len(b.ids)] == b.ids
        assert b.finish == ("given" if len(a.ids) == len(b.ids) else "length")
        assert (b.ids[-1] in chat.stop_ids) == (b.finish == "given")
    if max_prompt is None:
        assert len(cut[1].prompt.ids) == 60 - len(whole[1].responses[0].ids)  # what the answer leaves
        assert len(cut[3].prompt.ids) == 30  # at least half
        assert cut[2].prompt.ids == whole[2].prompt.ids


def test_truncating_cuts_spans_too(chat: Chat, write: Write) -> None:
    turns = [{"role": r, "content": f"hello {i}"} for i, r in enumerate(["user", "assistant"] * 4)]
    path = write([{"messages": turns}])
    (whole,), _ = load_groups(path, "demonstrations", chat)
    for limit in range(len(whole.prompt.ids) + 1, whole.tokens):
        (made,), _ = load_groups(path, "demonstrations", chat, max_length=max(limit, 4), too_long="truncate")
        spans = made.responses[0].loss_spans
        assert spans
        assert all(0 <= a < b <= len(made.responses[0].ids) for a, b in spans)
        assert spans[:-1] == (whole.responses[0].loss_spans or ())[: len(spans) - 1]


def test_the_chats_own_limit_is_the_default(write: Write) -> None:
    chat = Chat(family("tiltyard"), max_length=60)
    assert load_groups(write(ROWS), "demonstrations", chat)[1].kept == 1
    assert load_groups(write(ROWS), "demonstrations", chat, max_length=1000)[1].kept == 4
    assert load_prompts(write(ROWS), chat)[1].kept == 2


def test_prompts(chat: Chat, write: Write) -> None:
    path = write([{"prompt": "hello", "gold": 3}, {"prompt": LONG}])
    prompts, report = load_prompts(path, chat, max_prompt=30)
    assert [p.meta for p in prompts] == [{"gold": 3}]
    assert report.dropped == {"prompt longer than its limit": 1}
    cut, report = load_prompts(path, chat, max_prompt=30, too_long="truncate")
    assert [len(p.ids) for p in cut] == [len(prompts[0].ids), 30]
    assert report.truncated == {"prompts cut at the front": 1}
    assert cut[1].ids[-1] == chat.tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert load_prompts(path, chat, limit=1)[1].rows == 1


def test_documents_are_cut_into_pieces_and_never_dropped(chat: Chat, write: Write) -> None:
    path = write([{"text": "hello"}, {"text": LONG}])
    groups, report = load_groups(path, "text", chat, max_length=16)
    assert (report.rows, report.kept, report.groups) == (2, 2, len(groups))
    assert report.truncated == {"documents cut into pieces": 1}
    assert "".join(g.responses[0].text for g in groups) == "hello" + LONG
    assert all(g.tokens <= 16 for g in groups)
    assert len({g.prompt.id for g in groups}) == len(groups)
    assert "as" in report.lines()[0]


def test_a_rewriting_template_is_noted(write: Write) -> None:
    turns = [{"role": r, "content": "hello"} for r in ["user", "assistant"] * 2]
    _, report = load_groups(write([{"messages": turns}, ROWS[0]]), "demonstrations", Chat(family("qwen3")))
    assert report.notes == {"only the last answer trained (the chat template rewrites earlier turns)": 1}
    assert any("only the last answer" in line for line in report.lines())


def test_nothing_kept_is_an_error(chat: Chat, write: Write) -> None:
    with pytest.raises(DataError, match=r"f.jsonl: no row was kept(.|\n)*3 prompt longer(.|\n)*too_long="):
        load_groups(write([ROWS[1]] * 3), "demonstrations", chat, max_length=20)


def test_bad_rows_are_not_dropped_but_raised(chat: Chat, write: Write) -> None:
    with pytest.raises(DataError, match=r"f.jsonl:2: field 'completion' is empty"):
        load_groups(write([ROWS[0], {"prompt": "x", "completion": " "}]), "demonstrations", chat)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 2}, "max_length is too small"),
        ({"max_length": 20, "max_prompt": 20}, "max_prompt leaves no tokens(.|\n)*raise max_length"),
        ({"too_long": "cut"}, "unknown rule for long rows(.|\n)*drop or truncate"),
    ],
)
def test_bad_limits(chat: Chat, write: Write, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_groups(write(ROWS), "demonstrations", chat, **settings)
