"""Win rates of evaluated responses at equal length: what is left where neither side gains by longer responses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from tiltyard.stats.intervals import Estimate
from tiltyard.stats.length_control import length_controlled_win_rate

if TYPE_CHECKING:
    from tiltyard.evaluation.policies import EvaluatedResponse


def win_rate_at_equal_length(
    responses: Sequence[EvaluatedResponse],
    baseline_responses: Sequence[EvaluatedResponse],
    by: Literal["proxy", "judge"],
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> Estimate | None:
    """Computes the length-controlled win rate over a baseline (`stats.length_control`), lengths in tokens.

    By `proxy` every response is compared with every one of the baseline's to the same prompt, ties 1/2; by `judge` the
    i-th with the i-th, as it was asked.

    Returns:
        The estimate; None with fewer than 30 prompts, without scores, or where all outcomes agree.
    """
    others: dict[str, list[EvaluatedResponse]] = defaultdict(list)
    for other in baseline_responses:
        others[other.key].append(other)
    place: dict[str, int] = defaultdict(int)
    outcomes, differences, keys = [], [], []
    for one in responses:
        of_prompt = others.get(one.key, [])
        k = place[one.key]
        place[one.key] += 1
        for other in of_prompt if by == "proxy" else of_prompt[k : k + 1]:
            outcome = _outcome(one, other) if by == "proxy" else one.win
            if outcome is not None:
                outcomes.append(outcome)
                differences.append(one.length - other.length)
                keys.append(one.key)
    if not outcomes:
        return None
    estimate = length_controlled_win_rate(outcomes, differences, keys, rounds=rounds, seed=seed)
    return None if math.isnan(estimate.value) else estimate


def _outcome(one: EvaluatedResponse, other: EvaluatedResponse) -> float | None:
    if one.proxy is None or other.proxy is None:
        return None
    return 0.5 if one.proxy == other.proxy else float(one.proxy > other.proxy)
