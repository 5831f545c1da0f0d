"""Verdicts of people on a task: what each kind may hold, from places on the page to responses, and to preferences.

A verdict is a small dict that names its responses by index. A page sends indices of places; `to_responses` turns them
into indices of the task's responses, so that everything that is stored refers to those whatever the order was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiltyard.errors import DataError
from tiltyard.feedback.store.texts import storable
from tiltyard.types import Preference, dense_ranks

Verdict = dict[str, Any]

KINDS = ("pair", "ranking", "best_worst", "rating", "write")
CHOICES = ("first", "second", "tie", "both_bad")
FLAGS = ("helpful", "truthful", "harmless")
MOST_TEXT = 20_000  # characters of a demonstration
SCALE = (1, 7)  # Likert
STRENGTHS = (1, 3)  # slightly, clearly, much better


def checked(kind: str, verdict: Any, count: int) -> Verdict:
    """Returns a verdict with its known fields alone.

    Args:
        kind: of the task. verdict: what was sent. count: number of the task's responses.

    Raises:
        DataError: a field is missing, of another type, or out of its range.
    """
    if not isinstance(verdict, Mapping):
        raise _bad(kind, verdict, "an object")
    return _CHECKS[kind](kind, verdict, count)


def _pair(kind: str, verdict: Mapping[str, Any], _count: int) -> Verdict:
    choice, strength = verdict.get("choice"), verdict.get("strength")
    if choice not in CHOICES:
        raise _bad(kind, choice, f"choice: {', '.join(CHOICES)}")
    if strength is None:
        return {"choice": choice}
    low, high = STRENGTHS
    if not _whole(strength, low, high) or choice not in CHOICES[:2]:
        raise _bad(kind, strength, f"strength: {low} to {high}, beside first or second")
    return {"choice": choice, "strength": strength}


def _ranking(kind: str, verdict: Mapping[str, Any], count: int) -> Verdict:
    ranks: Any = verdict.get("ranks")
    if not _list(ranks, count) or not all(_whole(rank, 1, count) for rank in ranks):
        raise _bad(kind, ranks, f"ranks: {count} numbers from 1 (best) to {count}, equal where they tie")
    return {"ranks": list(dense_ranks([-rank for rank in ranks]))}


def _best_worst(kind: str, verdict: Mapping[str, Any], count: int) -> Verdict:
    best, worst = verdict.get("best"), verdict.get("worst")
    if not (_whole(best, 0, count - 1) and _whole(worst, 0, count - 1) and best != worst):
        raise _bad(kind, {"best": best, "worst": worst}, f"best and worst: two different numbers from 0 to {count - 1}")
    return {"best": best, "worst": worst}


def _rating(kind: str, verdict: Mapping[str, Any], count: int) -> Verdict:
    ratings: Any = verdict.get("ratings")
    flags: Any = verdict.get("flags", [{}] * count)
    low, high = SCALE
    if not _list(ratings, count) or not all(_whole(rating, low, high) for rating in ratings):
        raise _bad(kind, ratings, f"ratings: {count} whole numbers from {low} to {high}")
    if not _list(flags, count) or not all(
        isinstance(one, Mapping) and set(one) <= set(FLAGS) and all(isinstance(v, bool) for v in one.values())
        for one in flags
    ):
        raise _bad(kind, flags, f"flags: for each response some of {', '.join(FLAGS)}: true or false")
    return {"ratings": list(ratings), "flags": [dict(one) for one in flags]}


def _write(kind: str, verdict: Mapping[str, Any], count: int) -> Verdict:
    text, edited = verdict.get("text"), verdict.get("edited")
    if not isinstance(text, str) or not text.strip() or len(text) > MOST_TEXT:
        raise _bad(kind, text if text is None else type(text).__name__, f"text: 1 to {MOST_TEXT:,} characters")
    storable(text, "text")
    if edited is None:
        return {"text": text}
    if not _whole(edited, 0, count - 1):
        raise _bad(kind, edited, f"edited: the number of the response that was edited, 0 to {count - 1}")
    return {"text": text, "edited": edited}


_CHECKS: dict[str, Callable[[str, Mapping[str, Any], int], Verdict]] = {
    "pair": _pair,
    "ranking": _ranking,
    "best_worst": _best_worst,
    "rating": _rating,
    "write": _write,
}


def checked_of_judge(kind: str, verdict: Mapping[str, Any], count: int) -> Verdict:
    """Returns a judge's verdict with its known fields: what `checked` has, and of a pair its probabilities.

    `p` is the probability that the first response is better, `orders` that of each order where both were asked.

    Raises:
        DataError: as `checked`; a p that does not give the choice.
    """
    known = checked(kind, verdict, count)
    if kind != "pair" or "p" not in verdict:
        return known
    p, orders = verdict["p"], verdict.get("orders")
    if not _share(p) or verdict["choice"] != ("tie" if p == 0.5 else "first" if p > 0.5 else "second"):
        raise _bad(kind, p, "p: the probability of the first response, in 0..1, that gives the choice")
    if orders is None:
        return {**known, "p": p}
    if not _list(orders, 2) or not all(map(_share, orders)):
        raise _bad(kind, orders, "orders: p as the pair stands, and with the two swapped")
    return {**known, "p": p, "orders": list(orders)}


def to_responses(kind: str, verdict: Verdict, shown: Sequence[int]) -> Verdict:
    """Returns a checked verdict about places on the page as one about the task's responses.

    Args:
        shown: shown[place] is the index of the response that stood there.
    """
    if kind == "pair" and verdict["choice"] in CHOICES[:2]:
        return {**verdict, "choice": CHOICES[shown[CHOICES.index(verdict["choice"])]]}
    if kind in ("ranking", "rating"):
        place = {response: k for k, response in enumerate(shown)}
        order = [place[response] for response in range(len(shown))]
        return {key: [value[k] for k in order] for key, value in verdict.items()}
    moved: Verdict = {key: shown[verdict[key]] for key in ("best", "worst", "edited") if key in verdict}
    return {**verdict, **moved}


def to_places(kind: str, verdict: Verdict, shown: Sequence[int]) -> Verdict:
    """The inverse of `to_responses`: a verdict about the task's responses as one about places on the page."""
    place = {response: k for k, response in enumerate(shown)}
    return to_responses(kind, verdict, [place[response] for response in range(len(shown))])


def agree(kind: str, one: Verdict, other: Verdict) -> bool:
    """True if two verdicts on a task are the same opinion: the same choice, order, extremes, or ratings within 1."""
    if kind == "rating":
        return all(abs(a - b) <= 1 for a, b in zip(one["ratings"], other["ratings"], strict=True))
    keys = {"pair": ("choice",), "ranking": ("ranks",), "best_worst": ("best", "worst"), "write": ()}[kind]
    return all(one[key] == other[key] for key in keys)


def ranks_of_verdict(kind: str, verdict: Verdict, count: int) -> tuple[int, ...] | None:
    """Returns ranks of the responses, 1 is best; None where a verdict prefers none (both bad, a text)."""
    if kind == "pair":
        return {"first": (1, 2), "second": (2, 1), "tie": (1, 1), "both_bad": None}[verdict["choice"]]
    if kind == "ranking":
        return tuple(verdict["ranks"])
    if kind == "best_worst":
        return tuple(1 if k == verdict["best"] else 3 if k == verdict["worst"] else 2 for k in range(count))
    return dense_ranks(verdict["ratings"]) if kind == "rating" else None


def preference_of(kind: str, verdict: Verdict, count: int, **provenance: Any) -> Preference:
    """Returns the preference that a verdict states, with its provenance.

    A pair of which both are bad states none: its `meta["reason"]` is `both_bad`, which is no tie.
    """
    meta = dict(provenance.pop("meta", {}))
    if kind == "rating":
        meta |= {"flags": verdict["flags"]} if any(verdict["flags"]) else {}
        return Preference(ratings=tuple(verdict["ratings"]), meta=meta, **provenance)
    if "p" in verdict:
        meta |= {"orders": verdict["orders"]} if "orders" in verdict else {}
        return Preference(shares=(verdict["p"], 1 - verdict["p"]), meta=meta, **provenance)
    ranks = ranks_of_verdict(kind, verdict, count)
    if ranks is None:
        meta["reason"] = verdict.get("choice", kind)
    if "strength" in verdict:
        meta["strength"] = verdict["strength"]
    return Preference(ranks=ranks, meta=meta, **provenance)


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _list(value: object, count: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count


def _bad(kind: str, got: object, expected: str) -> DataError:
    shown = repr(got)
    return DataError(
        f"not a verdict on a task of kind '{kind}'",
        where="verdict",
        got=shown if len(shown) <= 200 else shown[:200] + "...",
        expected=expected,
        fix="send the verdict again; nothing was stored",
    )
