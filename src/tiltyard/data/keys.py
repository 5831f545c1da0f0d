"""Equality of groups: of their prompts, their answers and their verdicts, exactly or as a reader sees them."""

from __future__ import annotations

import json
from typing import Any

from tiltyard.data.overlap import folded
from tiltyard.data.turns import TURNS
from tiltyard.types import Group, Message, Preference, Response, ranks_of


def prompt_key(group: Group) -> Any:
    """Returns what makes two groups' prompts equal: the turns, or a text; of documents the text itself."""
    prompt = group.prompt
    if prompt.messages:
        return prompt.messages
    # the prompt of a document is empty: its text may leak between splits
    return prompt.text or tuple(r.text or r.ids for r in group.responses)


def near_key(group: Group) -> Any:
    """Returns `prompt_key` without differences that a reader does not see (`overlap.folded`)."""
    key = prompt_key(group)
    if isinstance(key, str):
        return folded(key)
    return tuple(_near(one) for one in key)


def _near(one: Any) -> Any:
    if isinstance(one, Message):
        return one.role, folded(one.content), one.more
    return folded(one) if isinstance(one, str) else one


def content_key(group: Group) -> tuple[Any, Any, Any]:
    """Returns (prompt, responses, verdict); the order of the row's responses makes no difference.

    The verdict of a response is the number of better ones, its share if it has one, and its label.
    """
    answers = [answer_key(response) for response in group.responses]
    order = sorted(range(len(answers)), key=lambda i: answers[i])
    quality, preference = quality_of(group), group.preference or Preference()
    better = None if quality is None else tuple(sum(q > quality[i] for q in quality) for i in order)
    soft = [values and tuple(values[i] for i in order) for values in (preference.shares, preference.labels)]
    return prompt_key(group), tuple(answers[i] for i in order), (better, *soft)


def answer_key(response: Response) -> str:
    """Returns what makes two responses equal: the text, or the ids; of several turns all of them."""
    turns = response.meta.get(TURNS)
    return json.dumps(turns, sort_keys=True) if turns else response.text or str(response.ids)


def quality_of(group: Group) -> tuple[float, ...] | None:
    """Returns one number a response, higher is better: from the ranks, or else the scores."""
    ranks = ranks_of(group.preference)
    return group.scores if ranks is None else tuple(-float(rank) for rank in ranks)
