"""Facts about rows that the reports of data count by name: what was read beyond a format's own fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tiltyard.data.conversations import ROLES, WEIGHT, holds_transcript, is_transcript
from tiltyard.data.pair_labels import answers_of
from tiltyard.data.row import Row
from tiltyard.data.turns import TURNS, turns_of
from tiltyard.types import Group, Message, shares_of

UNTRAINED = "rows with turns of weight 0, which no loss counts"
TRANSCRIPT = "rows whose prompt is a transcript, read as turns"
HOLDS_TRANSCRIPT = "rows whose prompt has other words before a transcript, read as one user turn"
WORSE = "rows that call chosen what p_chosen or the scores call worse"
LABELLED_PAIR = "rows whose label tells the better of two responses (1: the first, 2: the second, 0: a tie)"
_GIVEN = "given to the chat template (it renders it, or training refuses the row)"

SAME = "pairs whose two answers are the same"
SAME_IN_RANKING = "rankings in which two answers are the same"


def same_answers(group: Group) -> str:
    """Returns the name of the fact that two responses have the same token ids; "" if all differ."""
    count = len(group.responses)
    if len({response.ids for response in group.responses}) == count:
        return ""
    return SAME if count == 2 else SAME_IN_RANKING


def facts_of(row: Row, group: Group) -> list[str]:
    """Returns what to count of a row that was parsed as `group`, each fact once."""
    return list(dict.fromkeys(_facts(row, group)))


def _facts(row: Row, group: Group) -> Iterator[str]:
    value, prompt = row.value, group.prompt
    for name in ("system", "system_prompt", "history", "tools"):
        if name in value and value[name] and name not in prompt.meta:
            yield f"rows whose field '{name}' is " + (_GIVEN if name == "tools" else "read as turns")
    if isinstance(value.get("prompt"), str) and is_transcript(value["prompt"]):
        yield TRANSCRIPT
    if isinstance(value.get("prompt"), str) and holds_transcript(value["prompt"]):
        yield HOLDS_TRANSCRIPT
    if any(_without_loss(item) for item in value.values()):
        yield UNTRAINED
    for turn in _turns(group):
        yield from (f"rows whose messages have '{name}', {_GIVEN}" for name in turn.extra if name != WEIGHT)
        if turn.role not in ROLES:
            yield f"rows with turns of role '{turn.role}', {_GIVEN}"
    given: Mapping[str, Any] = value.get("meta") or {}
    for key in given.keys() & prompt.meta.keys():
        if key in value and key not in ("id", "meta") and value[key] != given[key]:
            yield f"rows with '{key}' in 'meta' too, which is the value kept"
    if "label" in value and group.preference is not None and answers_of(row):
        yield LABELLED_PAIR
    if _chosen_is_worse(value, group):
        yield WORSE


def _without_loss(messages: Any) -> bool:
    """True for a list of messages of which one has weight 0."""
    given = messages if isinstance(messages, list) else [messages]
    return any(isinstance(m, Mapping) and {"role", "from"} & m.keys() and m.get(WEIGHT) == 0 for m in given)


def _turns(group: Group) -> Iterator[Message]:
    yield from group.prompt.messages or ()
    for response in group.responses:
        if TURNS in response.meta:
            yield from turns_of(response)


def _chosen_is_worse(value: Mapping[str, Any], group: Group) -> bool:
    p = value.get("p_chosen")
    if isinstance(p, int | float) and p < 0.5 and shares_of(group.preference) is None and "chosen" in value:
        return True  # read as a demonstration
    scores = [value.get(name) for name in ("score_chosen", "score_rejected")]
    first, second = (float(s) if isinstance(s, int | float) else None for s in scores)
    return first is not None and second is not None and first < second
