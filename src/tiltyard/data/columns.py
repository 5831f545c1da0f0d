"""Columns beside the prompt that are part of what the model is asked: read as turns or tools, or refused by name.

| column | read as |
|---|---|
| `system`, `system_prompt` | the system turn |
| `history` | earlier turns: a list of [question, answer], or of messages |
| `tools` | the tools that the chat template is given: a list, or its JSON text |
| images, sound, documents, a context, ... (`REFUSED`) | an error; a text that the prompt already contains is none |

Any other column stays in `Prompt.meta`. A column that holds nothing (null, an empty text or list) counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiltyard.data.conversations import message_list
from tiltyard.data.fields import typed
from tiltyard.data.row import Row
from tiltyard.errors import DataError
from tiltyard.types import Message

SYSTEM = ("system", "system_prompt")
READ = (*SYSTEM, "history", "tools")
TEXT_ONLY = "only text is supported: leave the rows out whose prompt needs it"
IN_PROMPT = "write it into 'prompt', or move it under 'meta' if the model should not see it"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), TEXT_ONLY),
    **dict.fromkeys(("context", "documents", "input", "instruction", "question", "query"), IN_PROMPT),
    "functions": "give them as 'tools', in the form that the model's chat template takes",
    "chat_template_kwargs": "set them in the chat template itself: all rows are rendered alike",
}


@dataclass(frozen=True)
class Context:
    """The turns before a row's own ones, and its tools (JSON text). `used`: the columns that they come from."""

    system: Message | None = None
    history: tuple[Message, ...] = ()
    tools: str = ""
    used: tuple[str, ...] = ()

    def framed(self, row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """Returns the row's turns with system turn and history in front.

        Raises:
            DataError: they begin with another system turn, or with one behind a history.
        """
        own = turns[0] if turns and turns[0].role == "system" else None
        if own is not None and (self.history or (self.system and self.system != own)):
            raise DataError(
                f"the conversation has a system turn beside {' and '.join(self.used)}",
                where=row.where,
                got=f"system turn {own.content[:40]!r}",
                expected="one system turn, before all others",
                fix="write the system prompt in one of the two places",
            )
        first = (self.system,) if self.system and own is None else ()
        return (*first, *self.history, *turns)


def context_of(row: Row) -> Context:
    """Reads the columns that change the prompt.

    Raises:
        DataError: one of them has a form that is not read.
    """
    given = [name for name in READ if not _nothing(row.value.get(name))]
    if not given:
        return Context()
    history = _history(row) if "history" in given else ()
    tools = _tools(row) if "tools" in given else ""
    return Context(_system(row, [name for name in SYSTEM if name in given]), history, tools, tuple(given))


def refuse_unread(row: Row, turns: Sequence[Message]) -> None:
    """Raises a DataError for a column that is known to change the prompt and is not read.

    Args:
        turns: of the whole row; a text column whose words are among them is no loss.
    """
    for name in REFUSED.keys() & row.value.keys():
        value = row.value[name]
        if _nothing(value) or (isinstance(value, str) and any(value.strip() in turn.content for turn in turns)):
            continue
        raise DataError(
            f"field '{name}' would be part of what the model is asked, and is not read",
            where=row.where,
            got=f"{type(value).__name__} {str(value)[:60]}",
            expected="'prompt' or messages that hold all that the model is asked",
            fix=REFUSED[name],
        )


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value) or str(value).isspace()


def _system(row: Row, names: list[str]) -> Message | None:
    texts = {typed(row, name, str, "a string") for name in names}
    if len(texts) > 1:
        raise DataError(
            "'system' and 'system_prompt' differ",
            where=row.where,
            got=", ".join(repr(text[:40]) for text in sorted(texts)),
            expected="one system prompt",
            fix="leave one of them out",
        )
    return Message("system", texts.pop()) if texts else None


def _history(row: Row) -> tuple[Message, ...]:
    value = typed(row, "history", list, "a list of [question, answer] or of messages")
    if all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        roles = ("user", "assistant")
        pairs = [
            {"role": role, "content": text} for turn in value for role, text in zip(roles, turn, strict=True) if text
        ]
        return message_list(row, "history", pairs)
    return message_list(row, "history", value)


def _tools(row: Row) -> str:
    value = row.value["tools"]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(
            "field 'tools' is not a list of tools",
            where=row.where,
            got=f"{type(row.value['tools']).__name__} {str(row.value['tools'])[:60]}",
            expected='[{"type": "function", "function": {"name": ...}}, ...], or its JSON text',
            fix="write 'tools' as that list",
        )
    return json.dumps(value, ensure_ascii=False, default=str) if value else ""
