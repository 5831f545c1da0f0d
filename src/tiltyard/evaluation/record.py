"""What is known about a model's answers, and the summary of one model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tiltyard.errors import ConfigError, DataError
from tiltyard.stats.estimates import Pairing, distinct_n, mean_ci, rate_ci, win_rate_by_prompt
from tiltyard.stats.intervals import Interval

WinBy = Literal["gold", "proxy"]
DISTINCT_BUDGET = 1000  # word pairs that every model's diversity is measured on


@dataclass(frozen=True)
class Answer:
    """One sampled answer, scored. None: not measured, or (helpful, truthful, harmless) does not apply here.

    `length`: tokens of the answer. `truncated`: cut by the token limit. `proxy`: the reward model's score. `gold`: the
    score by the world's own rules. `helpful`, `truthful`, `harmless`: in 0..1. `kl`: sum over the answer's tokens of
    log pi - log ref, in nats (a one-sample estimate, may be negative). `entropy`: mean nats per token.
    """

    prompt_id: str
    prompt_text: str
    text: str
    length: int
    truncated: bool = False
    proxy: float | None = None
    gold: float | None = None
    helpful: float | None = None
    truthful: float | None = None
    harmless: float | None = None
    kl: float | None = None
    entropy: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """One model's row in the table. Every `_ci` is a 95% interval over prompts; None: not measured or not knowable.

    `win_rate` is over the answers of `baseline`, by the score named in `win_by`. `truncated` is a share of answers.
    `distinct_2`: unique over all word pairs, on at most 1,000 pairs. `n` counts answers, `prompts` prompts.
    """

    name: str
    n: int
    prompts: int
    gold: float | None
    gold_ci: Interval | None
    helpful: float | None
    helpful_ci: Interval | None
    truthful: float | None
    truthful_ci: Interval | None
    harmless: float | None
    harmless_ci: Interval | None
    proxy: float | None
    proxy_ci: Interval | None
    kl: float | None
    kl_ci: Interval | None
    win_rate: float | None
    win_rate_ci: Interval | None
    length: float
    truncated: float
    distinct_2: float | None
    entropy: float | None
    baseline: str | None
    win_by: WinBy


def summarise(
    name: str,
    answers: Sequence[Answer],
    baseline_answers: Sequence[Answer] | None = None,
    win_by: WinBy = "gold",
    *,
    baseline: str = "sft",
    pairing: Pairing = "all",
    rounds: int = 1000,
    seed: int = 0,
) -> ModelResult:
    """Summarise one model's answers. Intervals resample prompts, so several answers a prompt are welcome.

    The win rate pairs answers to the same prompt; every answer meets every answer of the baseline (`pairing="all"`,
    n x n pairs a prompt, ties 1/2), so the baseline against itself is exactly 0.5. `"index"` pairs i-th with i-th.
    A score must be there for all answers or for none; helpful, truthful and harmless average where they apply.
    """
    if not answers:
        raise DataError("there are no answers to summarise", where=name)
    if win_by not in ("gold", "proxy"):
        raise ConfigError("unknown score to win by", where="win_by", got=win_by, expected="gold or proxy")

    facts: dict[str, Any] = {}
    for field in ("gold", "proxy", "kl", "helpful", "truthful", "harmless"):
        applies = field in ("helpful", "truthful", "harmless")
        facts[field], facts[f"{field}_ci"] = _mean(name, answers, field, applies=applies, rounds=rounds, seed=seed)
    ours = _scores_by_prompt(name, answers, win_by)
    theirs = _scores_by_prompt(baseline, baseline_answers, win_by) if baseline_answers else None
    facts["win_rate"] = facts["win_rate_ci"] = None
    if ours is not None and theirs is not None:
        won = win_rate_by_prompt(ours, theirs, pairing=pairing, rounds=rounds, seed=seed)
        facts["win_rate"], facts["win_rate_ci"] = won.value, _known(won.ci)
    distinct = distinct_n([a.text for a in answers], 2, budget=DISTINCT_BUDGET)
    entropy = _column(name, answers, "entropy")
    return ModelResult(
        name=name,
        n=len(answers),
        prompts=len({a.prompt_id for a in answers}),
        length=sum(a.length for a in answers) / len(answers),
        truncated=sum(a.truncated for a in answers) / len(answers),
        distinct_2=None if math.isnan(distinct) else distinct,
        entropy=None if entropy is None else sum(entropy) / len(entropy),
        baseline=baseline if baseline_answers else None,
        win_by=win_by,
        **facts,
    )


def _mean(
    name: str, answers: Sequence[Answer], field: str, *, applies: bool, rounds: int, seed: int
) -> tuple[float | None, Interval | None]:
    """Mean and interval over prompts; `applies`: a rate, averaged over the answers that have it."""
    where = [a for a in answers if getattr(a, field) is not None] if applies else answers
    values = _column(name, where, field)
    if values is None:
        return None, None
    interval = rate_ci if applies else mean_ci
    estimate = interval(values, [a.prompt_id for a in where], rounds=rounds, seed=seed)
    return estimate.value, _known(estimate.ci)


def _column(name: str, answers: Sequence[Answer], field: str) -> list[float] | None:
    """The field of every answer, or None when no answer has it; some with and some without is an error."""
    values = [getattr(a, field) for a in answers]
    missing = sum(v is None for v in values)
    if missing == len(values):
        return None
    bad = next((a for a, v in zip(answers, values, strict=True) if v is None or not math.isfinite(v)), None)
    if bad is not None:
        what = f"'{field}' is missing on {missing} of {len(values)} answers" if missing else f"'{field}' is not finite"
        raise DataError(what, where=f"{name}, prompt {bad.prompt_id!r}", fix="score all answers of a model, or none")
    return [float(v) for v in values]


def _scores_by_prompt(name: str, answers: Sequence[Answer], field: str) -> dict[str, list[float]] | None:
    values = _column(name, answers, field)
    if values is None:
        return None
    grouped: dict[str, list[float]] = {}
    for answer, value in zip(answers, values, strict=True):
        grouped.setdefault(answer.prompt_id, []).append(value)
    return grouped


def _known(ci: Interval) -> Interval | None:
    return None if math.isnan(ci[0]) or math.isnan(ci[1]) else ci
