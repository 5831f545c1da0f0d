"""Prompts and conversations of `tiltyard sample`: from the command line, a file or standard input."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiltyard.errors import ConfigError
from tiltyard.types import Message, Prompt

if TYPE_CHECKING:
    from tiltyard.data.row import Row

STDIN = "standard input"
ROW_KEYS = ("messages", "conversations", "conversation", "prompt")  # an object with one of them is a row


def prompts_given(texts: Sequence[str], file: str, system: str) -> list[tuple[str, Prompt]]:
    """Returns (place, prompt): --prompt, else the rows or lines of --file, else those of standard input.

    Args:
        system: a system message before each of them; "" for none.

    Raises:
        ConfigError: no prompt, both kinds of source, bytes that are not UTF-8, a row that has a system message already.
        DataError: a row that holds no prompt.
    """
    if texts and file:
        raise ConfigError(
            "prompts come from one place",
            where="sample",
            got=f"--prompt and --file {file}",
            expected="one of them",
            fix="leave one of them out",
        )
    if texts:
        found = [("--prompt", _asked(text)) for text in texts]
    elif file:
        found = _of_file(file)
    else:
        found = [] if sys.stdin.isatty() else _of_lines(lines_of_stdin())
    if not found:
        fix = f"write prompts into {file}" if file else '--prompt "...", --file FILE, or lines on stdin'
        raise ConfigError("no prompt was given", where=file or "sample", fix=fix)
    return [(where, _with_system(where, prompt, system)) for where, prompt in found]


def lines_of_stdin() -> list[tuple[str, str]]:
    """Reads (place, line) from standard input; a line ends at a line feed alone, and blank lines are skipped.

    Raises:
        ConfigError: bytes that are not UTF-8.
    """
    stream = getattr(sys.stdin, "buffer", None)
    return _lines(sys.stdin.read().encode(errors="surrogateescape") if stream is None else stream.read(), STDIN)


def _lines(data: bytes, name: str) -> list[tuple[str, str]]:
    from tiltyard.files import HEAD, foreign_format, not_utf8

    foreign = foreign_format(data[:HEAD])
    if foreign is not None:
        raise ConfigError("this is no text in UTF-8", where=name, got=foreign[0], expected="UTF-8", fix=foreign[1])
    found = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        where = f"{name}:{number}"
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise not_utf8(line, error, where, ConfigError) from None
        if text.strip():
            found.append((where, text))
    return found


def _of_file(file: str) -> list[tuple[str, Prompt]]:
    """The rows of a data file, by its ending; of any other file the lines."""
    from tiltyard.data.read import read_rows
    from tiltyard.data.splits import suffix_of
    from tiltyard.files import reading, user_path

    path = user_path(file)
    if suffix_of(path):
        return [_parsed(row) for row in read_rows(Path(path))]
    with reading(path, ConfigError):
        data = path.read_bytes()
    return _of_lines(_lines(data, path.name))


def _of_lines(lines: list[tuple[str, str]]) -> list[tuple[str, Prompt]]:
    """One prompt a line; where the first line is a row of JSON, all are rows."""
    if not lines or not _is_row(lines[0][1]):
        return [(where, _asked(text)) for where, text in lines]
    from tiltyard.data.read import row_of

    return [_parsed(row_of(text.encode(), where)) for where, text in lines]


def _is_row(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and any(key in value for key in ROW_KEYS)


def _parsed(row: Row) -> tuple[str, Prompt]:
    from tiltyard.data.formats import parse_row

    return row.where, parse_row(row, "prompts").prompt


def _asked(text: str) -> Prompt:
    return Prompt(messages=(Message("user", text),))


def _with_system(where: str, prompt: Prompt, system: str) -> Prompt:
    turns = prompt.messages or ()
    if not system:
        return prompt
    if any(turn.role == "system" for turn in turns):
        raise ConfigError(
            "the conversation has a system message of its own",
            where=where,
            got=f"--system {system[:60]!r}",
            expected="one system message",
            fix="leave --system out, or the system message of the row",
        )
    return replace(prompt, messages=(Message("system", system), *turns))
