"""Conversations of a row: message lists in the forms that people have, and transcripts.

| form | read as |
|---|---|
| `{"role", "content"}` | turn: `system`, `user`, `assistant`; `tool` and `developer` where the template renders them |
| `{"from", "value"}` (ShareGPT) | the same; `human` is the user, `gpt` the assistant |
| content as a list of text parts | the parts' texts, joined |
| `"\\n\\nHuman: ...\\n\\nAssistant: ..."` | user and assistant turns |

`weight` 0 on an assistant's turn: no loss on it. Any other field of a message is kept in `Message.more` for the chat
template, which either renders it or refuses the row (`tiltyard.data.message_fields`). A field that holds nothing (null,
an empty text or list) counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.data.fields import empty, lacks
from tiltyard.data.row import Row
from tiltyard.errors import DataError, nearest
from tiltyard.types import Message

ROLES = ("system", "user", "assistant")
TEMPLATE_ROLES = ("tool", "developer")  # for templates that know them
SYNONYMS = {"human": "user", "gpt": "assistant"}
CONVERSATION = ("messages", "conversations", "conversation")  # columns that hold one
WEIGHT = "weight"
SHAPE = '[{"role": "user", "content": "..."}, ...]'

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")
_JSON_TEXT = re.compile(r"""\s*\[?\s*\{\s*['"](role|content|from|value)['"]\s*:""")
_ROLE_KEY = re.compile(r"""['"](role|from)['"]\s*:""")
_RENDERED = re.compile(
    r"\s*(<s>\s*|<bos>\s*)?(\[INST\]|<\|im_start\|>|<\|start_header_id\|>|<\|begin_of_text\|>|<start_of_turn>"
    r"|<\|(user|system)\|>)"
)


# ------------------------------------------------------------------------------------------------- lists of messages


def conversation_column(row: Row) -> str:
    """Returns the name of the column that holds the conversation; "" if there is none.

    Raises:
        DataError: two columns hold different ones.
    """
    names = [name for name in CONVERSATION if row.value.get(name) is not None]
    for other in names[1:]:
        if row.value[other] != row.value[names[0]]:
            raise DataError(
                f"'{names[0]}' and '{other}' hold different conversations",
                where=row.where,
                got=f"both columns {names[0]} and {other}",
                expected="one of " + ", ".join(CONVERSATION),
                fix="leave one of them out, or put it under 'meta'",
            )
    return names[0] if names else ""


def messages_field(row: Row, name: str) -> tuple[Message, ...]:
    """Parses a field as a list of messages."""
    return message_list(row, name, row.value[name])


def message_list(row: Row, name: str, value: Any) -> tuple[Message, ...]:
    """Parses a list of messages; anything else is an error that shows the expected shape."""
    if isinstance(value, str):
        refuse_json_text(row, name, value)
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else f"{type(value).__name__} {str(value)[:60]}"
        raise DataError(
            f"field '{name}' is not a list of messages", where=row.where, got=got, expected=SHAPE, fix=f"write {SHAPE}"
        )
    if all(isinstance(item, str) for item in value):
        raise DataError(
            f"field '{name}' is a list of answers where one is expected",
            where=row.where,
            got=f"{len(value)} texts",
            expected=f"a string or {SHAPE}",
            fix="give one answer; several are read as comparisons (chosen and rejected may be lists of answers)",
        )
    return tuple(_message(row, f"{name}[{number}]", item) for number, item in enumerate(value))


def _message(row: Row, position: str, item: Any) -> Message:
    role_key, text_key = ("from", "value") if isinstance(item, Mapping) and "role" not in item else ("role", "content")
    if not isinstance(item, Mapping) or not isinstance(item.get(role_key), str):
        raise DataError(
            f"{position} is not a message with a role",
            where=row.where,
            got=str(item)[:80],
            expected='{"role": "user", "content": "..."}',
            fix="rename its fields to 'role' and 'content'",
        )
    role = _role(row, position, item[role_key])
    extra = {k: v for k, v in item.items() if k not in (role_key, text_key) and v not in (None, "", [], {})}
    if extra.keys() & {"role", "content"}:
        raise DataError(
            f"{position} is written in two ways at once",
            where=row.where,
            got="fields " + ", ".join(map(str, item)),
            expected="'role' and 'content', or 'from' and 'value'",
            fix="leave out the two that should not be read",
        )
    text = _content(row, position, item.get(text_key), silent=role == "assistant" and "tool_calls" in extra)
    if not text.strip() and role not in ("system", "developer", "tool") and "tool_calls" not in extra:
        raise empty(row, position)
    if WEIGHT in extra and _weight(row, position, role, extra[WEIGHT]):
        del extra[WEIGHT]
    return Message.from_dict({**{str(k): v for k, v in extra.items()}, "role": role, "content": text})


def _role(row: Row, position: str, given: str) -> str:
    role = SYNONYMS.get(given, given)
    known = (*ROLES, *TEMPLATE_ROLES)
    if role not in known:
        old = given in ("function", "function_call", "observation")
        raise DataError(
            f"unknown role in {position}",
            where=row.where,
            got=given,
            expected=", ".join(sorted(ROLES)),
            fix="calls are field 'tool_calls' of the assistant's turn, and results are turns of role 'tool'"
            if old
            else nearest(given, known),
        )
    return role


def _content(row: Row, position: str, value: Any, *, silent: bool) -> str:
    """Returns the text of a message; `silent`: it may have none (the turn is a tool call)."""
    if value is None and silent:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and part for part in value):
        for number, part in enumerate(value):
            given = {k for k, v in part.items() if v is not None}  # column stores give every part every key
            if part.get("type") != "text" or not isinstance(part.get("text"), str) or given != {"type", "text"}:
                raise DataError(
                    f"part {number} of the content of {position} is not text alone",
                    where=row.where,
                    got=str(dict(part))[:80],
                    expected='{"type": "text", "text": "..."}',
                    fix="only text is supported: leave images, sound and further fields of parts out",
                )
        return "".join(part["text"] for part in value)
    raise DataError(
        f"the content of {position} is not a string",
        where=row.where,
        got=f"{type(value).__name__} {str(value)[:60]}",
        expected='a string, or a list of text parts {"type": "text", "text": "..."}',
        fix="only text is supported: leave images out",
    )


def _weight(row: Row, position: str, role: str, value: Any) -> bool:
    """Returns True for the usual weight, which changes nothing: 1 for the assistant's turns, 0 for others."""
    usual = 1 if role == "assistant" else 0
    if not isinstance(value, int | float) or value not in (0, 1) or (role != "assistant" and value != 0):
        raise DataError(
            f"field 'weight' of {position} cannot be honoured",
            where=row.where,
            got=f"{value!r} on a turn of role {role}",
            expected="0 (no loss on this turn) or 1 on the assistant's turns",
            fix="leave 'weight' out, or use 0 and 1",
        )
    return value == usual


def trained(turn: Message) -> bool:
    """True for the assistant's turns without `weight` 0: those with a loss."""
    return turn.role == "assistant" and turn.extra.get(WEIGHT, 1) != 0


def without_weights(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Returns the turns of a prompt, on which there is no loss whatever their weights."""
    return tuple(
        Message.from_dict({k: v for k, v in t.to_dict().items() if k != WEIGHT}) if t.more else t for t in turns
    )


# ------------------------------------------------------------------------------------------------------- transcripts


def is_transcript(text: str, *, answer: bool = False) -> bool:
    """True for a text of Human: and Assistant: turns.

    It begins with a mark, and another mark follows, or blank lines stand before it as in the HH data. One `Human:` at
    the beginning of a prompt is not enough: a sentence may begin so.

    Args:
        answer: of an answer, which may begin with a turn of the assistant.
    """
    marks = list(_HH_TURN.finditer(text))
    if not marks or marks[0].start() != 0 or (marks[0].group(1) == "Assistant" and not answer):
        return False
    return len(marks) > 1 or text.startswith("\n\n")


def transcript(row: Row, name: str, text: str, *, open_end: bool = False) -> tuple[Message, ...]:
    """Parses a transcript with Human: and Assistant: turns.

    Args:
        open_end: a last `Assistant:` without words is the place of the answer, and no turn.
    """
    marks = list(_HH_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        fix = f"without a prompt '{name}' must be messages or a '\\n\\nHuman: ...' transcript"
        raise lacks(row, "prompt", "comparisons", fix)
    turns: list[Message] = []
    for mark, end in zip(marks, [m.start() for m in marks[1:]] + [len(text)], strict=True):
        turn = Message("user" if mark.group(1) == "Human" else "assistant", text[mark.end() : end].strip())
        if turns and turns[-1].role == turn.role:  # such transcripts do hold two Human turns in a row
            turn = Message(turn.role, f"{turns.pop().content}\n\n{turn.content}".strip())
        turns.append(turn)
    if open_end and len(turns) > 1 and turns[-1] == Message("assistant", ""):
        turns.pop()
    if any(not turn.content for turn in turns):
        raise empty(row, name)
    return tuple(turns)


def holds_transcript(text: str) -> bool:
    """True for a text that ends as a transcript does and begins otherwise ("Continue the dialogue: ...")."""
    return "\n\nHuman:" in text and text.rstrip().endswith("\n\nAssistant:") and not is_transcript(text)


def refuse_rendered(row: Row, name: str, text: str) -> None:
    """Raises a DataError for a prompt that is a whole conversation in one text, of a form that is not read."""
    if _RENDERED.match(text):
        raise DataError(
            f"field '{name}' is a conversation in one text",
            where=row.where,
            got=repr(text[:60]),
            expected=f"the words of one user turn, or {SHAPE}",
            fix="give the turns as messages: the model's chat template puts the control tokens between them",
        )


def refuse_json_text(row: Row, name: str, text: str) -> None:
    """Raises a DataError for a list of messages in quotes, as CSV files and data frames leave it."""
    if not _JSON_TEXT.match(text) or not _ROLE_KEY.search(text):
        return
    try:
        value = json.loads(text)
    except ValueError:
        value = [{"role": ""}] if text.rstrip().endswith(("}]", "}")) and "'" in text else None
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items):
        raise DataError(
            f"field '{name}' is a list of messages in quotes",
            where=row.where,
            got=f"str {text[:60]}",
            expected=SHAPE,
            fix="parse the column before writing the file: json.loads (ast.literal_eval where the quotes are single)",
        )


# ------------------------------------------------------------------------------------------------- order of the turns


def ends_with_answer(row: Row, name: str, turns: Sequence[Message]) -> None:
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            f"field '{name}' does not end with an answer",
            where=row.where,
            got=f"last turn is {turns[-1].role}" if turns else "no turn after the prompt",
            expected="last turn is assistant",
            fix="cut the conversation after the assistant's last turn",
        )


def ends_with_question(row: Row, name: str, turns: Sequence[Message]) -> None:
    if turns[-1].role == "assistant":
        raise DataError(
            f"field '{name}' does not end with a question",
            where=row.where,
            got="last turn is assistant",
            expected="last turn is user",
            fix="remove the assistant's last turn, or use the rows as demonstrations",
        )


def starts_with_answer(row: Row, name: str) -> DataError:
    return DataError(
        f"field '{name}' begins with the assistant",
        where=row.where,
        got="first turn is assistant",
        expected="a user turn first (a system turn may precede it)",
        fix="remove the assistant's first turn, or put the question in front of it",
    )
