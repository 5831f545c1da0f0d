"""Fields of a row with the checks that all formats share; each error names the row and how to correct it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from tiltyard.data.row import Row
from tiltyard.errors import DataError, nearest

EXAMPLES: dict[str, str] = {
    "text": '{"text": "..."} or {"messages": [...]}',
    "demonstrations": '{"prompt": "...", "completion": "..."} or {"messages": [...]}',
    "comparisons": '{"prompt": "...", "chosen": "...", "rejected": "..."} '
    'or {"prompt": "...", "responses": ["...", "..."], "scores": [1, 0]}',
    "labelled": '{"prompt": "...", "completion": "...", "label": true} '
    'or {"prompt": "...", "responses": ["...", "..."], "labels": [true, false]}',
    "prompts": '{"prompt": "..."} or {"messages": [...]}',
}

_LARGEST = sys.float_info.max  # whole numbers of JSON may be larger

ALIASES = {  # other names that people have for a field
    "prompt": ("instruction", "question", "query", "input"),
    "completion": ("output", "response", "answer"),
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
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
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


def check_order(row: Row, orders: Mapping[str, tuple[float, ...] | None]) -> None:
    """Raises a DataError where two judgements order two responses the opposite way.

    Args:
        orders: numbers a response by field, higher is better (ranks negated); None: the row lacks the field.
    """
    given = {name: order for name, order in orders.items() if order is not None}
    for (one, first), (other, second) in combinations(given.items(), 2):
        for i, j in combinations(range(len(first)), 2):
            if (first[i] - first[j]) * (second[i] - second[j]) < 0:
                raise DataError(
                    f"{one} and {other} contradict each other",
                    where=row.where,
                    got=f"{one} {row.value[one]}, {other} {row.value[other]}",
                    expected="the better response by one of them to be no worse by the other "
                    "(ranks: 1 is best; scores and shares: higher is better)",
                    fix="give one of the two",
                )


# ---------------------------------------------------------------------------------------------- errors


def lacks(row: Row, name: str, kind: str, fix: str = "") -> DataError:
    """Returns the error for a missing field; it names the nearest of the row's fields."""
    names = [str(key) for key in row.value]
    close = nearest(name, names) if names else ""
    other = next((alias for alias in ALIASES.get(name, ()) if row.value.get(alias) is not None), "")
    if other:
        close = f"did you mean '{other}'?"
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
