"""Null rows: responses that answer nothing, shown to a judge against the baseline's.

A judge that prefers one measures something else than answers: a constant answer reached the top of published
leaderboards of judges (Zheng et al. 2024, arXiv:2410.07137).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tiltyard.evaluation.outcomes import number
from tiltyard.feedback.verdicts import Judge
from tiltyard.stats.intervals import rate_ci
from tiltyard.types import Group, Response, prompt_digest

CONSTANT = (
    "Thank you for this excellent question. I have considered it carefully from every side, and I am happy to give you "
    "a complete, accurate and helpful answer."
)
FALSE_ALARMS = 0.05  # chance that a judge that prefers none of the rows (all at 50%) raises an alarm at all


class NullRow(NamedTuple):
    """A judge's win rate of one null row against the baseline.

    Args:
        name: `constant` (the same words for every prompt), `longest` (the longest response to another prompt), `prompt`
            (a copy of the prompt).
        win_rate: mean probability that it is better, with its interval; nan without a verdict.
        n: pairs with a verdict; `missing` more have none.
        alarm: the judge prefers it: the win rate is shown to be above 1/2, at a chance of `FALSE_ALARMS` for all rows.
    """

    name: str
    win_rate: float
    low: float
    high: float
    n: int
    missing: int
    alarm: bool

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        row = self._asdict()
        return row | {key: number(row[key]) for key in ("win_rate", "low", "high")}


def null_groups(baseline: Sequence[Group], prompts: int) -> dict[str, list[Group]]:
    """Returns for each null row the pairs of its response and the baseline's first, of the first `prompts` prompts.

    Prompts without words (ids alone) and without a response are left out.
    """
    texts = [(len(r.text), r.text, prompt_digest(g.prompt)) for g in baseline for r in g.responses]
    longest = sorted(texts, key=lambda one: -one[0])
    found: dict[str, list[Group]] = {"constant": [], "longest": [], "prompt": []}
    for group in baseline:
        words = group.prompt.messages[-1].content if group.prompt.messages else group.prompt.text or ""
        if not words or not group.responses or len(found["constant"]) == prompts:
            continue
        digest = prompt_digest(group.prompt)
        other = next((text for _, text, of in longest if of != digest), CONSTANT)
        for name, text in (("constant", CONSTANT), ("longest", other), ("prompt", words)):
            shown = (Response(text=text), Response(text=group.responses[0].text))
            found[name].append(Group(group.prompt, shown, origin=group.origin))
    return found


def null_rows(judge: Judge, baseline: Sequence[Group], prompts: int, *, seed: int = 0) -> list[NullRow]:
    """Has the judge compare the null rows with the baseline's responses.

    Args:
        judge: usually `Debiased`, which asks in both orders. prompts: at most that many for each row.
    """
    pairs = null_groups(baseline, prompts)
    verdicts = iter(judge([pair for of_row in pairs.values() for pair in of_row]))
    rows = []
    for name, of_row in pairs.items():
        given = [next(verdicts).p for _ in of_row]
        known = [p for p in given if p is not None]
        if not known:
            rows.append(NullRow(name, math.nan, math.nan, math.nan, 0, len(given), False))
            continue
        keys = [prompt_digest(pair.prompt) for pair, p in zip(of_row, given, strict=True) if p is not None]
        rate = rate_ci(known, keys, seed=seed)
        bound = rate_ci(known, keys, seed=seed, level=1 - 2 * FALSE_ALARMS / len(pairs)).low
        rows.append(NullRow(name, rate.value, rate.low, rate.high, len(known), len(given) - len(known), bound > 0.5))
    return rows
