"""Cleaning of preference data: removes responses given to many prompts, and repeated rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tiltyard.data.read import Row

ANSWERS = ("completion", "chosen", "rejected")
ALONG = ("responses", "scores", "ranks", "shares", "labels")  # lists that run along the answers of a row


@dataclass
class Cleaned:
    """The remaining rows, and the number of removed rows or responses by reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    repeated: list[tuple[str, int]] = field(default_factory=list)  # (how the answer begins, prompts it answers)

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


def clean_rows(rows: Sequence[Row], max_prompts: int) -> Cleaned:
    """Removes responses that are given to more than `max_prompts` different prompts, and repeated rows.

    An answer to many questions is a template, a bug, or a string that fools the judge. Of a ranking only that answer is
    removed, as long as two are left. Also dropped: rows that are equal to an earlier one, and pairs whose two answers
    are the same. Nothing is rewritten.

    Args:
        rows: demonstrations, comparisons or labelled rows as read; the prompt of a transcript is what its field holds.
        max_prompts: 0 keeps repeated answers.
    """
    prompts: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for answer in _answers(row.value):
            prompts[answer].add(_text(row.value.get("prompt")))
    many = {a for a, answered in prompts.items() if max_prompts and len(answered) > max_prompts}
    cleaned = Cleaned(repeated=sorted(((a[:60], len(prompts[a])) for a in many), key=lambda pair: -pair[1]))
    seen: set[str] = set()
    for row in rows:
        value = row.value
        key = json.dumps(value, sort_keys=True, default=str)
        if key in seen:
            cleaned.drop("equal to an earlier row")
            continue
        seen.add(key)
        if "responses" in value and many:
            value = _shortened(value, many, cleaned)
            if len(value["responses"]) < min(2, len(row.value["responses"])):
                cleaned.drop("fewer than two answers left")
                continue
        elif many & set(_answers(value)):
            cleaned.drop("an answer given to too many prompts")
            continue
        if "chosen" in value and _text(value["chosen"]) == _text(value.get("rejected")):
            cleaned.drop("chosen and rejected are the same")
            continue
        cleaned.rows.append(value)
    return cleaned


def _shortened(value: dict[str, Any], many: set[str], cleaned: Cleaned) -> dict[str, Any]:
    """Returns a ranking without the responses in `many`; its shares are rescaled to add up to 1."""
    kept = [i for i, answer in enumerate(value["responses"]) if _text(answer) not in many]
    for _ in range(len(value["responses"]) - len(kept)):
        cleaned.drop("answers of rankings given to too many prompts")
    short = {k: [v[i] for i in kept] if k in ALONG and isinstance(v, list) else v for k, v in value.items()}
    shares = short.get("shares")
    if shares and len(kept) < len(value["responses"]) and sum(shares) > 0:
        short["shares"] = [s / sum(shares) for s in shares]
    return short


def _answers(value: dict[str, Any]) -> list[str]:
    responses = value.get("responses")
    return [_text(value[k]) for k in ANSWERS if k in value] + [
        _text(r) for r in (responses if isinstance(responses, list) else ())
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
