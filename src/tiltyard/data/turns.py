"""The prompt and the answers of a row as turns, and the Group that is made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tiltyard.data.columns import Context, context_of, refuse_unread
from tiltyard.data.conversations import (
    SHAPE,
    WEIGHT,
    conversation_column,
    ends_with_answer,
    ends_with_question,
    is_transcript,
    message_list,
    messages_field,
    refuse_json_text,
    refuse_rendered,
    trained,
    transcript,
    without_weights,
)
from tiltyard.data.fields import empty, filled, lacks, typed
from tiltyard.data.row import Row
from tiltyard.errors import DataError
from tiltyard.types import Group, Message, Preference, Prompt, Response

TURNS = "turns"  # key of Response.meta: the turns of an answer that is more than one turn of plain text


def turns_of(response: Response) -> tuple[Message, ...]:
    """Returns the turns of a response: one of its text, unless it has turns of its own."""
    turns = response.meta.get(TURNS)
    return tuple(map(Message.from_dict, turns)) if turns else (Message("assistant", response.text),)


def turn_text(turn: Message) -> str:
    """Returns the words of a turn and its further fields, as a reader of the text alone is shown them."""
    extra = {key: value for key, value in turn.extra.items() if key != WEIGHT} if turn.more else {}
    fields = (f"{key}: {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for key, v in extra.items())
    return "\n".join(part for part in (turn.content, *fields) if part)


@dataclass(frozen=True)
class Asked:
    """The prompt of a row.

    Args:
        messages: all turns, as the model reads them. own: those of the row's prompt, without system turn and history.
        context: the columns beside it.
        strip: the answers continue a transcript, which has a space between the mark and the words.
        used: the column that the turns come from.
    """

    messages: tuple[Message, ...]
    own: tuple[Message, ...]
    context: Context
    strip: bool = False
    used: str = "prompt"

    @classmethod
    def of(cls, row: Row, turns: tuple[Message, ...], used: str = "prompt", *, strip: bool = False) -> Asked:
        """The prompt of these turns, with what the row has beside them."""
        context, turns = context_of(row), without_weights(turns)
        return cls(context.framed(row, turns), turns, context, strip, used)


def prompt_field(row: Row, kind: str) -> Asked:
    """Parses field `prompt`: a string, a transcript or a list of messages."""
    value = row.value.get("prompt")
    if value is None:
        raise lacks(row, "prompt", kind)
    if not isinstance(value, str):
        turns = messages_field(row, "prompt")
        ends_with_question(row, "prompt", turns)
        return Asked.of(row, turns)
    text = filled(row, "prompt")
    refuse_json_text(row, "prompt", text)
    if is_transcript(text):
        turns = transcript(row, "prompt", text, open_end=True)
        ends_with_question(row, "prompt", turns)
        return Asked.of(row, turns, strip=True)
    refuse_rendered(row, "prompt", text)
    return Asked.of(row, (Message("user", text),))


def answer_value(row: Row, name: str, value: Any, asked: Asked) -> Response:
    """Parses a response given as a string, or as messages or a transcript with or without the prompt in front."""
    if isinstance(value, str):
        if not value.strip():
            raise empty(row, name)
        refuse_json_text(row, name, value)
        if not is_transcript(value, answer=True):
            return Response(text=value.strip() if asked.strip else value)
        turns = transcript(row, name, value)
    else:
        turns = message_list(row, name, [value] if isinstance(value, Mapping) else value)
    for prefix in (asked.messages, asked.own):
        if without_weights(turns[: len(prefix)]) == prefix:
            turns = turns[len(prefix) :]
            break
    ends_with_answer(row, name, turns)
    if turns[0].role != "assistant":
        raise DataError(
            f"field '{name}' does not begin with the answer",
            where=row.where,
            got=f"first turn is {turns[0].role}: {turns[0].content[:60]!r}",
            expected="an assistant turn, or the prompt's turns followed by one",
            fix="make its first turns equal to 'prompt', or leave 'prompt' out",
        )
    return answer(row, name, turns)


def answer(row: Row, name: str, turns: Sequence[Message]) -> Response:
    """Returns the turns from an answer on as a response.

    Raises:
        DataError: none of them has a loss.
    """
    if not any(map(trained, turns)):
        raise DataError(
            f"no turn of field '{name}' is trained on",
            where=row.where,
            got="weight 0 on every answer",
            expected="an assistant's turn without weight 0",
            fix="delete this row, or give the turn to learn weight 1",
        )
    if len(turns) == 1 and not turns[0].more:
        return Response(text=turns[0].content)
    spoken = [turn for turn in turns if turn.role == "assistant"]
    text = "\n\n".join(turn.content for turn in spoken if turn.content) or "\n\n".join(map(turn_text, spoken))
    return Response(text=text, meta={TURNS: [turn.to_dict() for turn in turns]})


def conversation(row: Row, name: str, context: Context) -> tuple[Message, ...]:
    """Parses a whole conversation: a message list, or a transcript with Human: and Assistant: turns."""
    value = row.value[name]
    if isinstance(value, str):
        refuse_json_text(row, name, value)
        turns = transcript(row, name, value)
    else:
        turns = messages_field(row, name)
    ends_with_answer(row, name, turns)
    return context.framed(row, turns)


def shared_prompt(row: Row, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """Counts the first turns that both share, such that both continue with an assistant turn."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # equal answers share everything: go back to where the last answer begins
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared > 0 and not chosen[shared].role == rejected[shared].role == "assistant":
        shared -= 1
    if shared == 0:
        raise DataError(
            "'chosen' and 'rejected' share no prompt",
            where=row.where,
            got=f"they begin with {chosen[0].content[:40]!r} and {rejected[0].content[:40]!r}",
            expected="the same first turns, then two answers",
            fix="give the shared conversation in field 'prompt'",
        )
    return shared


# ---------------------------------------------------------------------------------- a conversation beside the fields


def named_turn(row: Row, name: str, turns: Sequence[Message], asked: Asked) -> int:
    """Returns the index of the turn of conversation `name` that field `prompt` ends with.

    Raises:
        DataError: the conversation does not hold the prompt's turns.
    """
    words = [turn.content.strip() for turn in asked.own]
    for last, turn in enumerate(turns):
        before = [t.content.strip() for t in turns[: last + 1]]
        if turn.role != "assistant" and before[len(before) - len(words) :] == words:
            return last
    raise _differ(row, name, f"prompt {words[-1][:60]!r} is no turn of '{name}'")


def covered(row: Row, asked: Asked, responses: Sequence[Response]) -> None:
    """Raises a DataError where a conversation column beside prompt and answers holds turns that they do not."""
    name = conversation_column(row)
    if not name or name == asked.used or not isinstance(row.value[name], list):
        return
    known = {turn.content.strip() for turn in asked.messages}
    known |= {turn.content.strip() for response in responses for turn in turns_of(response)}
    for turn in messages_field(row, name):
        if turn.content.strip() not in known:
            raise _differ(row, name, f"the {turn.role} turn {turn.content[:60]!r} is in '{name}' alone")


def _differ(row: Row, name: str, got: str) -> DataError:
    return DataError(
        f"'prompt' and '{name}' are of different conversations",
        where=row.where,
        got=got,
        expected=f"a prompt that is part of {name}, or one of the two",
        fix=f"leave out the one that should not be read, or put it under 'meta'; messages are {SHAPE}",
    )


# ---------------------------------------------------------------------------------------------- ids and meta


def group_of(
    row: Row,
    asked: Asked,
    responses: tuple[Response, ...],
    used: tuple[str, ...],
    *,
    scores: tuple[float, ...] | None = None,
    preference: Preference | None = None,
) -> Group:
    """Makes the Group of a row; its prompt keeps the fields that nothing used.

    Raises:
        DataError: a field that changes the prompt was not read.
    """
    refuse_unread(row, (*asked.messages, *(turn for response in responses for turn in turns_of(response))))
    tools = asked.context.tools
    prompt = Prompt(messages=asked.messages, id=digest(canonical(asked.messages, tools)), tools=tools)
    prompt = with_meta(row, prompt, (*used, asked.used, *asked.context.used))
    return Group(prompt, responses, scores, preference, row.where)


def with_meta(row: Row, prompt: Prompt, used: tuple[str, ...]) -> Prompt:
    """Adds the row's own id, if any, and every field that the format did not use.

    Of a name in both the row and its `meta`, the value in `meta` is kept (rows of stages carry earlier rows' fields
    there); where they differ, the reports of data count it.
    """
    given = {} if row.value.get("meta") is None else typed(row, "meta", dict, "an object")
    meta = {key: value for key, value in row.value.items() if key not in (*used, "id", "meta")}
    meta.update(given)
    name = row.value.get("id")
    return replace(prompt, id=prompt.id if name is None else str(name), meta=meta)


def canonical(turns: Sequence[Message], tools: str = "") -> str:
    """Returns the text that a prompt's id is the hash of."""
    return json.dumps([turn.to_list() for turn in turns], ensure_ascii=False) + tools


def digest(content: str) -> str:
    """Returns 16 hex digits of the content's SHA-256."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
