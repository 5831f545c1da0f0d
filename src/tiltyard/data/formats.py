"""Formats of data rows, and their conversion to `Group` (token ids still empty).

| kind | fields |
|---|---|
| text | `text`, or `messages` taken as a document |
| demonstrations | `prompt` + `completion`, or `messages` that end with an answer; of the pairs of comparisons the `chosen` |
| comparisons | `prompt` + `chosen` + `rejected` (an answer, or a list of answers each); `chosen` + `rejected` as whole conversations; `prompt` + `responses` + `scores`, `ranks` and/or `shares`; a pair may have `p_chosen`; two responses with `label` 1 or 2 (`pair_labels`) |
| labelled | `prompt` + `completion` + `label` (true: good); `prompt` + `responses` + `labels`; a pair: chosen is good |
| prompts | `prompt`, or `messages` that end with a question |

A prompt is a string (one user turn, or a transcript) or a list of messages; `system`, `history` and `tools` beside it
are read (`columns`). `id`, `meta` and any other field are kept in `Prompt.meta`. A bad row raises DataError with its
`file:line`; nothing is repaired silently.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from tiltyard.data.columns import context_of, refuse_unread
from tiltyard.data.conversations import (
    WEIGHT,
    conversation_column,
    ends_with_answer,
    ends_with_question,
    messages_field,
    starts_with_answer,
    trained,
    without_weights,
)
from tiltyard.data.fields import check_order, filled, flag, lacks, numbers, probability, shares_field, typed
from tiltyard.data.pair_labels import as_ranking
from tiltyard.data.row import Row
from tiltyard.data.turns import (
    TURNS,
    Asked,
    answer,
    answer_value,
    canonical,
    conversation,
    covered,
    digest,
    group_of,
    named_turn,
    prompt_field,
    shared_prompt,
    with_meta,
)
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.types import Group, Preference, Prompt, Response, ranks_of

Kind = Literal["text", "demonstrations", "comparisons", "labelled", "prompts"]
KINDS: tuple[Kind, ...] = ("text", "demonstrations", "comparisons", "labelled", "prompts")
MAX_RESPONSES = 9

__all__ = ["KINDS", "MAX_RESPONSES", "TURNS", "Kind", "parse_row"]


def parse_row(row: Row, kind: Kind) -> Group:
    """Parses a row as a Group without ids; `origin` is the row's `where`. A row of kind `prompts` has no responses.

    An answer of several turns keeps them in `Response.meta["turns"]`, and so does a single turn with further fields;
    its `text` is the assistant's turns joined.

    Raises:
        DataError: a field is missing, has the wrong type or an impossible value, or would be lost.
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


# ---------------------------------------------------------------------------------------------- single answers


def _text(row: Row) -> Group:
    if "text" in row.value:
        response = Response(text=filled(row, "text"))
        prompt = with_meta(row, Prompt(text="", id=digest(response.text)), ("text",))
        return Group(prompt, (response,), origin=row.where)
    name = conversation_column(row)
    if not name:
        raise lacks(row, "text", "text")
    context = context_of(row)
    turns = context.framed(row, messages_field(row, name))
    refuse_unread(row, turns)
    if any(WEIGHT in turn.extra for turn in turns):
        raise DataError(
            "a document has no turns without a loss",
            where=row.where,
            got=f"weight 0 in field '{name}'",
            expected="messages without weights",
            fix="read the rows as demonstrations, or leave the turns out",
        )
    response = Response(text="\n\n".join(m.content for m in turns), meta={TURNS: [t.to_dict() for t in turns]})
    prompt = Prompt(text="", id=digest(canonical(turns, context.tools)), tools=context.tools)
    return Group(with_meta(row, prompt, (name, *context.used)), (response,), origin=row.where)


def _demonstration(row: Row) -> Group:
    value, name = row.value, conversation_column(row)
    key = next((key for key in ("completion", "chosen") if value.get(key) is not None), "")
    if value.get("prompt") is None and name and not key:
        return _spoken(row, name)
    if name and not key:
        return _spoken(row, name, beside=prompt_field(row, "demonstrations"))
    if key == "chosen":
        if value.get("prompt") is None and "rejected" in value:
            return _first_alone(row, _comparison(row))
        if isinstance(value["chosen"], list) and len(value["chosen"]) == 1 and isinstance(value["chosen"][0], str):
            return _first_alone(row, _comparison(row))
    if "prompt" not in value and "completion" not in value:
        raise lacks(row, "prompt", "demonstrations")
    asked = prompt_field(row, "demonstrations")
    if not key:
        raise lacks(row, "completion", "demonstrations")
    used = ("prompt", "completion") if key == "completion" else ("prompt", "chosen", "rejected", "p_chosen")
    response = answer_value(row, key, value[key], asked)
    covered(row, asked, (response,))
    return group_of(row, asked, (response,), used)


def _first_alone(row: Row, pair: Group) -> Group:
    """The chosen answer of a pair as a demonstration."""
    if ranks_of(pair.preference) is None or len(pair.responses) != 2:
        raise DataError(
            "a demonstration has one answer",
            where=row.where,
            got=f"{len(pair.responses)} answers in 'chosen' and 'rejected'",
            expected="one chosen answer",
            fix="read the rows as comparisons, or write a row for each answer",
        )
    return replace(pair, responses=pair.responses[:1], preference=None)


def _spoken(row: Row, name: str, beside: Asked | None = None) -> Group:
    """A conversation as a demonstration: the response begins with the first answer that is trained on.

    Args:
        beside: field `prompt` of the same row, whose turns the conversation must hold.
    """
    context, turns = context_of(row), messages_field(row, name)
    if beside is not None:
        named_turn(row, name, turns, beside)
    ends_with_answer(row, name, turns)
    if next(turn.role for turn in turns if turn.role not in ("system", "developer")) == "assistant":
        raise starts_with_answer(row, name)
    first = next((number for number, turn in enumerate(turns) if trained(turn)), len(turns) - 1)
    own = without_weights(turns[:first])
    asked = Asked(context.framed(row, own), own, context, used=name)
    response = answer(row, name, turns[first:])
    return group_of(row, asked, (response,), ("prompt",))


def _prompt_only(row: Row) -> Group:
    name = conversation_column(row)
    if not name or row.value.get("prompt") is not None:
        asked = prompt_field(row, "prompts")
        if name and isinstance(row.value[name], list):
            turns = messages_field(row, name)
            turns = turns[: named_turn(row, name, turns, asked) + 1]
            asked = replace(asked, messages=without_weights(asked.context.framed(row, turns)))
        return group_of(row, asked, (), ("prompt",))
    turns = messages_field(row, name)
    ends_with_question(row, name, turns)
    return group_of(row, Asked.of(row, turns), (), (name,))


# ---------------------------------------------------------------------------------------------- comparisons


def _comparison(row: Row) -> Group:
    row = as_ranking(row)
    value = row.value
    judged = any(value.get(name) is not None for name in ("scores", "ranks", "shares"))
    pair = value.get("chosen") is not None and value.get("rejected") is not None
    if value.get("responses") is not None and (judged or not pair):
        return _ranking(row)
    return _pair(row)


def _pair(row: Row) -> Group:
    value = row.value
    for name in ("chosen", "rejected"):
        if name not in value:
            raise lacks(row, name, "comparisons", _no_comparison(value))
    if _answer_lists(row):
        return _listed(row)
    used = ("prompt", "chosen", "rejected", "p_chosen")
    p = probability(row, "p_chosen")
    preference = Preference(ranks=(1, 2)) if p is None else Preference(shares=(p, 1 - p))
    asked = _asked_of_pair(row)
    if asked is not None:
        answers = tuple(answer_value(row, name, value[name], asked) for name in ("chosen", "rejected"))
        covered(row, asked, answers)
        return group_of(row, asked, answers, used, preference=preference)
    context = context_of(row)
    chosen, rejected = (conversation(row, name, context) for name in ("chosen", "rejected"))
    shared = shared_prompt(row, chosen, rejected)
    asked = Asked(without_weights(chosen[:shared]), chosen[:shared], context)
    answers = tuple(answer(row, name, turns[shared:]) for name, turns in (("chosen", chosen), ("rejected", rejected)))
    covered(row, asked, answers)
    return group_of(row, asked, answers, used, preference=preference)


def _asked_of_pair(row: Row) -> Asked | None:
    """The prompt of `chosen` and `rejected`; None where they are whole conversations."""
    if row.value.get("prompt") is not None:
        return prompt_field(row, "comparisons")
    name = conversation_column(row)
    if name and isinstance(row.value[name], list):
        turns = messages_field(row, name)
        if turns[-1].role != "assistant":
            return Asked.of(row, turns, name)
    return None


def _no_comparison(value: Mapping[str, Any]) -> str:
    """Returns advice for a row that is no comparison, if its fields identify another kind; otherwise ""."""
    if "label" in value or "labels" in value:
        return "labelled answers are read by kto and click (without good_from); a comparison has two answers"
    if "completion" in value:
        return "a single answer is a demonstration, which sft and spin read; a comparison has two answers"
    return ""


def _answer_lists(row: Row) -> bool:
    """True where `chosen` or `rejected` is a list of answers: of texts, or of message lists."""
    values = [row.value[name] for name in ("chosen", "rejected")]
    return any(isinstance(v, list) and v and all(isinstance(item, str | list) for item in v) for v in values)


def _listed(row: Row) -> Group:
    """A ranking of all chosen answers (rank 1) above all rejected ones (rank 2)."""
    asked = prompt_field(row, "comparisons")
    given: list[tuple[str, Any, int]] = []
    for rank, name in enumerate(("chosen", "rejected"), start=1):
        value = row.value[name]
        several = isinstance(value, list) and not all(isinstance(item, Mapping) for item in value)
        items = enumerate(value) if several else [("", value)]
        given += [(name if number == "" else f"{name}[{number}]", item, rank) for number, item in items]
    if row.value.get("p_chosen") is not None:
        raise DataError(
            "'p_chosen' is of two answers",
            where=row.where,
            got=f"{len(given)} answers",
            expected="one chosen and one rejected answer",
            fix="give 'responses' and 'shares'",
        )
    _check_count(row, len(given), "fields 'chosen' and 'rejected'")
    answers = tuple(answer_value(row, name, item, asked) for name, item, _ in given)
    covered(row, asked, answers)
    preference = Preference(ranks=tuple(rank for *_, rank in given))
    return group_of(row, asked, answers, ("prompt", "chosen", "rejected", "p_chosen"), preference=preference)


def _check_count(row: Row, count: int, where: str, least: int = 2) -> None:
    if not least <= count <= MAX_RESPONSES:
        raise DataError(
            f"a ranking with {count} response{'' if count == 1 else 's'}",
            where=row.where,
            got=f"{count} in {where}",
            expected=f"{least} to {MAX_RESPONSES}",
            fix="a single answer is a demonstration (prompt, completion)" if count == 1 else "split or shorten the row",
        )


def _answers(row: Row, kind: str, least: int) -> tuple[Asked, tuple[Response, ...]]:
    """Parses the prompt and the responses of field `responses`."""
    asked = prompt_field(row, kind)
    if row.value.get("responses") is None:
        raise lacks(row, "responses", kind)
    responses = typed(row, "responses", list, f"a list of {least} to {MAX_RESPONSES} answers")
    _check_count(row, len(responses), "field 'responses'", least)
    return asked, tuple(answer_value(row, f"responses[{i}]", v, asked) for i, v in enumerate(responses))


def _ranking(row: Row) -> Group:
    asked, answers = _answers(row, "comparisons", 2)
    count = len(answers)
    scores = numbers(row, "scores", count)
    ranks = numbers(row, "ranks", count)
    shares = shares_field(row, count)
    if scores is None and ranks is None and shares is None:
        fix = _no_comparison(row.value) or "give scores (higher is better), ranks (1 is best) or shares"
        raise lacks(row, "scores", "comparisons", fix)
    if ranks is not None and any(rank != int(rank) or rank < 1 for rank in ranks):
        raise DataError(
            "field 'ranks' must hold whole numbers from 1",
            where=row.where,
            got=row.value["ranks"],
            expected="1 for the best, equal numbers for ties",
            fix="put real-valued judgements in 'scores' (higher is better)",
        )
    check_order(row, {"ranks": ranks and tuple(-rank for rank in ranks), "shares": shares, "scores": scores})
    if shares is not None:
        preference = Preference(shares=shares)
    elif ranks is not None:
        preference = Preference(ranks=tuple(int(rank) for rank in ranks))
    else:
        preference = Preference(ratings=scores)
    _check_best(row, answers, ranks_of(preference) or ())
    covered(row, asked, answers)
    used = ("prompt", "responses", "scores", "ranks", "shares")
    return group_of(row, asked, answers, used, scores=scores, preference=preference)


def _check_best(row: Row, answers: tuple[Response, ...], ranks: tuple[int, ...]) -> None:
    """Raises a DataError where `chosen` and `rejected` beside a ranking have the opposite order."""
    places: list[int] = []
    for name in ("chosen", "rejected"):
        text = row.value.get(name)
        found = [
            k for response, k in zip(answers, ranks, strict=True) if isinstance(text, str) and response.text == text
        ]
        places += found[:1]
    if len(places) == 2 and places[0] > places[1]:
        raise DataError(
            "'chosen' and the ranking contradict each other",
            where=row.where,
            got=f"ranks {list(ranks)}, where 'chosen' has {places[0]} and 'rejected' {places[1]}",
            expected="the chosen answer ranked above the rejected one",
            fix="give one of the two",
        )


# ---------------------------------------------------------------------------------------------- labels


def _labelled(row: Row) -> Group:
    """Parses responses that are labelled good or bad: single ones, several to one prompt, or a pair."""
    value = row.value
    if "label" in value or "completion" in value:
        if value.get("completion") is None and value.get("rejected") is not None:
            raise DataError(
                "one label for two answers",
                where=row.where,
                got="fields label, chosen and rejected",
                expected="a pair (chosen is good, rejected is bad), or one answer with its label",
                fix="leave 'label' out of pairs",
            )
        demonstration = _demonstration(row)
        if "label" not in value:
            raise lacks(row, "label", "labelled")
        meta = {k: v for k, v in demonstration.prompt.meta.items() if k != "label"}
        preference = Preference(labels=(flag(row, "label", value["label"]),))
        return replace(demonstration, prompt=replace(demonstration.prompt, meta=meta), preference=preference)
    if "labels" in value:
        asked, answers = _answers(row, "labelled", 1)
        labels = typed(row, "labels", list, "a list of true and false")
        numbers(Row({"labels": [float(bool(x)) for x in labels]}, row.where), "labels", len(answers))
        preference = Preference(labels=tuple(flag(row, "labels", label) for label in labels))
        return group_of(row, asked, answers, ("prompt", "responses", "labels"), preference=preference)
    if "responses" in value and "chosen" not in value:
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
    pair = _pair(row)
    good = tuple(rank == 1 for rank in ranks_of(pair.preference) or ())
    return replace(pair, preference=Preference(labels=good))
