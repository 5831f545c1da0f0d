"""Fields of a row with the checks that all formats share; each error names the row and how to correct it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.data.read import Row
from tiltyard.errors import DataError, nearest
from tiltyard.types import Message

ROLES = ("system", "user", "assistant")
EXAMPLES: dict[str, str] = {
    "text": '{"text": "..."} or {"messages": [...]}',
    "demonstrations": '{"prompt": "...", "completion": "..."} or {"messages": [...]}',
    "comparisons": '{"prompt": "...", "chosen": "...", "rejected": "..."} '
    'or {"prompt": "...", "responses": ["...", "..."], "scores": [1, 0]}',
    "labelled": '{"prompt": "...", "completion": "...", "label": true} '
    'or {"prompt": "...", "responses": ["...", "..."], "labels": [true, false]}',
    "prompts": '{"prompt": "..."} or {"messages": [...]}',
}


def typed(row: Row, name: str, kind: type, expected: str) -> Any:
    value = row.value[name]
    if not isinstance(value, kind):
        raise DataError(
            f"field '{name}' has the wrong type",
            where=row.where,
            got=f"{type(value).__name__} {str(value)[:60]}",
            expected=expected,
            fix=f"write '{name}' as {expected}",
        )
    return value


def filled(row: Row, name: str) -> str:
    text: str = typed(row, name, str, "a string" if name == "text" else "a string or a list of messages")
    if not text.strip():
        raise empty(row, name)
    return text


def numbers(row: Row, name: str, count: int) -> tuple[float, ...] | None:
    """Returns the field as `count` finite numbers; None if the row lacks it."""
    if row.value.get(name) is None:
        return None
    values = typed(row, name, list, f"a list of {count} numbers")
    if len(values) != count:
        raise DataError(
            f"'{name}' and 'responses' differ in length",
            where=row.where,
            got=f"{len(values)} {name} for {count} responses",
            expected=f"{count} {name}",
            fix=f"give one of '{name}' for each response, in the same order",
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"field '{name}' holds something that is not a finite number",
                where=row.where,
                got=value if value is not None else "null",
                expected="finite numbers",
                fix="leave out the responses without a judgement",
            )
    return tuple(float(value) for value in values)


def probability(row: Row, name: str) -> float | None:
    """Returns the field as a number from 0 to 1; None if the row lacks it."""
    value = row.value.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(
            f"field '{name}' is not a probability",
            where=row.where,
            got=value,
            expected="a number from 0 to 1",
            fix=f"divide percentages by 100, or leave '{name}' out where the label is certain",
        )
    return float(value)


def shares_field(row: Row, count: int) -> tuple[float, ...] | None:
    """Returns field `shares`: probabilities that each response is the preferred one; votes are divided by their sum."""
    values = numbers(row, "shares", count)
    if values is None:
        return None
    total = sum(values)
    votes = all(v == int(v) for v in values) and total > 0
    if min(values) < 0 or not (votes or abs(total - 1) < 1e-3):
        raise DataError(
            "field 'shares' holds neither probabilities nor votes",
            where=row.where,
            got=f"{row.value['shares']}, which add up to {total:g}",
            expected="numbers >= 0 that add up to 1, or whole numbers of votes",
            fix="put scores that are not probabilities in 'scores'",
        )
    return tuple(v / total for v in values)


def flag(row: Row, name: str, value: Any) -> bool:
    """Converts a label to True (good) or False (bad)."""
    if value not in (True, False, 0, 1):
        raise DataError(
            f"field '{name}' is not a label",
            where=row.where,
            got=value,
            expected="true (good) or false (bad)",
            fix="labels are good or bad; graded answers belong in 'scores', which comparisons read",
        )
    return bool(value)


def messages_field(row: Row, name: str) -> tuple[Message, ...]:
    return message_list(row, name, row.value[name])


def message_list(row: Row, name: str, value: Any) -> tuple[Message, ...]:
    """Parses a list of role/content objects as messages; anything else is an error that shows the expected shape."""
    shape = '[{"role": "user", "content": "..."}, ...]'
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else f"{type(value).__name__} {str(value)[:60]}"
        raise DataError(
            f"field '{name}' is not a list of messages", where=row.where, got=got, expected=shape, fix=f"write {shape}"
        )
    turns = []
    for number, item in enumerate(value):
        position = f"{name}[{number}]"
        if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
            raise DataError(
                f"{position} is not a message with a role",
                where=row.where,
                got=str(item)[:80],
                expected='{"role": "user", "content": "..."}',
                fix="rename the fields (e.g. from 'from' and 'value') to 'role' and 'content'",
            )
        if item["role"] not in ROLES:
            raise DataError(
                f"unknown role in {position}",
                where=row.where,
                got=item["role"],
                expected=", ".join(ROLES),
                fix=nearest(item["role"], ROLES),
            )
        if not isinstance(item.get("content"), str):
            raise DataError(
                f"the content of {position} is not a string",
                where=row.where,
                got=f"{type(item.get('content')).__name__} {str(item.get('content'))[:60]}",
                expected="a string",
                fix="only text is supported: join the text parts, leave images and tool calls out",
            )
        if not item["content"].strip() and item["role"] != "system":
            raise empty(row, position)
        turns.append(Message(item["role"], item["content"]))
    return tuple(turns)


# ---------------------------------------------------------------------------------------------- errors


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


def lacks(row: Row, name: str, kind: str, fix: str = "") -> DataError:
    names = [str(key) for key in row.value]
    close = nearest(name, names) if names else ""
    hint = f"{close} Rename it to '{name}'" if close.startswith("did you mean") else f"add field '{name}'"
    return DataError(
        f"field '{name}' is missing or null",
        where=row.where,
        got="fields " + (", ".join(names) or "(none)"),
        expected=EXAMPLES[kind],
        fix=fix or f"{hint}; this file is read as {kind}",
    )


def empty(row: Row, name: str) -> DataError:
    return DataError(
        f"field '{name}' is empty",
        where=row.where,
        got="no text",
        expected="text that is not only white space",
        fix="fill it or delete this row",
    )
