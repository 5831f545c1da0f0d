"""Evaluated responses of a policy, and their summary with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tiltyard.errors import ConfigError, DataError
from tiltyard.evaluation.equal_length import equal_length_facts
from tiltyard.stats.intervals import Estimate, Interval, mean_ci, rate_ci
from tiltyard.stats.text import distinct_n
from tiltyard.stats.win_rates import Pairing, win_rate_by_prompt
from tiltyard.types import Group, prompt_digest

WinBy = Literal["gold", "proxy", "judge"]
RewardKind = Literal["model", "rule", "other"]
DISTINCT_BUDGET = 1000  # word pairs on which the diversity of every model is measured


@dataclass(frozen=True)
class EvaluatedResponse:
    """One sampled response with its measurements. None: not measured, or (helpful, truthful, harmless) not applicable.

    `length`: tokens. `truncated`: cut by the token limit. `proxy`: the reward. `gold`: the score by the
    rules of the embedded world. `helpful`, `truthful`, `harmless`: in 0..1. `kl`: sum over the response's tokens of
    log pi - log ref, in nats (a one-sample estimate, may be negative). `entropy`: mean nats per token.
    `rewards`: further ones by name. `win`: a judge's probability that this response is better than the baseline's;
    `no_verdict`: the reason that it gave none.
    `prompt_key`: digest of the prompt's content (`types.prompt_digest`); ids may be missing or stand twice.
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
    prompt_key: str = ""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    win: float | None = None
    no_verdict: str = ""

    @classmethod
    def of(cls, group: Group, k: int, **measured: Any) -> EvaluatedResponse:
        """The k-th response of a group, with what was measured of it."""
        response, prompt = group.responses[k], group.prompt
        return cls(
            prompt_id=prompt.id,
            prompt_key=prompt_digest(prompt),
            prompt_text="\n".join(m.content for m in prompt.messages) if prompt.messages else prompt.text or "",
            text=response.text,
            length=len(response.ids),
            truncated=response.finish == "length",
            **measured,
        )

    @property
    def key(self) -> str:
        """The identity of the prompt: its content, or its id where no digest was given."""
        return self.prompt_key or self.prompt_id


@dataclass(frozen=True)
class RewardMean:
    """The mean of one reward over the `n` responses that have it; `is_rate`: a share of the responses."""

    value: float
    ci: Interval | None
    n: int
    is_rate: bool = False


@dataclass(frozen=True)
class PolicySummary:
    """Means of one model's responses. Every `_ci` is a 95% interval over prompts; None: not measured or undefined.

    `win_rate` is against the responses of `baseline`, by the score named in `win_by`. `truncated` is a share of the
    responses. `distinct_2`: unique over all word pairs, on at most 1,000 pairs. `n` counts responses, `unscored` those
    of them that the reward abstained from. `proxy_kind`: what the reward is. `rewards`: further ones by name.
    `win_rate_equal_length`: what remains of a win rate by a reward or a judge at equal length; `_how` is `regression`
    or `matched` (pairs of about equal length), `_note` why it was not the regression. `win_rate_by_length`: the win
    rates by the ratio of the lengths, rows of label, value, low, high, n.

    Of `evaluation.outcomes.with_tests`: `wins`, `ties`, `losses`, `undecided` count pairs, `win_rate_bounds` is the win
    rate with all undecided pairs lost, and won. `win_rate_p`: that it is 1/2, paired by prompt; `win_rate_q`: adjusted
    for the number of models; `win_rate_mde`: the smallest difference from 1/2 that this set shows with a power of 80%.
    `differences`: the model's measurement less the baseline's, paired by prompt, each with value, low, high, n,
    clusters, p, q (adjusted for all differences of the table), mde and test.
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
    proxy_kind: RewardKind = "model"
    unscored: int = 0
    rewards: Mapping[str, RewardMean] = field(default_factory=dict)
    win_rate_equal_length: float | None = None
    win_rate_equal_length_ci: Interval | None = None
    win_rate_equal_length_how: str = ""
    win_rate_equal_length_note: str = ""
    win_rate_by_length: Sequence[Mapping[str, Any]] = ()
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    undecided: int | None = None
    win_rate_bounds: Interval | None = None
    win_rate_p: float | None = None
    win_rate_q: float | None = None
    win_rate_mde: float | None = None
    differences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def summarise(
    name: str,
    responses: Sequence[EvaluatedResponse],
    baseline_responses: Sequence[EvaluatedResponse] | None = None,
    win_by: WinBy = "gold",
    *,
    baseline: str = "sft",
    pairing: Pairing = "all",
    rounds: int = 1000,
    seed: int = 0,
    proxy_kind: RewardKind = "model",
    rates: Sequence[str] = (),
) -> PolicySummary:
    """Summarises one model's responses. Intervals resample prompts, so several responses to a prompt are allowed.

    The win rate pairs responses to the same prompt: `pairing="all"` every response with every response of the baseline
    (n x n pairs a prompt, ties 1/2), so the baseline against itself is exactly 0.5; `"index"` the i-th with the i-th.
    helpful, truthful and harmless are averaged over the responses to which they apply, rewards over those that they do
    not abstain from. With `win_by="judge"` the win rate is the mean of `win` over the responses with a verdict.

    Args:
        proxy_kind: what `proxy` is; of a rule it is a rate. rates: names of `rewards` that are rates.

    Raises:
        DataError: no responses, or a score that only some of the responses have.
        ConfigError: an unknown `win_by`.
    """
    if not responses:
        raise DataError("there are no responses to summarise", where=name)
    if win_by not in ("gold", "proxy", "judge"):
        raise ConfigError("unknown score to win by", where="win_by", got=win_by, expected="gold, proxy or judge")

    how: dict[str, Any] = {"rounds": rounds, "seed": seed}
    measurements = _means(name, responses, proxy_kind, how)
    win_rate = _win_rate(name, responses, baseline, baseline_responses, win_by, pairing, how)
    measurements["win_rate"] = None if win_rate is None else win_rate.value
    measurements["win_rate_ci"] = None if win_rate is None else _known(win_rate.ci)
    if win_by != "gold" and baseline_responses and name != baseline:
        measurements |= equal_length_facts(
            responses, baseline_responses, win_by, every=pairing == "all", rounds=rounds, seed=seed
        )
    scored = [a.proxy is not None for a in responses]
    distinct = distinct_n([a.text for a in responses], 2, budget=DISTINCT_BUDGET)
    entropy = _column(name, responses, "entropy")
    return PolicySummary(
        name=name,
        n=len(responses),
        prompts=len({a.key for a in responses}),
        length=sum(a.length for a in responses) / len(responses),
        truncated=sum(a.truncated for a in responses) / len(responses),
        distinct_2=None if math.isnan(distinct) else distinct,
        entropy=None if entropy is None else sum(entropy) / len(entropy),
        baseline=baseline if baseline_responses else None,
        win_by=win_by,
        proxy_kind=proxy_kind,
        unscored=len(scored) - sum(scored) if any(scored) else 0,
        rewards=_rewards(responses, rates, how),
        **measurements,
    )


def _means(
    name: str, responses: Sequence[EvaluatedResponse], proxy_kind: RewardKind, how: Mapping[str, Any]
) -> dict[str, Any]:
    """The mean of every score, and its interval as `..._ci`."""
    found: dict[str, Any] = {}
    for key in ("gold", "proxy", "kl", "helpful", "truthful", "harmless"):
        rate = key in ("helpful", "truthful", "harmless") or (key == "proxy" and proxy_kind == "rule")
        partly = key not in ("gold", "kl")
        found[key], found[f"{key}_ci"] = _mean(name, responses, key, partly=partly, rate=rate, **how)
    return found


def _win_rate(
    name: str,
    responses: Sequence[EvaluatedResponse],
    baseline: str,
    baseline_responses: Sequence[EvaluatedResponse] | None,
    win_by: WinBy,
    pairing: Pairing,
    how: Mapping[str, Any],
) -> Estimate | None:
    """The win rate over the baseline; None without one, or without what decides."""
    if not baseline_responses:
        return None
    if win_by == "judge":
        if name == baseline:
            return Estimate(0.5, 0.5, 0.5, len(responses))
        judged = [(a.key, a.win) for a in responses if a.win is not None]
        return rate_ci([p for _, p in judged], [key for key, _ in judged], **how) if judged else None
    scores = _scores_by_prompt(name, responses, win_by)
    baseline_scores = _scores_by_prompt(baseline, baseline_responses, win_by)
    if scores is None or baseline_scores is None:
        return None
    if win_by == "proxy":  # prompts on which a reward abstained from all responses of a model have no winner
        shared = [key for key in scores if key in baseline_scores]
        scores, baseline_scores = ({key: some[key] for key in shared} for some in (scores, baseline_scores))
    if (
        scores and scores == baseline_scores and pairing == "all"
    ):  # each prompt is exactly 1/2 by symmetry, not by chance
        return Estimate(0.5, 0.5, 0.5, sum(len(of_prompt) ** 2 for of_prompt in scores.values()))
    return win_rate_by_prompt(scores, baseline_scores, pairing=pairing, **how) if scores else None


def _rewards(
    responses: Sequence[EvaluatedResponse], rates: Sequence[str], how: Mapping[str, Any]
) -> dict[str, RewardMean]:
    """The mean of each further reward over the responses that have it."""
    found = {}
    for name in dict.fromkeys(key for a in responses for key in a.rewards):
        known = [(a.key, value) for a in responses if (value := a.rewards.get(name)) is not None]
        if known:
            keys, values = zip(*known, strict=True)
            estimate = rate_ci(values, keys, **how) if name in rates else mean_ci(values, keys, **how, skewed=True)
            found[name] = RewardMean(estimate.value, _known(estimate.ci), len(known), name in rates)
    return found


def _mean(
    name: str,
    responses: Sequence[EvaluatedResponse],
    field: str,
    *,
    partly: bool,
    rate: bool,
    rounds: int,
    seed: int,
) -> tuple[float | None, Interval | None]:
    """Returns mean and interval over prompts; `partly`: averaged over the responses that have it."""
    applicable = [a for a in responses if getattr(a, field) is not None] if partly else responses
    values = _column(name, applicable, field)
    if values is None:
        return None, None
    keys = [a.key for a in applicable]
    if rate:
        estimate = rate_ci(values, keys, rounds=rounds, seed=seed)
    else:  # rewards and log-ratios are skewed: at 30 prompts the percentile interval covers 92%
        estimate = mean_ci(values, keys, rounds=rounds, seed=seed, skewed=True)
    return estimate.value, _known(estimate.ci)


def _column(name: str, responses: Sequence[EvaluatedResponse], field: str) -> list[float] | None:
    """Returns the field of every response, or None if no response has it; an error if only some have it."""
    values = [getattr(a, field) for a in responses]
    missing = sum(v is None for v in values)
    if missing == len(values):
        return None
    bad = next((a for a, v in zip(responses, values, strict=True) if v is None or not math.isfinite(v)), None)
    if bad is not None:
        what = (
            f"'{field}' is missing on {missing} of {len(values)} responses" if missing else f"'{field}' is not finite"
        )
        raise DataError(what, where=f"{name}, prompt {bad.prompt_id!r}", fix="score all responses of a model, or none")
    return [float(v) for v in values]


def _scores_by_prompt(name: str, responses: Sequence[EvaluatedResponse], field: str) -> dict[str, list[float]] | None:
    known = [a for a in responses if getattr(a, field) is not None] if field == "proxy" else responses
    values = _column(name, known, field)
    if values is None:
        return None
    grouped: dict[str, list[float]] = {}
    for response, value in zip(known, values, strict=True):
        grouped.setdefault(response.key, []).append(value)
    return grouped


def _known(ci: Interval) -> Interval | None:
    return None if math.isnan(ci[0]) or math.isnan(ci[1]) else ci
