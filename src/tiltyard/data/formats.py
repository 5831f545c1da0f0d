"""Formats of data rows, and their conversion to `Group` (token ids still empty).

| kind | fields |
|---|---|
| text | `text`, or `messages` taken as a document |
| demonstrations | `prompt` + `completion` (or `chosen`, for the pairs of comparisons), or `messages` that end with an answer |
| comparisons | `prompt` + `chosen` + `rejected`; `chosen` + `rejected` as transcripts or message lists; `prompt` + `responses` + `scores`, `ranks` and/or `shares`; a pair may have `p_chosen` |
| labelled | `prompt` + `completion` + `label` (true: good); `prompt` + `responses` + `labels`; a pair: chosen is good |
| prompts | `prompt`, or `messages` that end with a question |

A prompt is a string (one user turn) or a list of `{"role", "content"}`. `id`, `meta` and any other field are kept in
`Prompt.meta`. A bad row raises DataError with its `file:line`; nothing is repaired silently.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from tiltyard.data.fields import (
    empty,
    ends_with_answer,
    ends_with_question,
    filled,
    flag,
    lacks,
    message_list,
    messages_field,
    numbers,
    probability,
    shares_field,
    starts_with_answer,
    typed,
)
from tiltyard.data.read import Row
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.types import Group, Message, Preference, Prompt, Response, pairs_of

Kind = Literal["text", "demonstrations", "comparisons", "labelled", "prompts"]
KINDS: tuple[Kind, ...] = ("text", "demonstrations", "comparisons", "labelled", "prompts")
MAX_RESPONSES = 9
TURNS = "turns"  # key of Response.meta: the turns of an answer that is more than one turn

_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")


def parse_row(row: Row, kind: Kind) -> Group:
    """Parses a row as a Group without ids; `origin` is the row's `where`. A row of kind `prompts` has no responses.

    An answer of several turns keeps them in `Response.meta["turns"]`; its `text` is the assistant's turns joined.

    Raises:
        DataError: a field is missing, has the wrong type or an impossible value.
    """
    parsers = {
        "text": _text,
        "demonstrations": _demonstration,
        "comparisons": _comparison,
        "labelled": _labelled,
        "prompts": _prompt_only,
    }
    if kind not in parsers:
        raise ConfigError("unknown kind of data", got=kind, expected=", ".join(KINDS), fix=nearest(kind, KINDS))
    return parsers[kind](row)


# ---------------------------------------------------------------------------------------------- the kinds of data


def _text(row: Row) -> Group:
    if "text" in row.value:
        response = Response(text=filled(row, "text"))
        used, content = ("text",), response.text
    elif "messages" in row.value:
        turns = messages_field(row, "messages")
        used, content = ("messages",), _canonical(turns)
        response = Response(text="\n\n".join(m.content for m in turns), meta={TURNS: _plain(turns)})
    else:
        raise lacks(row, "text", "text")
    prompt = _with_meta(row, Prompt(text="", id=_digest(content)), used)
    return Group(prompt, (response,), origin=row.where)


def _demonstration(row: Row) -> Group:
    if "prompt" in row.value or "completion" in row.value:
        messages = _prompt_field(row, "demonstrations")
        key = "completion" if "completion" in row.value else "chosen"
        if key not in row.value:
            raise lacks(row, "completion", "demonstrations")
        answer = _answer_field(row, key, messages)
        used = ("prompt", "completion") if key == "completion" else ("prompt", "chosen", "rejected", "p_chosen")
        return _group(row, messages, (answer,), used)
    if "messages" not in row.value:
        raise lacks(row, "prompt", "demonstrations")
    turns = messages_field(row, "messages")
    ends_with_answer(row, "messages", turns)
    first = next(i for i, turn in enumerate(turns) if turn.role == "assistant")
    if first == 0:
        raise starts_with_answer(row, "messages")
    return _group(row, turns[:first], (_answer(turns[first:]),), ("messages",))


def _comparison(row: Row) -> Group:
    value = row.value
    if "responses" in value:
        return _ranking(row)
    for name in ("chosen", "rejected"):
        if name not in value:
            raise lacks(row, name, "comparisons", _no_comparison(value))
    used = ("prompt", "chosen", "rejected", "p_chosen")
    p = probability(row, "p_chosen")
    shares = None if p is None else (p, 1 - p)
    preference = Preference(ranks=(1, 2)) if shares is None else Preference(shares=shares)
    if value.get("prompt") is not None:
        messages = _prompt_field(row, "comparisons")
        answers = tuple(_answer_field(row, name, messages) for name in ("chosen", "rejected"))
        return _group(row, messages, answers, used, preference=preference)
    conversations = [_conversation(row, name) for name in ("chosen", "rejected")]
    shared = _shared_prompt(row, *conversations)
    answers = tuple(_answer(turns[shared:]) for turns in conversations)
    return _group(row, conversations[0][:shared], answers, used, preference=preference)


def _no_comparison(value: Mapping[str, Any]) -> str:
    """Returns advice for a row that is no comparison, if its fields identify another kind; otherwise ""."""
    if "label" in value or "labels" in value:
        return "labelled answers are read by kto and click (without good_from); a comparison has two answers"
    if "completion" in value:
        return "a single answer is a demonstration, which sft and spin read; a comparison has two answers"
    return ""


def _answers(row: Row, kind: str, least: int) -> tuple[tuple[Message, ...], tuple[Response, ...]]:
    """Parses the prompt and the responses of field `responses`."""
    messages = _prompt_field(row, kind)
    responses = typed(row, "responses", list, f"a list of {least} to {MAX_RESPONSES} answers")
    count = len(responses)
    if not least <= count <= MAX_RESPONSES:
        raise DataError(
            f"a ranking with {count} response{'' if count == 1 else 's'}",
            where=row.where,
            got=f"{count} in field 'responses'",
            expected=f"{least} to {MAX_RESPONSES}",
            fix="a single answer is a demonstration (prompt, completion)" if count == 1 else "split or shorten the row",
        )
    return messages, tuple(_answer_value(row, f"responses[{i}]", v, messages) for i, v in enumerate(responses))


def _ranking(row: Row) -> Group:
    messages, answers = _answers(row, "comparisons", 2)
    count = len(answers)
    scores = numbers(row, "scores", count)
    ranks = numbers(row, "ranks", count)
    shares = shares_field(row, count)
    if scores is None and ranks is None and shares is None:
        fix = _no_comparison(row.value) or "give scores (higher is better), ranks (1 is best) or shares"
        raise lacks(row, "scores", "comparisons", fix)
    preference = Preference(ratings=scores) if shares is None else Preference(shares=shares)
    if ranks is not None:
        if any(rank != int(rank) or rank < 1 for rank in ranks):
            raise DataError(
                "field 'ranks' must hold whole numbers from 1",
                where=row.where,
                got=row.value["ranks"],
                expected="1 for the best, equal numbers for ties",
                fix="put real-valued judgements in 'scores' (higher is better)",
            )
        hard = tuple(int(rank) for rank in ranks)
        if shares is not None and any(
            shares[p.better] < shares[p.worse] for p in pairs_of(Preference(ranks=hard)) if p.p > 0.5
        ):
            raise DataError(
                "ranks and shares contradict each other",
                where=row.where,
                got=f"ranks {list(hard)}, shares {list(shares)}",
                expected="the response with the better rank to have no smaller share",
                fix="give one of the two",
            )
        preference = preference if shares is not None else Preference(ranks=hard)
    used = ("prompt", "responses", "scores", "ranks", "shares")
    return _group(row, messages, answers, used, scores=scores, preference=preference)


def _labelled(row: Row) -> Group:
    """Parses responses that are labelled good or bad: single ones, several to one prompt, or a pair."""
    value = row.value
    if "label" in value or "completion" in value:
        demonstration = _demonstration(row)
        if "label" not in value:
            raise lacks(row, "label", "labelled")
        meta = {k: v for k, v in demonstration.prompt.meta.items() if k != "label"}
        preference = Preference(labels=(flag(row, "label", value["label"]),))
        return replace(demonstration, prompt=replace(demonstration.prompt, meta=meta), preference=preference)
    if "labels" in value:
        messages, answers = _answers(row, "labelled", 1)
        labels = typed(row, "labels", list, "a list of true and false")
        numbers(Row({"labels": [float(bool(x)) for x in labels]}, row.where), "labels", len(answers))
        preference = Preference(labels=tuple(flag(row, "labels", label) for label in labels))
        return _group(row, messages, answers, ("prompt", "responses", "labels"), preference=preference)
    if "responses" in value:
        fix = "a ranking shows which answer is better, not which is good: set good_from=best, or a number for scores"
        raise lacks(row, "labels", "labelled", fix)
    if "chosen" not in value:
        raise lacks(row, "label", "labelled")
    if value.get("p_chosen") is not None:
        raise DataError(
            "a soft label is neither good nor bad",
            where=row.where,
            got=f"p_chosen = {value['p_chosen']}",
            expected="a pair whose 'chosen' is good and whose 'rejected' is bad",
            fix="leave 'p_chosen' out where the label is certain, or use dpo, ipo or reward, which learn soft labels",
        )
    return replace(_comparison(row), preference=Preference(labels=(True, False)))


def _prompt_only(row: Row) -> Group:
    if "prompt" in row.value or "messages" not in row.value:
        return _group(row, _prompt_field(row, "prompts"), (), ("prompt",))
    turns = messages_field(row, "messages")
    ends_with_question(row, "messages", turns)
    return _group(row, turns, (), ("messages",))


# ---------------------------------------------------------------------------------------------- prompts and answers


def _prompt_field(row: Row, kind: str) -> tuple[Message, ...]:
    value = row.value.get("prompt")
    if value is None:
        raise lacks(row, "prompt", kind)
    if isinstance(value, str):
        return (Message("user", filled(row, "prompt")),)
    turns = messages_field(row, "prompt")
    ends_with_question(row, "prompt", turns)
    return turns


def _answer_field(row: Row, name: str, prompt: tuple[Message, ...]) -> Response:
    return _answer_value(row, name, row.value[name], prompt)


def _answer_value(row: Row, name: str, value: Any, prompt: tuple[Message, ...]) -> Response:
    """Parses a response given as a string, or as messages with or without the prompt in front."""
    if isinstance(value, str):
        if not value.strip():
            raise empty(row, name)
        return Response(text=value)
    if isinstance(value, Mapping):
        value = [value]
    turns = message_list(row, name, value)
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    ends_with_answer(row, name, turns)
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
    """Parses a whole conversation: a message list, or a transcript with Human: and Assistant: turns."""
    value = row.value[name]
    turns = _transcript(row, name, value) if isinstance(value, str) else messages_field(row, name)
    ends_with_answer(row, name, turns)
    return turns


def _transcript(row: Row, name: str, text: str) -> tuple[Message, ...]:
    marks = list(_HH_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise lacks(
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
        raise empty(row, name)
    return tuple(turns)


def _shared_prompt(row: Row, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
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


# ---------------------------------------------------------------------------------------------- ids and meta


def _group(
    row: Row,
    messages: tuple[Message, ...],
    responses: tuple[Response, ...],
    used: tuple[str, ...],
    *,
    scores: tuple[float, ...] | None = None,
    preference: Preference | None = None,
) -> Group:
    prompt = _with_meta(row, Prompt(messages=messages, id=_digest(_canonical(messages))), used)
    return Group(prompt, responses, scores, preference, row.where)


def _with_meta(row: Row, prompt: Prompt, used: tuple[str, ...]) -> Prompt:
    """Adds the row's own id, if any, and every field that the format did not use."""
    given = row.value.get("meta")
    if given is not None and not isinstance(given, Mapping):
        typed(row, "meta", dict, "an object")
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
