"""The responses to a prompt as a row of JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiltyard.types import Group, Prompt


def is_question(prompt: Prompt) -> bool:
    """True for one plain turn of a user."""
    turns = prompt.messages or ()
    return len(turns) == 1 and turns[0].role == "user" and not turns[0].more and not prompt.tools


def responses_as_json(prompt: Prompt, group: Group) -> dict[str, Any]:
    """The responses to one prompt as a JSON object; `prompt` is a text, or the messages of a conversation."""
    responses = [
        {
            "text": r.text,
            "finish": r.finish,
            "tokens": len(r.ids),
            "logp": None if r.logps is None else sum(r.logps),
        }
        for r in group.responses
    ]
    row = {key: value for key, value in prompt.to_row().items() if value}  # no id that there is none of
    if prompt.messages and is_question(prompt):
        row["prompt"] = prompt.messages[0].content
    return {**row, "responses": responses}
