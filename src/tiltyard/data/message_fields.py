"""Further fields of conversations, checked against the chat template that renders them.

Further fields of messages (`reasoning_content`, `tool_calls`, `name`, ...), roles of other kinds (`tool`, `developer`)
and tools are given to the template. Templates ignore what they do not know, so a row is refused unless the rendering
depends on each of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiltyard.data.conversations import ROLES, WEIGHT
from tiltyard.errors import DataError
from tiltyard.types import Message

Render = Callable[[Sequence[Message], str], str]  # (turns, tools as JSON text) -> the rendering


def template_dict(turn: Message, guard: Callable[[str], str]) -> dict[str, Any]:
    """The turn as the chat template gets it: every text in it guarded, `weight` left out."""
    extra = {key: value for key, value in turn.extra.items() if key != WEIGHT} if turn.more else {}
    return {"role": turn.role, "content": guard(turn.content), **guarded(extra, guard)}


def template_tools(tools: str, guard: Callable[[str], str]) -> list[Any] | None:
    """The tools as the chat template gets them; None for none."""
    return list(guarded(json.loads(tools), guard)) if tools else None


def guarded(value: Any, guard: Callable[[str], str]) -> Any:
    """Returns a JSON value with every text in it guarded."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {key: guarded(item, guard) for key, item in value.items()}
    return [guarded(item, guard) for item in value] if isinstance(value, list) else value


def check_rendered(render: Render, turns: Sequence[Message], tools: str, where: str) -> None:
    """Checks that the template renders all that the turns have.

    Raises:
        DataError: the rendering is the same without a further field, with another role, or without the tools.
    """
    names = {key: None for turn in turns if turn.more for key in turn.extra if key != WEIGHT}
    roles = {turn.role: None for turn in turns if turn.role not in ROLES}
    if not (names or roles or tools):
        return
    whole = render(turns, tools)
    for name in names:
        if _render(render, [_without(turn, name) for turn in turns], tools) == whole:
            raise _ignored(f"field '{name}' of messages", where, f"leave '{name}' out of the messages")
    for role in roles:
        for other in ROLES:
            if _render(render, [t._replace(role=other) if t.role == role else t for t in turns], tools) == whole:
                fix = "write 'system' instead" if role == "developer" else f"leave turns of role '{role}' out"
                raise _ignored(f"role '{role}'", where, fix)
    if tools and _render(render, turns, "") == whole:
        raise _ignored("field 'tools'", where, "leave 'tools' out, or write them into the system turn")


def _without(turn: Message, name: str) -> Message:
    return Message.from_dict({k: v for k, v in turn.to_dict().items() if k != name}) if turn.more else turn


def _render(render: Render, turns: Sequence[Message], tools: str) -> str | None:
    try:
        return render(turns, tools)
    except DataError:  # the template rejects the turns without it: it knows it
        return None


def _ignored(what: str, where: str, fix: str) -> DataError:
    return DataError(
        f"the chat template does not render {what}, which would be lost",
        where=where,
        got="the same text with and without it",
        expected="a template that renders it",
        fix=f"{fix}, or set tokenizer.chat_template to one that knows it",
    )
