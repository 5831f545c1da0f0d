"""Win rates of evaluated responses at equal length: what is left where neither side gains by longer responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tiltyard.evaluation.outcomes import number, pair_outcomes
from tiltyard.stats.length_control import at_equal_length, by_length_ratio

if TYPE_CHECKING:
    from tiltyard.evaluation.policies import EvaluatedResponse


def equal_length_facts(
    responses: Sequence[EvaluatedResponse],
    baseline_responses: Sequence[EvaluatedResponse],
    by: Literal["proxy", "judge"],
    *,
    every: bool = True,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Computes the win rate over a baseline at equal length, and by the ratio of the lengths, in tokens.

    Returns:
        The fields of `PolicySummary` that begin with `win_rate_equal_length` and `win_rate_by_length`; {} where no pair
        was decided.
    """
    pairs = pair_outcomes(responses, baseline_responses, by, every=every)
    decided = [(pair, pair.outcome) for pair in pairs if pair.outcome is not None]
    if not decided:
        return {}
    columns: tuple[Any, ...] = (
        [outcome for _, outcome in decided],
        [pair.length for pair, _ in decided],
        [pair.baseline_length for pair, _ in decided],
        [pair.key for pair, _ in decided],
    )
    found = at_equal_length(*columns, rounds=rounds, seed=seed)
    value = number(found.estimate.value)
    return {
        "win_rate_equal_length": value,
        "win_rate_equal_length_ci": None if number(found.estimate.low) is None else found.estimate.ci,
        "win_rate_equal_length_how": found.how,
        "win_rate_equal_length_note": found.reason,
        "win_rate_by_length": [
            {
                "label": row.label,
                "value": number(row.rate.value),
                "low": number(row.rate.low),
                "high": number(row.rate.high),
                "n": row.rate.n,
            }
            for row in by_length_ratio(*columns)
        ],
    }
