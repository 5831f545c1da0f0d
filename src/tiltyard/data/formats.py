"""What the rows of preference data look like, and how each becomes a `Group` (token ids still empty).

| kind | fields |
|---|---|
| text | `text`, or `messages` taken as a document |
| demonstrations | `prompt` + `completion`, or `messages` that end with an answer |
| comparisons | `prompt` + `chosen` + `rejected`; `chosen` + `rejected` as transcripts or message lists; `prompt` + `responses` + `scores` and/or `ranks` |
| prompts | `prompt`, or `messages` that end with a question |

A prompt is a string (one user turn) or a list of `{"role", "content"}`. `id`, `meta` and any other field travel in
`Prompt.meta`. A bad row raises DataError with its `file:line`; nothing is repaired silently.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tiltyard.data.read import Row
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.types import Group, Message, Prompt, Response

Kind = Literal["text", "demonstrations", "comparisons", "prompts"]
KINDS: tuple[Kind, ...] = ("text", "demonstrations", "comparisons", "prompts")
ROLES = ("system", "user", "assistant")
MAX_RESPONSES = 9
TURNS = "turns"  # key of Response.meta: the turns of an answer that is more than one turn

_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_EXAMPLES: dict[str, str] = {
    "text": '{"text": "..."} or {"messages": [...]}',
    "demonstrations": '{"prompt": "...", "completion": "..."} or {"messages": [...]}',
    "comparisons": '{"prompt": "...", "chosen": "...", "rejected": "..."} '
    'or {"prompt": "...", "responses": ["...", "..."], "scores": [1, 0]}',
    "prompts": '{"prompt": "..."} or {"messages": [...]}',
}


def parse_row(row: Row, kind: Kind) -> Group:
    """One row as a Group without ids; `origin` is the row's place. A row of kind `prompts` has no responses.

    An answer of several turns keeps them in `Response.meta["turns"]`; its `text` is the assistant's turns joined.

    Raises:
        DataError: a field is missing, has the wrong type or an impossible value.
    """
    parsers = {
        "text": _text,
        "demonstrations": _demonstration,
        "comparisons": _comparison,
        "prompts": _prompt_only,
    }
    if kind not in parsers:
        raise ConfigError("unknown kind of data", got=kind, expected=", ".join(KINDS), fix=nearest(kind, KINDS))
    return parsers[kind](row)


# ---------------------------------------------------------------------------------------------- the four kinds


def _text(row: Row) -> Group:
    if "text" in row.value:
        response = Response(text=_filled(row, "text"))
        used, content = ("text",), response.text
    elif "messages" in row.value:
        turns = _messages(row, "messages")
        response, used, content = _answer(turns), ("messages",), _canonical(turns)
        # a document keeps all its turns, also when there is just one
        response = Response(text="\n\n".join(m.content for m in turns), meta={TURNS: _plain(turns)})
    else:
        raise _lacks(row, "text", "text")
    prompt = _with_meta(row, Prompt(text="", id=_digest(content)), used)
    return Group(prompt, (response,), origin=row.where)


def _demonstration(row: Row) -> Group:
    if "prompt" in row.value or "completion" in row.value:
        messages = _prompt_field(row, "demonstrations")
        if "completion" not in row.value:
            raise _lacks(row, "completion", "demonstrations")
        answer = _answer_field(row, "completion", messages)
        return _group(row, messages, (answer,), ("prompt", "completion"))
    if "messages" not in row.value:
        raise _lacks(row, "prompt", "demonstrations")
    turns = _messages(row, "messages")
    _ends_with_answer(row, "messages", turns)
    first = next(i for i, turn in enumerate(turns) if turn.role == "assistant")
    if first == 0:
        raise _starts_with_answer(row, "messages")
    return _group(row, turns[:first], (_answer(turns[first:]),), ("messages",))


def _comparison(row: Row) -> Group:
    value = row.value
    if "responses" in value:
        return _ranking(row)
    for name in ("chosen", "rejected"):
        if name not in value:
            raise _lacks(row, name, "comparisons")
    used = ("prompt", "chosen", "rejected")
    if value.get("prompt") is not None:
        messages = _prompt_field(row, "comparisons")
        answers = tuple(_answer_field(row, name, messages) for name in ("chosen", "rejected"))
        return _group(row, messages, answers, used, ranks=(1, 2))
    conversations = [_conversation(row, name) for name in ("chosen", "rejected")]
    shared = _shared_prompt(row, *conversations)
    answers = tuple(_answer(turns[shared:]) for turns in conversations)
    return _group(row, conversations[0][:shared], answers, used, ranks=(1, 2))


def _ranking(row: Row) -> Group:
    messages = _prompt_field(row, "comparisons")
    responses = _field(row, "responses", list, "a list of 2 to 9 answers")
    count = len(responses)
    if not 2 <= count <= MAX_RESPONSES:
        raise DataError(
            f"a ranking with {count} response{'' if count == 1 else 's'}",
            where=row.where,
            got=f"{count} in field 'responses'",
            expected=f"2 to {MAX_RESPONSES}",
            fix="a single answer is a demonstration (prompt, completion)" if count == 1 else "split or shorten the row",
        )
    answers = tuple(_answer_value(row, f"responses[{i}]", value, messages) for i, value in enumerate(responses))
    scores = _numbers(row, "scores", count)
    ranks = _numbers(row, "ranks", count)
    if scores is None and ranks is None:
        raise _lacks(row, "scores", "comparisons", "give scores (higher is better) or ranks (1 is best)")
    whole = None
    if ranks is not None:
        if any(rank != int(rank) or rank < 1 for rank in ranks):
            raise DataError(
                "field 'ranks' must hold whole numbers from 1",
                where=row.where,
                got=row.value["ranks"],
                expected="1 for the best, equal numbers for ties",
                fix="put real-valued judgements in 'scores' (higher is better)",
            )
        whole = tuple(int(rank) for rank in ranks)
    return _group(row, messages, answers, ("prompt", "responses", "scores", "ranks"), scores=scores, ranks=whole)


def _prompt_only(row: Row) -> Group:
    if "prompt" in row.value or "messages" not in row.value:
        return _group(row, _prompt_field(row, "prompts"), (), ("prompt",))
    turns = _messages(row, "messages")
    _ends_with_question(row, "messages", turns)
    return _group(row, turns, (), ("messages",))


# ---------------------------------------------------------------------------------------------- prompts and answers


def _prompt_field(row: Row, kind: str) -> tuple[Message, ...]:
    value = row.value.get("prompt")
    if value is None:
        raise _lacks(row, "prompt", kind)
    if isinstance(value, str):
        return (Message("user", _filled(row, "prompt")),)
    turns = _messages(row, "prompt")
    _ends_with_question(row, "prompt", turns)
    return turns


def _answer_field(row: Row, name: str, prompt: tuple[Message, ...]) -> Response:
    return _answer_value(row, name, row.value[name], prompt)


def _answer_value(row: Row, name: str, value: Any, prompt: tuple[Message, ...]) -> Response:
    """An answer given as a string, or as messages with or without the prompt in front."""
    if isinstance(value, str):
        if not value.strip():
            raise _empty(row, name)
        return Response(text=value)
    if isinstance(value, Mapping):
        value = [value]
    turns = _message_list(row, name, value)
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    _ends_with_answer(row, name, turns)
    if turns[0].role != "assistant":
        raise DataError(
            f"field '{name}' does not begin with the answer",
            where=row.where,
            got=f"first turn is {turns[0].role}: {turns[0].content[:60]!r}",
            expected="an assistant turn, or the prompt's turns followed by one",
            fix="make its first turns equal to 'prompt', or leave 'prompt' out",
        )
    return _answer(turns)


def _answer(turns: Sequence[Message]) -> Response:
    if len(turns) == 1:
        return Response(text=turns[0].content)
    text = "\n\n".join(turn.content for turn in turns if turn.role == "assistant")
    return Response(text=text, meta={TURNS: _plain(turns)})


def _conversation(row: Row, name: str) -> tuple[Message, ...]:
    """A whole conversation: a message list, or a transcript with Human: and Assistant: turns."""
    value = row.value[name]
    turns = _transcript(row, name, value) if isinstance(value, str) else _messages(row, name)
    _ends_with_answer(row, name, turns)
    return turns


def _transcript(row: Row, name: str, text: str) -> tuple[Message, ...]:
    marks = list(_HH_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise _lacks(
            row,
            "prompt",
            "comparisons",
            f"without a prompt '{name}' must be messages or a '\\n\\nHuman: ...' transcript",
        )
    turns: list[Message] = []
    for mark, end in zip(marks, [m.start() for m in marks[1:]] + [len(text)], strict=True):
        turn = Message("user" if mark.group(1) == "Human" else "assistant", text[mark.end() : end].strip())
        if turns and turns[-1].role == turn.role:  # such transcripts do hold two Human turns in a row
            turn = Message(turn.role, f"{turns.pop().content}\n\n{turn.content}".strip())
        turns.append(turn)
    if any(not turn.content for turn in turns):
        raise _empty(row, name)
    return tuple(turns)


def _shared_prompt(row: Row, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """How many first turns both share, so that both go on with an assistant turn."""
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


# ---------------------------------------------------------------------------------------------- fields


def _field(row: Row, name: str, kind: type, expected: str) -> Any:
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


def _filled(row: Row, name: str) -> str:
    text: str = _field(row, name, str, "a string" if name == "text" else "a string or a list of messages")
    if not text.strip():
        raise _empty(row, name)
    return text


def _numbers(row: Row, name: str, count: int) -> tuple[float, ...] | None:
    if row.value.get(name) is None:
        return None
    values = _field(row, name, list, f"a list of {count} numbers")
    if len(values) != count:
        raise DataError(
            f"'{name}' and 'responses' differ in length",
            where=row.where,
            got=f"{len(values)} {name} for {count} responses",
            expected=f"{count} {name}",
            fix=f"give one of '{name}' for each response, in the same order",
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"field '{name}' holds something that is not a finite number",
                where=row.where,
                got=value if value is not None else "null",
                expected="finite numbers",
                fix="leave out the responses that nobody judged",
            )
    return tuple(float(value) for value in values)


def _messages(row: Row, name: str) -> tuple[Message, ...]:
    return _message_list(row, name, row.value[name])


def _message_list(row: Row, name: str, value: Any) -> tuple[Message, ...]:
    shape = '[{"role": "user", "content": "..."}, ...]'
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else f"{type(value).__name__} {str(value)[:60]}"
        raise DataError(
            f"field '{name}' is not a list of messages", where=row.where, got=got, expected=shape, fix=f"write {shape}"
        )
    turns = []
    for number, item in enumerate(value):
        place = f"{name}[{number}]"
        if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
            raise DataError(
                f"{place} is not a message with a role",
                where=row.where,
                got=str(item)[:80],
                expected='{"role": "user", "content": "..."}',
                fix="rename the fields (e.g. from 'from' and 'value') to 'role' and 'content'",
            )
        if item["role"] not in ROLES:
            raise DataError(
                f"unknown role in {place}",
                where=row.where,
                got=item["role"],
                expected=", ".join(ROLES),
                fix=nearest(item["role"], ROLES),
            )
        if not isinstance(item.get("content"), str):
            raise DataError(
                f"the content of {place} is not a string",
                where=row.where,
                got=f"{type(item.get('content')).__name__} {str(item.get('content'))[:60]}",
                expected="a string",
                fix="only text is supported: join the text parts, leave images and tool calls out",
            )
        if not item["content"].strip() and item["role"] != "system":
            raise _empty(row, place)
        turns.append(Message(item["role"], item["content"]))
    return tuple(turns)


# ---------------------------------------------------------------------------------------------- errors, ids, meta


def _ends_with_answer(row: Row, name: str, turns: Sequence[Message]) -> None:
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            f"field '{name}' does not end with an answer",
            where=row.where,
            got=f"last turn is {turns[-1].role}" if turns else "no turn after the prompt",
            expected="last turn is assistant",
            fix="cut the conversation after the assistant's last turn",
        )


def _ends_with_question(row: Row, name: str, turns: Sequence[Message]) -> None:
    if turns[-1].role == "assistant":
        raise DataError(
            f"field '{name}' does not end with a question",
            where=row.where,
            got="last turn is assistant",
            expected="last turn is user",
            fix="take the assistant's last turn away, or use the rows as demonstrations",
        )


def _starts_with_answer(row: Row, name: str) -> DataError:
    return DataError(
        f"field '{name}' begins with the assistant",
        where=row.where,
        got="first turn is assistant",
        expected="a user turn first (a system turn may precede it)",
        fix="take the assistant's first turn away, or put the question in front of it",
    )


def _lacks(row: Row, name: str, kind: str, fix: str = "") -> DataError:
    names = [str(key) for key in row.value]
    close = nearest(name, names) if names else ""
    hint = f"{close} Rename it to '{name}'" if close.startswith("did you mean") else f"add field '{name}'"
    return DataError(
        f"field '{name}' is missing or null",
        where=row.where,
        got="fields " + (", ".join(names) or "(none)"),
        expected=_EXAMPLES[kind],
        fix=fix or f"{hint}; this file is read as {kind}",
    )


def _empty(row: Row, name: str) -> DataError:
    return DataError(
        f"field '{name}' is empty",
        where=row.where,
        got="no text",
        expected="text that is not only white space",
        fix="fill it or delete this row",
    )


def _group(
    row: Row,
    messages: tuple[Message, ...],
    responses: tuple[Response, ...],
    used: tuple[str, ...],
    *,
    scores: tuple[float, ...] | None = None,
    ranks: tuple[int, ...] | None = None,
) -> Group:
    prompt = _with_meta(row, Prompt(messages=messages, id=_digest(_canonical(messages))), used)
    return Group(prompt, responses, scores=scores, ranks=ranks, origin=row.where)


def _with_meta(row: Row, prompt: Prompt, used: tuple[str, ...]) -> Prompt:
    """The prompt with the row's own id, if any, and every field that the format did not use."""
    given = row.value.get("meta")
    if given is not None and not isinstance(given, Mapping):
        _field(row, "meta", dict, "an object")
    meta = {key: value for key, value in row.value.items() if key not in (*used, "id", "meta")}
    meta.update(given or {})
    name = row.value.get("id")
    return Prompt(prompt.messages, prompt.text, prompt.id if name is None else str(name), meta)


def _plain(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _canonical(turns: Sequence[Message]) -> str:
    return json.dumps([list(turn) for turn in turns], ensure_ascii=False)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
