"""Cleaning of preference data: removes responses given to many prompts, repeated rows, and prompts of held-out data."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiltyard.data.bad_rows import parse_answers
from tiltyard.data.formats import Kind, parse_row
from tiltyard.data.keys import answer_key, content_key, near_key, prompt_key
from tiltyard.data.row import Row
from tiltyard.errors import DataError
from tiltyard.types import Group

ALONG = ("responses", "scores", "ranks", "shares", "labels")  # lists that run along the answers of a row
_KINDS: tuple[Kind, ...] = ("comparisons", "labelled", "demonstrations", "text", "prompts")


@dataclass
class Cleaned:
    """The remaining rows, their groups, and the number of removed rows or responses by reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    repeated: list[tuple[str, int]] = field(default_factory=list)  # (how the answer begins, prompts it answers)


def kind_of(rows: Sequence[Row]) -> Kind:
    """Returns the kind of data as which most of the rows can be read: the first such of `_KINDS`.

    Pairs can be read as demonstrations too; so a kind that more than half of the rows fit precedes those after it.
    """
    counts = {kind: sum(_fits(row, kind) for row in rows) for kind in _KINDS}
    return next((kind for kind in _KINDS if 2 * counts[kind] > len(rows)), max(_KINDS, key=lambda kind: counts[kind]))


def parse_any(row: Row, kind: Kind) -> Group:
    """Parses a row; of comparisons also `prompt` and `responses` without a judgement."""
    return parse_answers(row) if kind == "comparisons" and "labels" not in row.value else parse_row(row, kind)


def _fits(row: Row, kind: Kind) -> bool:
    try:
        parse_any(row, kind)
    except DataError:
        return False
    return True


def clean_rows(
    rows: Iterable[tuple[Row, Group]], kind: Kind, max_prompts: int, held_out: Collection[Any] = frozenset()
) -> Cleaned:
    """Removes what `check_data` finds; nothing is rewritten.

    * Responses that are given to more than `max_prompts` different prompts: a template, a bug, or a string that fools
      the judge. Of a field `responses` only that answer is removed, as long as two are left; other rows are dropped.
    * Rows that have the prompt, the answers and the verdict of an earlier one, whatever their further fields.
    * Comparisons all of whose answers are the same.
    * Rows whose prompt is in the held-out data.

    Args:
        rows: as read, each with its group (`parsed_rows`). kind: as which they were parsed.
        max_prompts: 0 keeps repeated answers.
        held_out: `near_key` of each held-out group.
    """
    rows = list(rows)
    prompts: dict[str, set[int]] = defaultdict(set)
    starts: dict[str, str] = {}
    for _, group in rows:
        key = hash(prompt_key(group))
        for response in group.responses:
            prompts[answer_key(response)].add(key)
            starts.setdefault(answer_key(response), response.text[:60])
    many = {answer for answer, asked in prompts.items() if max_prompts and len(asked) > max_prompts}
    cleaned = Cleaned(repeated=sorted(((starts[a], len(prompts[a])) for a in many), key=lambda pair: -pair[1]))
    seen: set[Any] = set()
    texts: set[str] = set()
    for row, group in rows:
        text, content = json.dumps(row.value, sort_keys=True, default=str), content_key(group)
        if content in seen:
            cleaned.dropped["equal to an earlier row" if text in texts else REPEATED] += 1
        elif held_out and near_key(group) in held_out:
            cleaned.dropped["the prompt of a held-out row"] += 1
        else:
            _keep(row, group, kind, many, cleaned)
        texts.add(text)
        seen.add(content)
    return cleaned


REPEATED = "the prompt, the answers and the verdict of an earlier row"


def _keep(row: Row, group: Group, kind: Kind, many: set[str], cleaned: Cleaned) -> None:
    """Adds what is left of a row, or counts why nothing is."""
    answers = [answer_key(response) for response in group.responses]
    kept = [i for i, answer in enumerate(answers) if answer not in many]
    value = row.value
    if len(kept) < len(answers):
        if "responses" not in value:
            cleaned.dropped["an answer given to too many prompts"] += 1
            return
        cleaned.dropped["answers of rankings given to too many prompts"] += len(answers) - len(kept)
        if len(kept) < min(2, len(answers)):
            cleaned.dropped["fewer than two answers left"] += 1
            return
        value = _shortened(value, kept)
        try:
            group = parse_any(Row(value, row.where), kind)
        except DataError as error:
            cleaned.dropped[f"without those answers: {error.what}"] += 1
            return
    if len(answers) > 1 and len({answers[i] for i in kept}) == 1:
        both = "chosen" in value and "rejected" in value
        cleaned.dropped["chosen and rejected are the same" if both else "all answers are the same"] += 1
        return
    cleaned.rows.append(value)
    cleaned.groups.append(group)


def _shortened(value: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Returns a ranking with these responses alone; its shares are rescaled to add up to 1."""
    short = {k: [v[i] for i in kept] if k in ALONG and isinstance(v, list) else v for k, v in value.items()}
    shares = short.get("shares")
    if shares and sum(shares) > 0:
        short["shares"] = [s / sum(shares) for s in shares]
    return short
