"""Doors of the command line: arguments, standard input, recipes; and what a terminal shows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiltyard.cli import main
from tiltyard.cli.prompts import lines_of_stdin
from tiltyard.errors import ConfigError
from tiltyard.pipeline.recipe import parse_recipe, read_recipe
from tiltyard.types import Group, Message, Prompt, Response
from tiltyard.yaml_values import parse_value

ODD = "one\ftwo\u2028three\u0085four\x1cfive\vsix\rseven"  # what str.splitlines cuts


class Stdin:
    def __init__(self, data: bytes):
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_line_ends_at_a_line_feed_alone(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(f"\ufeff{ODD}\n\n  \nlast{end}".encode()))
    assert lines_of_stdin() == [("standard input:1", ODD), ("standard input:4", "last")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Où?\nHi\n".encode("latin-1"), r"standard input:1: the text is not UTF-8(.|\n)*0xf9 at column 2"),
        (b"Hi\n\xff\n", r"standard input:2: the text is not UTF-8"),
        ("Hi\n".encode("utf-16"), "UTF-16"),
        ("Hi there\n".encode("utf-16-le"), "UTF-16"),
    ],
)
def test_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch, data: bytes, said: str) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    with pytest.raises(ConfigError, match=said):
        lines_of_stdin()


def says(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    text = capsys.readouterr().err
    assert "  at:" not in text
    return text


@pytest.mark.parametrize(
    "words", [("sample", "m", "-p", "caf\udce9"), ("train", "sft", "data=caf\udce9"), ("check", "caf\udce9.jsonl")]
)
def test_an_argument_that_is_not_utf8(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert "an argument is not UTF-8" in says(capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "m", "-p", "Hi", "--seed", str(10**30)),
        ("sample", "m", "-p", "Hi", "--max-tokens", str(2**63)),
        ("sample", "m", "-p", "Hi", "-n", str(2**63)),
        ("chat", "m", "--seed", str(2**63)),
        ("bench", "m", "--steps", str(10**30)),
        ("run", "demo", "--jobs", str(10**30)),
        ("train", "sft", "model=m", "data=d.jsonl", f"seed={2**63}"),
        ("train", "sft", "model=m", "data=d.jsonl", f"limit={'9' * 5000}"),
        ("run", "demo", f"sft.steps={10**30}"),
    ],
)
def test_a_number_beyond_64_bits(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    text = says(capsys, *words)
    assert "64 bits" in text or "less than or equal to" in text or "not in the range" in text, text


def test_values_that_look_like_such_numbers() -> None:
    assert parse_value(str(2**63 - 1)) == 2**63 - 1
    assert parse_value(str(-(2**63))) == -(2**63)
    assert parse_value(f'"{2**63}"') == str(2**63)


@pytest.mark.parametrize("path", ["x" * 5000, "x" * 300 + "/y", "~nobody-at-all/x.jsonl", "a\0b", "x" * 300 + ".py:f"])
@pytest.mark.parametrize(
    "words",
    [
        ("check", "{}"),
        ("check", __file__, "--held-out", "{}"),
        ("run", "{}"),
        ("sample", "{}", "-p", "Hi"),
        ("replay", "{}"),
        ("train", "{}"),
        ("train", "sft", "model={}", "data={}"),
        ("train", "ppo", "model={}", "prompts={}", "reward={}"),
        ("train", "clean", "data={}"),
        ("eval", "--reward", "{}", "{}"),
    ],
)
def test_a_path_that_no_system_has(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], path: str) -> None:
    """Too long, of nobody's home, with a NUL character."""
    says(capsys, *(word.replace("{}", path) for word in words))


# ------------------------------------------------------------------------------------------------------- recipes


RECIPE = "# Où?\nname: x\nstages:\n  - sft: {model: m, data: d.jsonl}\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (RECIPE.encode("latin-1"), r"r.yaml:1: the text is not UTF-8(.|\n)*0xf9"),
        (RECIPE.encode("utf-16"), r"r.yaml: this is no text in UTF-8(.|\n)*UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", r"Git LFS pointer(.|\n)*git lfs pull"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"", "the recipe is empty"),
        (b"\n \n", "the recipe is empty"),
        (b"a: \0", "this is no YAML"),
        (b"[1, 2]", "a recipe is a mapping"),
    ],
)
def test_recipes_that_are_no_recipes(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        read_recipe(tmp_path / "r.yaml")


def test_a_recipe_of_windows(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert [entry.name for entry in read_recipe(tmp_path / "r.yaml").entries] == ["sft"]


@pytest.mark.parametrize(
    "value", ["9" * 5000, "!!int a", "!!float b", "!!bool c", "!!timestamp d", "!!binary é", "0x" + "f" * 40]
)
def test_a_value_that_its_type_does_not_fit_has_a_line(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^r.yaml:3: this is no YAML"):
        parse_recipe(f"stages:\n  - sft:\n      seed: {value}\n", "r.yaml")


# ----------------------------------------------------------------------------------------- what a terminal shows


WORDS = "caf\u00e9 \u4f60 \U0001f642"


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, *more: str) -> str:
    """What `sample` prints of a scripted answer."""
    conversation = pytest.importorskip("tiltyard.cli.conversation")
    response = Group(Prompt(messages=(Message("user", "Hi"),)), (Response(ids=(1,), text=answer, finish="stop"),))
    monkeypatch.setattr(conversation, "sample", lambda *_, **__: [response])
    monkeypatch.setattr("tiltyard.cli.chat.find_model", lambda *_: Path("m"))
    assert main(("sample", "m", "-p", "Hi", *more)) == 0
    return capsys.readouterr().out


def test_a_model_does_not_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\\x1b[2J [bold]" in shown(monkeypatch, capsys, "\x1b[2J [bold]")


def test_an_error_shows_what_it_got_with_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "chosen": {"role": "\\u001b[2Jx"}, "rejected": "b"}\n')
    text = says(capsys, "check", str(tmp_path / "a.jsonl"))
    assert "\x1b" not in text


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_terminal_without_the_characters(more: tuple[str, ...]) -> None:
    """ASCII: exit 0 with escapes, and JSON that stays JSON."""
    script = f"""
import sys
from pathlib import Path
from tiltyard.cli import main, chat, conversation
from tiltyard.types import Group, Message, Prompt, Response
group = Group(Prompt(messages=(Message("user", "Hi"),)), (Response(ids=(1,), text={WORDS!a}, finish="stop"),))
conversation.sample = lambda *_, **__: [group]
chat.find_model = lambda *_: Path("m")
sys.argv = ["tiltyard", "sample", "m", "-p", {WORDS!a}, *{list(more)!r}]
sys.exit(main())
"""
    done: Any = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=False,
        env={**__import__("os").environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    if more:
        assert json.loads(text)[0]["responses"][0]["text"] == WORDS
    else:
        assert text.count("caf\\xe9 \\u4f60 \\U0001f642") == 2
