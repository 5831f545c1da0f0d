"""Rows of other tools that hold judgements, rewritten as rows of comparisons: one for each judgement.

| form | seen by | read as |
|---|---|---|
| battles (chatbot arena, MT-bench) | `model_a`, `model_b` and `winner`, or `winner_model_a` and its kin | `prompt`, two `responses`, `ranks`, `models` |
| UltraFeedback | `instruction` and `completions` with `response` each | `prompt`, `responses`, `scores`, `models` |
| Argilla records | `fields` and `responses`, nested or flat | a row for each annotator (`annotation_tools`) |
| Label Studio tasks | `data` and `annotations` | a row for each annotation (`annotation_tools`) |

A row that is none of these stays as it is. `models` names who wrote each response; `judgement` holds what else is known
of the verdict (annotator, when, ...). "Both bad" has the ranks of a tie and `judgement.reason` "both_bad".
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tiltyard.data.annotation_tools import argilla_rows, is_argilla, is_label_studio, label_studio_rows
from tiltyard.data.row import Row
from tiltyard.errors import DataError

RANKS_OF_WINNER: Mapping[str, tuple[list[int], str]] = {
    "model_a": ([1, 2], ""),
    "model_b": ([2, 1], ""),
    "tie": ([1, 1], ""),
    **dict.fromkeys(
        ("tie (bothbad)", "tie(bothbad)", "tie (both bad)", "both_bad", "bothbad", "both bad"), ([1, 1], "both_bad")
    ),
}
WINNERS_55K = ("winner_model_a", "winner_model_b", "winner_tie")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
ORDERED = ("anony", "evaluation_session_id", "evaluation_order")  # a column of these: a was shown on the left


def own_rows(row: Row) -> list[Row]:
    """Returns the rows of comparisons that a row of another tool holds; [row] of any other.

    Raises:
        DataError: it is one of another tool and cannot be read, or holds no judgement.
    """
    try:
        return _rewritten(row)
    except DataError:
        raise
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            "a record of judgements has another form than its tool writes",
            where=row.where,
            got=f"fields {', '.join(map(str, row.value))}; {type(error).__name__}: {error}",
            expected="a battle, a row of UltraFeedback, a record of Argilla or a task of Label Studio",
            fix="export it again, or write it as a row of comparisons",
        ) from error


def _rewritten(row: Row) -> list[Row]:
    value = row.value
    if {"model_a", "model_b"} <= value.keys() and ("winner" in value or set(WINNERS_55K) <= value.keys()):
        return [_battle(row)]
    completions = value.get("completions")
    if isinstance(value.get("instruction"), str) and isinstance(completions, list) and "prompt" not in value:
        return [_ultrafeedback(row)]
    if is_argilla(value):
        return argilla_rows(row)
    return label_studio_rows(row) if is_label_studio(value) else [row]


# ------------------------------------------------------------------------------------------------------------ battles


def _battle(row: Row) -> Row:
    value = row.value
    ranks, reason = _winner(row)
    for name in ("model_a", "model_b"):
        if not isinstance(value[name], str) or not value[name].strip():
            raise DataError(
                f"field '{name}' names no model", where=row.where, got=repr(value[name])[:80], expected="a name"
            )
    used = {"model_a", "model_b", "winner", *WINNERS_55K, "judge", "conversation_a", "conversation_b"}
    used |= {"tstamp", "prompt", "response_a", "response_b", "answer_a", "answer_b", "question_id", "judgement"}
    rest = {key: item for key, item in value.items() if key not in used}
    judgement = dict(value.get("judgement") or {})
    if value.get("judge") is not None:
        judgement.setdefault("annotator", str(value["judge"]))
    if isinstance(value.get("tstamp"), int | float):
        judgement.setdefault("when", datetime.fromtimestamp(value["tstamp"], UTC).isoformat(timespec="milliseconds"))
    if any(value.get(name) is not None for name in ORDERED):
        judgement.setdefault("shown", [0, 1])
    if reason:
        judgement["reason"] = reason
    made = {"models": [value["model_a"], value["model_b"]], "ranks": ranks, "judgement": judgement}
    if value.get("question_id") is not None:
        made["id"] = str(value["question_id"])
    return Row({**rest, **made, **_texts(row)}, row.where)


def _winner(row: Row) -> tuple[list[int], str]:
    value = row.value
    winner = value.get("winner")
    if winner is None and set(WINNERS_55K) <= value.keys():
        flags = [value[name] for name in WINNERS_55K]
        won = [name for name, flag in zip(("model_a", "model_b", "tie"), flags, strict=True) if flag in (1, True)]
        winner = won[0] if len(won) == 1 and all(flag in (0, 1) for flag in flags) else str(flags)
    found = RANKS_OF_WINNER.get(str(winner).strip().lower())
    if found is None:
        raise DataError(
            "the winner of a battle is none of its outcomes",
            where=row.where,
            got=repr(winner)[:80],
            expected="model_a, model_b, tie, or tie (bothbad)",
            fix="write one of these, or leave the row out",
        )
    return list(found[0]), found[1]


def _texts(row: Row) -> dict[str, Any]:
    """Returns `prompt` and `responses` of a battle; `lengths` alone, or nothing, where it holds no texts."""
    value = row.value
    if isinstance(value.get("conversation_a"), list) and isinstance(value.get("conversation_b"), list):
        return _split(row, value["conversation_a"], value["conversation_b"])
    pairs = (("response_a", "response_b"), ("answer_a", "answer_b"))
    names = next((pair for pair in pairs if all(value.get(name) is not None for name in pair)), None)
    if names is not None and value.get("prompt") is not None:
        asked, *answers = (_listed(value[name]) for name in ("prompt", *names))
        if all(isinstance(item, list) for item in (asked, *answers)):
            return _split(row, *(_turns(row, asked, answer) for answer in answers))
        return {"prompt": value["prompt"], "responses": [value[name] for name in names]}
    given = value.get("conv_metadata")
    tokens = [given.get(f"sum_assistant_{side}_tokens") for side in "ab"] if isinstance(given, Mapping) else [None]
    return {"lengths": tokens} if all(isinstance(n, int | float) for n in tokens) else {}


def _listed(value: Any) -> Any:
    """Returns the list of turns that a column holds as JSON text (`["...", "..."]`); any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if isinstance(found, list) else value
    return value


def _turns(row: Row, asked: Sequence[Any], answers: Sequence[Any]) -> list[dict[str, Any]]:
    if len(asked) != len(answers) or not asked:
        raise DataError(
            "a battle has another number of answers than of questions",
            where=row.where,
            got=f"{len(asked)} questions, {len(answers)} answers",
            expected="an answer for each question",
        )
    pairs = zip(asked, answers, strict=True)
    return [turn for q, a in pairs for turn in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


def _split(row: Row, a: Sequence[Any], b: Sequence[Any]) -> dict[str, Any]:
    """Splits two conversations after their shared first turns, which end with a question."""
    shared = 0
    while shared < min(len(a), len(b)) - 1 and a[shared] == b[shared]:
        shared += 1
    while shared > 0 and not all(_role(turns[shared]) in ("assistant", "gpt") for turns in (a, b)):
        shared -= 1
    if not shared:
        raise DataError(
            "the two conversations of a battle share no prompt",
            where=row.where,
            got=f"{str(a[:1])[:60]} and {str(b[:1])[:60]}",
            expected="the same first turns, then an answer each",
            fix="leave the row out",
        )
    return {"prompt": list(a[:shared]), "responses": [list(a[shared:]), list(b[shared:])]}


def _role(turn: Any) -> str:
    return str(turn.get("role", turn.get("from", ""))) if isinstance(turn, Mapping) else ""


# ------------------------------------------------------------------------------------------------------ UltraFeedback


def _ultrafeedback(row: Row) -> Row:
    value = row.value
    completions = value["completions"]
    for number, one in enumerate(completions):
        if not isinstance(one, Mapping) or not isinstance(one.get("response"), str):
            raise DataError(
                f"completions[{number}] has no response",
                where=row.where,
                got=str(one)[:80],
                expected='{"model": "...", "response": "...", "overall_score": 7.5}',
            )
    rest = {key: item for key, item in value.items() if key not in ("instruction", "completions", "models")}
    made: dict[str, Any] = {
        "prompt": value["instruction"],
        "responses": [one["response"] for one in completions],
        "scores": [_score(row, number, one) for number, one in enumerate(completions)],
    }
    names = [one.get("model") for one in completions]
    if all(isinstance(name, str) and name for name in names):
        made["models"] = names
    return Row({**rest, **made}, row.where)


def _score(row: Row, number: int, one: Mapping[str, Any]) -> float:
    """Returns the mean rating over the four aspects; without them `fine-grained_score`, else `overall_score`.

    Some of the published overall scores are wrong (10 for answers that all aspects call poor), so they come last.
    """
    given = one.get("annotations")
    ratings = [_rating(given.get(aspect)) for aspect in ASPECTS] if isinstance(given, Mapping) else [None]
    known = [rating for rating in ratings if rating is not None]
    if known and len(known) == len(ratings):
        return sum(known) / len(known)
    for name in ("fine-grained_score", "overall_score"):
        score = _number(one.get(name))
        if score is not None:
            return score
    raise DataError(
        f"completions[{number}] has no rating",
        where=row.where,
        got=f"fields {', '.join(map(str, one))}",
        expected=f"annotations with a Rating of {', '.join(ASPECTS)}, or overall_score",
        fix="leave the row out",
    )


def _rating(aspect: Any) -> float | None:
    return _number(aspect.get("Rating")) if isinstance(aspect, Mapping) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
