"""Two responses with `label`: 1 or 2, the number of the better one, or 0 for a tie, as LLMBar and PandaLM write them.

| the two responses | the number |
|---|---|
| `responses` | the position in the list, from 1 |
| `response_a` and `response_b` (or `_A`, `_B`) | 1 is a, 2 is b |
| `output_1` and `output_2`, `response_1` and `response_2` | that of the field's name |

A row alone does not show from where a file counts: a 1 is the second response in a file of 0 and 1. `PairLabels` looks at
all rows of a source, and refuses one whose labels can be read in two ways.
"""  # noqa: E501

from __future__ import annotations

from typing import Any

from tiltyard.data.row import Row
from tiltyard.errors import DataError

NAMES = (
    ("output_1", "output_2"),
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("response_A", "response_B"),
)
NUMBERED = NAMES[:2]  # the label is a number of the field's name: 1 cannot mean the second
RANKS = {1: (1, 2), 2: (2, 1), 0: (1, 1)}
_JUDGED = ("scores", "ranks", "shares", "labels", "p_chosen")
_FIX = "write 'ranks' ([1, 2]: the first is better; [1, 1]: a tie), or 'chosen' and 'rejected'"


def answers_of(row: Row) -> tuple[str, ...]:
    """Returns the fields of the two responses that `label` compares; () where the row is of another form."""
    value = row.value
    other = any(value.get(name) is not None for name in _JUDGED)
    if value.get("label") is None or other or (value.get("chosen") is not None and value.get("rejected") is not None):
        return ()
    if isinstance(value.get("responses"), list):
        return ("responses",) if len(value["responses"]) == 2 else ()
    found = [pair for pair in NAMES if all(value.get(name) is not None for name in pair)]
    if len(found) > 1:
        raise DataError(
            "the label does not tell which responses it compares",
            where=row.where,
            got=" and ".join(", ".join(pair) for pair in found),
            expected="two responses",
            fix="leave out those that the label is not about",
        )
    return found[0] if found else ()


def as_ranking(row: Row) -> Row:
    """Returns a row of two labelled responses as one of `prompt`, `responses` and `ranks`; any other row as it is.

    Raises:
        DataError: the label is none of 1, 2 and 0.
    """
    names = answers_of(row)
    if not names:
        return row
    used = {"label", *names}
    value: dict[str, Any] = {key: given for key, given in row.value.items() if key not in used}
    asked = [key for key in ("instruction", "input") if value.get(key) and isinstance(value[key], str)]
    if value.get("prompt") is None and len(asked) == 1:  # LLMBar's `input`, AlpacaEval's `instruction`
        value = {key: given for key, given in value.items() if key != asked[0]} | {"prompt": value[asked[0]]}
    responses = row.value["responses"] if names == ("responses",) else [row.value[name] for name in names]
    return Row({**value, "responses": responses, "ranks": list(RANKS[_label(row)])}, row.where)


def _label(row: Row) -> int:
    label = row.value["label"]
    if isinstance(label, bool) or not isinstance(label, int | float) or label not in RANKS:
        raise DataError(
            "the label of two responses is not the number of one",
            where=row.where,
            got=f"label {label!r}",
            expected="1 (the first is better), 2 (the second) or 0 (a tie)",
            fix=_FIX,
        )
    return int(label)


class PairLabels:
    """The labels of a source's rows, and where each was seen first."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, bool], str] = {}

    def take(self, row: Row) -> None:
        """Takes a row that was read as a comparison."""
        if "label" in row.value and (names := answers_of(row)):
            self._seen.setdefault((_label(row), names in NUMBERED), row.where)

    def check(self) -> None:
        """Checks what the labels of the source mean.

        Raises:
            DataError: there is no 2 among them, so that 0 may be a tie or the first response, and 1, where it is no
                field's number, the first or the second.
        """
        labels = {label for label, _ in self._seen}
        unclear = [where for (label, numbered), where in self._seen.items() if label == 0 or not numbered]
        if not unclear or 2 in labels:
            return
        found = " and ".join(str(label) for label in sorted(labels))
        raise DataError(
            "the labels of two responses can be read in two ways",
            where=unclear[0],
            got=f"label {found} alone in all rows",
            expected="1 (first), 2 (second) and 0 (a tie); without any 2 they may be counted from 0",
            fix=f"{_FIX}; with limit, read more rows",
        )
