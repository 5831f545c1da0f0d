"""A judged group in the terms of the store: its kind of task, its verdict, its item, its time, and a digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tiltyard.errors import DataError
from tiltyard.feedback.store.items import COUNTS
from tiltyard.feedback.store.texts import storable
from tiltyard.feedback.store.verdicts import STRENGTHS, Verdict, checked, checked_of_judge
from tiltyard.stats.judged import BOTH_BAD
from tiltyard.types import Group, Preference, Response, dense_ranks, prompt_digest, ranks_of, response_id

STAGES = ("real", "adjudication")
Sides = tuple[tuple[str, str], ...]  # of each response the model and the digest
ItemKey = tuple[str, str, Sides, float, str]  # kind, prompt, responses in any order, probability, stage
_PLACES = {"first": (1, 2), "second": (2, 1), "tie": (1, 1), BOTH_BAD: (0, 0)}


class Reading(NamedTuple):
    """A judgement that may be new. `verdict` is about the group's responses; `when` in milliseconds, None: unknown."""

    group: Group
    preference: Preference
    kind: str
    verdict: Verdict
    when: int | None
    sides: Sides
    name: str
    item: ItemKey
    key: str = ""


def read_judged(group: Group, annotator: str) -> Reading:
    """Returns a judged group in the terms of the store.

    Raises:
        DataError: no texts, no verdict, or a verdict that no kind of task has.
    """
    preference = group.preference
    if preference is None or (not group.prompt.messages and not group.prompt.text) or not _told(group.responses):
        raise DataError(
            "a judgement without texts or without a verdict cannot be stored",
            where=group.origin,
            got="no verdict" if preference is None else "no words of the prompt or of the responses",
            expected="a prompt, responses and a verdict on them",
            fix="leave it out (--bad-rows drop); `tiltyard rate` reads battles without texts from their file",
        )
    kind, verdict = _verdict(group, preference)
    stage = str(preference.meta.get("stage", "real"))
    if stage not in STAGES:
        raise DataError(
            "a test of an annotator cannot be imported",
            where=group.origin,
            got=f"stage {stage}",
            expected="a judgement",
        )
    name = (preference.annotator or annotator).strip()
    if not name or len(name) > 200:
        raise DataError(
            "an annotator has a name", where=group.origin, got=repr(name[:80]), expected="1 to 200 characters"
        )
    sides = tuple((model_name(one), response_id(one)) for one in group.responses)
    chosen = float(preference.meta.get("chosen_with", 1.0))
    for text in (name, str(preference.meta.get("comment", "")), *(one.text for one in group.responses)):
        storable(text, group.origin)
    item = (kind, prompt_digest(group.prompt), tuple(sorted(sides)), chosen, stage)
    return Reading(group, preference, kind, verdict, _when(group.origin, preference.when), sides, name, item)


def _told(responses: Sequence[Response]) -> bool:
    return len(responses) > 0 and any(one.text for one in responses)


def model_name(response: Response) -> str:
    policy, version = (str(response.meta.get(key, "")) for key in ("policy", "version"))
    return f"{policy}@{version}" if version else policy or "unknown"


def _when(where: str, text: str) -> int | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        return round(found.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise DataError(
            "the time of a judgement cannot be read", where=where, got=text[:80], expected="ISO 8601"
        ) from error


def _verdict(group: Group, preference: Preference) -> tuple[str, Verdict]:
    """Returns the kind of task and the verdict that a preference states."""
    count, ranks, meta = len(group.responses), ranks_of(preference), preference.meta
    kind = "rating" if preference.ratings is not None else "pair" if count == 2 else "ranking"
    low, high = COUNTS[kind]
    both_bad = ranks is None and meta.get("reason") == BOTH_BAD and kind == "pair"
    soft = preference.shares is not None
    if not low <= count <= high or (ranks is None and not both_bad) or (soft and kind != "pair"):
        raise DataError(
            "no kind of task has this verdict",
            where=group.origin,
            got=f"{count} responses, {'shares' if soft else 'no order' if ranks is None else 'ranks'}",
            expected="a pair, an order of 3 to 9 responses, or a rating of each",
        )
    if kind == "rating":
        flags = meta.get("flags", [{}] * count)
        return kind, {"ratings": [_plain(r) for r in preference.ratings or ()], "flags": list(flags)}
    if kind == "ranking":
        return kind, checked(kind, {"ranks": list(dense_ranks([-r for r in ranks or ()]))}, count)
    if ranks is None:
        return kind, {"choice": BOTH_BAD}
    choice = "tie" if ranks[0] == ranks[1] else "first" if ranks[0] < ranks[1] else "second"
    if preference.shares is not None:
        one, other = preference.shares
        return kind, checked_of_judge(kind, {"choice": choice, "p": one / (one + other)}, count)
    strength = meta.get("strength")
    stated = choice != "tie" and isinstance(strength, int) and STRENGTHS[0] <= strength <= STRENGTHS[1]
    return kind, {"choice": choice} | ({"strength": strength} if stated else {})


def _plain(rating: float) -> float | int:
    return int(rating) if math.isfinite(rating) and float(rating).is_integer() else float(rating)


def content_of(one: Reading, *, exported: bool = False) -> str:
    """Returns a digest of the content of a judgement, whatever the order of its responses.

    `exported`: as the store writes its own, with the name that the annotator has there.
    """
    verdict = one.verdict
    values = verdict.get("ratings") or verdict.get("ranks") or _PLACES[verdict["choice"]]
    values = [verdict["p"], 1 - verdict["p"]] if "p" in verdict else values
    sides = sorted((*side, float(value)) for side, value in zip(one.sides, values, strict=True))
    who = one.name if exported else one.preference.annotator
    said = [who, one.kind, one.item[1], sides, one.when, one.item[4]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
