"""Outcomes of one model's responses against a baseline's, and what they show: counts, tests, bounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tiltyard.stats.paired import Difference, false_discovery, mean_difference, paired_difference

if TYPE_CHECKING:
    from tiltyard.evaluation.policies import EvaluatedResponse, PolicySummary

By = Literal["gold", "proxy", "judge"]
COMPARED = ("gold", "helpful", "truthful", "harmless", "proxy", "length")  # measurements with a paired difference


class PairOutcome(NamedTuple):
    """One pair of responses to a prompt: 1 a win of the model, 0 a loss, 1/2 a tie, or a judge's probability.

    None where nothing decided: the judge gave no verdict, or the reward abstained.
    """

    key: str
    outcome: float | None
    length: int
    baseline_length: int


def pair_outcomes(
    responses: Sequence[EvaluatedResponse],
    baseline_responses: Sequence[EvaluatedResponse],
    by: By,
    *,
    every: bool = True,
) -> list[PairOutcome]:
    """Returns the pairs that a win rate is made of.

    By a score with `every`: each response of the model with each one of the baseline's to the same prompt; else, and by
    a judge always, the i-th with the i-th.
    """
    others: dict[str, list[EvaluatedResponse]] = defaultdict(list)
    for other in baseline_responses:
        others[other.key].append(other)
    place: dict[str, int] = defaultdict(int)
    found: list[PairOutcome] = []
    for one in responses:
        of_prompt = others.get(one.key, [])
        k = place[one.key]
        place[one.key] += 1
        found += [
            PairOutcome(one.key, _outcome(one, other, by), one.length, other.length)
            for other in (of_prompt if every and by != "judge" else of_prompt[k : k + 1])
        ]
    return found


def _outcome(one: EvaluatedResponse, other: EvaluatedResponse, by: By) -> float | None:
    if by == "judge":
        return one.win
    a, b = getattr(one, by), getattr(other, by)
    if a is None or b is None:
        return None
    return 0.5 if a == b else float(a > b)


def with_tests(
    results: Sequence[PolicySummary],
    responses: Mapping[str, Sequence[EvaluatedResponse]],
    baseline: str,
    *,
    every: bool = True,
    rounds: int = 1000,
    seed: int = 0,
) -> list[PolicySummary]:
    """Returns the summaries with what the set of prompts can show of each model against the baseline.

    Added are the counts of wins, ties, losses and of pairs that nothing decided; the bounds of the win rate if those
    were all lost or all won; its p-value against 1/2, adjusted for the number of models (Benjamini-Hochberg), and the
    smallest difference from 1/2 that would have shown; and the paired differences of the measurements.
    """
    how: dict[str, Any] = {"rounds": rounds, "seed": seed}
    tested: dict[str, dict[str, Any]] = {}
    differences: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        if result.name == baseline or result.baseline is None:
            continue
        pairs = pair_outcomes(responses[result.name], responses[baseline], result.win_by, every=every)
        tested[result.name] = win_facts(pairs, **how)
        differences[result.name] = _differences(responses[result.name], responses[baseline], how)
    _adjust([facts for facts in tested.values() if "win_rate_p" in facts], "win_rate_p", "win_rate_q")
    _adjust([one for of in differences.values() for one in of.values()], "p", "q")
    return [
        replace(result, **tested[result.name], differences=differences[result.name])
        if result.name in tested
        else result
        for result in results
    ]


def win_facts(pairs: Sequence[PairOutcome], *, rounds: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Returns the counts of the pairs, bounds, p-value and smallest difference of their win rate; {} without pairs."""
    known = [(pair.key, pair.outcome) for pair in pairs if pair.outcome is not None]
    if not known:
        return {}
    values = [outcome for _, outcome in known]
    missing = len(pairs) - len(known)
    facts: dict[str, Any] = {
        "wins": sum(x > 0.5 for x in values),
        "ties": sum(x == 0.5 for x in values),
        "losses": sum(x < 0.5 for x in values),
        "undecided": missing,
    }
    if missing:
        facts["win_rate_bounds"] = (sum(values) / len(pairs), (sum(values) + missing) / len(pairs))
    test = mean_difference([x - 0.5 for x in values], [key for key, _ in known], rounds=rounds, seed=seed)
    return facts | {"win_rate_p": number(test.p), "win_rate_mde": number(test.mde)}


def _differences(
    responses: Sequence[EvaluatedResponse], baseline_responses: Sequence[EvaluatedResponse], how: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The paired differences of the prompts' means; of prompts on which both models have the measurement."""
    found = {}
    for field in COMPARED:
        paired = paired_means(responses, baseline_responses, field, **how)
        if paired is not None:
            found[field] = json_difference(paired[2])
    return found


def paired_means(
    responses: Sequence[EvaluatedResponse],
    baseline_responses: Sequence[EvaluatedResponse],
    field: str,
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[float, float, Difference] | None:
    """Computes (mean, mean of the baseline, difference) of a measurement over the prompts on which both have it.

    Each prompt has the same weight. None where there is no such prompt.
    """
    after, before = _means(responses, field), _means(baseline_responses, field)
    shared = [key for key in after if key in before]
    if not shared:
        return None
    ours, theirs = [after[key] for key in shared], [before[key] for key in shared]
    difference = paired_difference(ours, theirs, shared, rounds=rounds, seed=seed)
    return sum(ours) / len(shared), sum(theirs) / len(shared), difference


def json_difference(difference: Difference) -> dict[str, Any]:
    """The difference with null in place of nan."""
    return {key: number(value) if isinstance(value, float) else value for key, value in difference.to_dict().items()}


def _means(responses: Sequence[EvaluatedResponse], field: str) -> dict[str, float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        if (value := getattr(response, field)) is not None:
            grouped[response.key].append(float(value))
    return {key: sum(values) / len(values) for key, values in grouped.items()}


def _adjust(rows: Sequence[dict[str, Any]], p: str, q: str) -> None:
    adjusted = false_discovery([math.nan if row[p] is None else row[p] for row in rows])
    for row, value in zip(rows, adjusted, strict=True):
        row[q] = number(value)


def number(value: float) -> float | None:
    """The value, None for nan."""
    return None if math.isnan(value) else value
