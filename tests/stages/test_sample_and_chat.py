"""`tiltyard sample` and `chat`: where prompts come from, what is refused, and what a chat shows."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from models import tiny
from tiltyard import cli
from tiltyard.cli import conversation
from tiltyard.cli.prompts import prompts_given
from tiltyard.errors import ConfigError, DataError
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import save_model
from tiltyard.types import Message, Prompt

TURNS = [("user", "Hi"), ("assistant", "Hello!"), ("user", "Who?")]
ROW = {"id": "a1", "messages": [{"role": role, "content": content} for role, content in TURNS]}


class Stdin:
    def __init__(self, data: str):
        self.buffer = io.BytesIO(data.encode())

    def isatty(self) -> bool:
        return False


def given(monkeypatch: pytest.MonkeyPatch, data: str, system: str = "") -> list[tuple[str, Prompt]]:
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    return prompts_given((), "", system)


def test_standard_input_holds_lines_or_rows(monkeypatch) -> None:
    assert [p.messages for _, p in given(monkeypatch, "one\n\ntwo\n")] == [
        (Message("user", "one"),),
        (Message("user", "two"),),
    ]
    [(where, prompt), (_, second)] = given(monkeypatch, json.dumps(ROW) + "\n" + '{"prompt": "x"}\n')
    assert where == "standard input:1"
    assert prompt.messages == tuple(Message(*turn) for turn in TURNS)
    assert prompt.id == "a1"
    assert second.messages == (Message("user", "x"),)


@pytest.mark.parametrize("text", ['{"a": 1}', "{not json", "[1, 2]", '"messages"'])
def test_a_prompt_that_looks_like_json_stays_a_prompt(monkeypatch, text) -> None:
    assert [p.messages for _, p in given(monkeypatch, text)] == [(Message("user", text),)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not a row", "standard input:2: malformed JSON"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "end with a question",
        ),
        ('{"text": "x"}', "standard input:2"),
    ],
)
def test_a_row_that_holds_no_prompt_is_refused_by_its_line(monkeypatch, line, said) -> None:
    with pytest.raises(DataError, match=said):
        given(monkeypatch, json.dumps(ROW) + "\n" + line)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt", "rows.json"])
def test_a_file_holds_what_standard_input_holds(tmp_path, name) -> None:
    value = [ROW] if name.endswith(".json") else ROW
    (tmp_path / name).write_text(json.dumps(value))
    [(where, prompt)] = prompts_given((), str(tmp_path / name), "")
    assert where.startswith(name)
    assert prompt.messages == tuple(Message(*turn) for turn in TURNS)


def test_a_file_of_lines_and_one_that_is_not_there(tmp_path) -> None:
    (tmp_path / "questions.txt").write_text("one\ntwo\n")
    assert [where for where, _ in prompts_given((), str(tmp_path / "questions.txt"), "")] == [
        "questions.txt:1",
        "questions.txt:2",
    ]
    with pytest.raises(ConfigError, match=r"the file cannot be read(.|\n)*check the path"):
        prompts_given((), str(tmp_path / "none.txt"), "")
    with pytest.raises(DataError, match="the file does not exist"):
        prompts_given((), str(tmp_path / "none.jsonl"), "")
    with pytest.raises(ConfigError, match="prompts come from one place"):
        prompts_given(("x",), str(tmp_path / "questions.txt"), "")


def test_a_system_message_comes_first_and_only_once(monkeypatch) -> None:
    for _, prompt in given(monkeypatch, json.dumps(ROW), system="Be brief."):
        assert prompt.messages[0] == Message("system", "Be brief.")
        assert len(prompt.messages) == 4
    own = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    with pytest.raises(ConfigError, match="standard input:1: the conversation has a system message of its own"):
        given(monkeypatch, json.dumps(own), system="Be brief.")


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("sample", "m", "max_tokens=40"), "write --max-tokens 40"),
        (("sample", "m", "-p", "a=b", "max_token=40"), "did you mean '--max-tokens'?"),
        (("sample", "m", "--temperature", "0", "hello there"), "write --prompt 'hello there'"),
        (("chat", "m", "system=be brief"), "write --system 'be brief'"),
        (("check", "f.jsonl", "kind=prompts"), "write --kind prompts"),
        (("doctor", "x"), "leave it out"),
    ],
)
def test_the_spelling_of_other_verbs_names_the_option(capsys, words, fix) -> None:
    assert cli.main(words) == 2
    assert fix in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(LanguageModel(tiny.causal("llama", vocab_size=300), tiny.chat()), path)
    return path


def test_the_answer_to_a_conversation_is_that_to_its_ids(folder, capsys, monkeypatch) -> None:
    common = ("--temperature", "0", "--max-tokens", "6", "--json")
    monkeypatch.setattr(sys, "stdin", Stdin(json.dumps(ROW)))
    assert cli.main(("sample", str(folder), *common)) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["id"] == "a1"
    assert found["prompt"] == ROW["messages"]
    prompt = Prompt(messages=tuple(Message(*turn) for turn in TURNS))
    [group] = conversation.sample(folder, [("x", prompt)], temperature=0.0, max_tokens=6)
    assert found["responses"][0]["text"] == group.responses[0].text
    assert cli.main(("sample", str(folder), *common, "-p", "Hi", "--system", "s", "--dtype", "bfloat16")) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert [turn["role"] for turn in found["prompt"]] == ["system", "user"]
    assert "id" not in found


def test_a_chat_shows_each_response_once(folder, monkeypatch) -> None:
    lines = iter(["what is it?", "and the land?", "the cat sat on", ""])
    monkeypatch.setattr(Console, "input", lambda *_, **__: next(lines))
    console = Console(file=io.StringIO(), width=20)
    conversation.chat(folder, console=console, temperature=0.0, max_tokens=8)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("model: ") == 3
    prompt = Prompt(messages=(Message("user", "what is it?"),))
    [group] = conversation.sample(folder, [("x", prompt)], temperature=0.0, max_tokens=8)
    assert text.startswith(f"model: {conversation.plain(group.responses[0].text)}")


def test_a_chat_counts_the_turns_that_it_drops(folder, monkeypatch, capsys) -> None:
    lines = iter(["the cat sat on the mat the cat sat"] * 6 + [""])
    monkeypatch.setattr(Console, "input", lambda *_, **__: next(lines))
    conversation.chat(folder, console=Console(file=io.StringIO()), temperature=0.0, max_tokens=20)
    assert "the context is full: the oldest 2 turns were dropped" in capsys.readouterr().err


def test_a_template_that_refuses_a_system_message_is_said_with_the_place(tmp_path, capsys) -> None:
    chat = tiny.chat()
    chat.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    save_model(LanguageModel(tiny.causal("llama", vocab_size=300), type(chat)(chat.tokenizer, max_length=64)), tmp_path)
    assert cli.main(("sample", str(tmp_path), "-p", "Hi", "--max-tokens", "2")) == 0
    capsys.readouterr()
    assert cli.main(("sample", str(tmp_path), "-p", "Hi", "--system", "Be brief.")) == 2
    error = capsys.readouterr().err
    assert "--prompt" in error
    assert "no system message" in error
