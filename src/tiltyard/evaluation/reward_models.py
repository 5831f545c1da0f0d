"""Evaluation of a reward model on labelled responses: accuracy, log-loss, calibration, length bias.

All figures are over pairs of responses to one prompt. q is the probability that the first response of a pair is the
preferred one (1 for a hard label); d is the score of the preferred response minus that of the other, for which a
Bradley-Terry model predicts sigmoid(d). Pairs tied in the labels (q = 1/2) are excluded and counted; pairs tied in
score count one half and are counted. Intervals resample whole prompts if a prompt has several pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import DataError
from tiltyard.evaluation.scored_pairs import FIELDS, ScoredPair, ranking_taus, scored_pairs
from tiltyard.numerals import plural
from tiltyard.stats.bins import binned
from tiltyard.stats.intervals import Estimate, mean_ci, rate_ci
from tiltyard.types import Group

Floats = NDArray[np.float64]
BINS = 10
MARGIN_BINS = 5


class ReliabilityBin(NamedTuple):
    """A bin of predicted probabilities in [low, high): mean prediction and observed accuracy."""

    low: float
    high: float
    predicted: float
    observed: Estimate


class AccuracyRow(NamedTuple):
    """Accuracy on a subset of the pairs, and the accuracy of the rule "the longer response is better" there."""

    label: str
    accuracy: Estimate
    longer_wins: float


class Breakdown(NamedTuple):
    """Accuracy by the values of one field; `mean` is the unweighted mean over the values."""

    rows: list[AccuracyRow]
    mean: float


@dataclass(frozen=True)
class RewardReport:
    """The evaluation of a reward model; see `evaluate_pairs`.

    `log_loss`: unweighted mean of -q log sigmoid(d) - (1-q) log sigmoid(-d); ln 2 for random guessing.
    `scale`: the factor for all scores that minimises the log-loss (below 1: overconfident; nan: no minimum, because
    every pair is right), and `log_loss_scaled` the log-loss there.
    `ece`: sum over bins of (pairs in the bin / all pairs) |observed - predicted|, where a pair's prediction is
    sigmoid(|d|) and its outcome q if the preferred response has the higher score, else 1 - q (equal scores: 1/2).
    `reliability` has 10 equally wide bins from 1/2 to 1, `reliability_full` as many equally full ones (`ece_full`).
    `longer_wins`: accuracy of the rule "the longer response is better" (equal lengths: 1/2); `above_rule`: accuracy
    minus that. `picks_longer`: how often the score prefers the longer response; `longer_excess`: picks_longer minus
    longer_wins, above 0 if the errors favour long responses.
    `length_pearson`, `length_spearman`: correlation of the differences in score and in tokens, over every pair in both
    orders, so that it does not depend on which response is called chosen.
    `tau`: mean Kendall tau-b of labels and scores over rankings of 3 and more; `tau_undefined` of them have none.
    """

    pairs: int
    prompts: int
    tied_in_labels: int
    tied_in_score: int
    soft: int
    accuracy: Estimate
    log_loss: Estimate
    scale: float
    log_loss_scaled: float
    ece: float
    ece_full: float
    reliability: list[ReliabilityBin]
    reliability_full: list[ReliabilityBin]
    longer_wins: Estimate
    above_rule: Estimate
    picks_longer: Estimate
    longer_excess: Estimate
    length_pearson: float
    length_spearman: float
    by_margin: list[AccuracyRow]
    by_length: list[AccuracyRow]
    by_field: dict[str, Breakdown]
    tau: Estimate | None
    tau_undefined: int

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dictionaries; undefined figures are nan, which JSON writers turn into null."""
        return {f.name: _named(getattr(self, f.name)) for f in fields(self)}


def evaluate_scores(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> RewardReport:
    """Evaluates a reward model's scores of the responses of labelled groups."""
    return evaluate_pairs(scored_pairs(groups, scores), ranking_taus(groups, scores))


def evaluate_pairs(pairs: Sequence[ScoredPair], taus: Sequence[tuple[Hashable, float]] = ()) -> RewardReport:
    """Computes all figures of the report.

    Args:
        pairs: scored pairs; those with q below 1/2 are swapped, those with q = 1/2 excluded and counted.
        taus: (prompt, tau) of each ranking, nan if undefined.

    Raises:
        DataError: no pair has a preferred response, or a score is not finite.
    """
    decided = _decided(pairs)
    d_P = np.array([p.chosen - p.rejected for p in decided], dtype=float)
    q_P = np.array([p.q for p in decided])
    longer_P = np.array([p.chosen_tokens - p.rejected_tokens for p in decided], dtype=float)
    prompts = [p.prompt for p in decided]
    clusters = prompts if len(set(prompts)) < len(prompts) else None  # a pair a prompt: Wilson's interval
    right_P, rule_P, picks_P = _half_steps(d_P), _half_steps(longer_P), _half_steps(d_P * longer_P)
    breakdowns = _Breakdowns(right_P, rule_P, clusters)
    outcome_P = q_P * right_P + (1 - q_P) * (1 - right_P)
    wide = _reliability(np.linspace(0.5, 1.0, BINS + 1).tolist(), d_P, outcome_P, clusters)
    full = _reliability(BINS, d_P, outcome_P, clusters)
    scale = best_scale(d_P, q_P)
    defined = [(prompt, tau) for prompt, tau in taus if not math.isnan(tau)]
    return RewardReport(
        pairs=len(decided),
        prompts=len(set(prompts)),
        tied_in_labels=len(pairs) - len(decided),
        tied_in_score=int((d_P == 0).sum()),
        soft=int((q_P < 1).sum()),
        accuracy=rate_ci(right_P, clusters),
        log_loss=mean_ci(log_loss_P(d_P, q_P), clusters),
        scale=scale,
        log_loss_scaled=0.0 if math.isnan(scale) else float(log_loss_P(scale * d_P, q_P).mean()),
        ece=_ece(wide),
        ece_full=_ece(full),
        reliability=wide,
        reliability_full=full,
        longer_wins=rate_ci(rule_P, clusters),
        above_rule=mean_ci(right_P - rule_P, clusters),
        picks_longer=rate_ci(picks_P, clusters),
        longer_excess=mean_ci(picks_P - rule_P, clusters),
        length_pearson=_pearson(*_both_orders(d_P, longer_P)),
        length_spearman=_spearman(*_both_orders(d_P, longer_P)),
        by_margin=breakdowns.by_margin(np.array([p.margin for p in decided], dtype=float)),
        by_length=breakdowns.by_length(longer_P),
        by_field=breakdowns.by_field([dict(p.labels) for p in decided]),
        tau=mean_ci([tau for _, tau in defined], [prompt for prompt, _ in defined]) if defined else None,
        tau_undefined=len(taus) - len(defined),
    )


# ------------------------------------------------------------------------------------------------------ the statistics


def log_loss_P(d_P: Floats, q_P: Floats) -> Floats:
    """Returns -q log sigmoid(d) - (1-q) log sigmoid(-d) of each pair, in nats; finite for any finite d."""
    return q_P * np.logaddexp(0.0, -d_P) + (1 - q_P) * np.logaddexp(0.0, d_P)


def best_scale(d_P: Floats, q_P: Floats) -> float:
    """Returns the factor a >= 0 that minimises the mean log-loss of a*d; nan if the loss has no minimum.

    The loss is convex in a, so its derivative, mean d (sigmoid(a d) - q), has at most one root.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    size = float(np.abs(d_P).max())
    if size == 0:
        return 1.0  # the loss does not depend on the factor
    if bool(np.all((q_P == 1) & (d_P >= 0))):
        return math.nan
    x_P = d_P / size

    def derivative(a: float) -> float:
        return float((x_P * (expit(a * x_P) - q_P)).mean())

    if derivative(0.0) >= 0:
        return 0.0
    high = 1.0
    while derivative(high) < 0:
        high *= 2
    return float(brentq(derivative, 0.0, high, xtol=1e-14 * high, rtol=1e-14)) / size


@dataclass(frozen=True)
class _Breakdowns:
    """Accuracy of the scores and of the length rule on subsets of the pairs."""

    right_P: Floats
    rule_P: Floats
    clusters: Sequence[Hashable] | None

    def row(self, label: str, where_P: NDArray[np.bool_]) -> AccuracyRow:
        names = None if self.clusters is None else [c for c, w in zip(self.clusters, where_P, strict=True) if w]
        return AccuracyRow(label, rate_ci(self.right_P[where_P], names), float(self.rule_P[where_P].mean()))

    def by_margin(self, margin_P: Floats) -> list[AccuracyRow]:
        """Accuracy in equally full bins of the known margins."""
        known_P = np.isfinite(margin_P)
        if not known_P.any():
            return []
        bins = binned(margin_P[known_P], MARGIN_BINS, self.right_P[known_P])
        subsets = []
        for number, part in enumerate(bins, 1):
            below_P = margin_P <= part.high if number == len(bins) else margin_P < part.high
            to = f"{'' if number == len(bins) else '<'}{part.high:.3g}"
            label = f"{part.low:.3g}" if part.low == part.high else f"{part.low:.3g} to {to}"
            subsets.append((label, known_P & (margin_P >= part.low) & below_P))
        return [self.row(label, where_P) for label, where_P in subsets if where_P.any()]

    def by_length(self, longer_P: Floats) -> list[AccuracyRow]:
        """Accuracy by tokens of chosen minus tokens of rejected, in thirds of their size on either side."""
        size_P = np.abs(longer_P)
        if not size_P.any():
            return []
        cuts = np.unique(np.ceil(np.quantile(size_P[size_P > 0], [1 / 3, 2 / 3])))
        edges = [1.0, *(float(c) for c in cuts if c > 1), math.inf]
        spans = list(itertools.pairwise(edges))
        subsets = [(f"chosen shorter by {_span(*s)}", (-longer_P >= s[0]) & (-longer_P < s[1])) for s in spans[::-1]]
        subsets += [("same length", longer_P == 0)]
        subsets += [(f"chosen longer by {_span(*s)}", (longer_P >= s[0]) & (longer_P < s[1])) for s in spans]
        return [self.row(label, where_P) for label, where_P in subsets if where_P.any()]

    def by_field(self, labels: Sequence[Mapping[str, str]]) -> dict[str, Breakdown]:
        breakdowns = {}
        for name in FIELDS:
            values = np.array([row.get(name) for row in labels], dtype=object)
            rows = [self.row(value, values == value) for value in sorted({v for v in values if v is not None})]
            if rows:
                breakdowns[name] = Breakdown(rows, float(np.mean([row.accuracy.value for row in rows])))
        return breakdowns


def _decided(pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """Returns the pairs that are not tied in their labels, the preferred response first; checks every score."""
    for pair in pairs:
        if not 0 <= pair.q <= 1:
            raise DataError("the probability of a label must lie in 0..1", where=pair.origin, got=pair.q)
        if not (math.isfinite(pair.chosen) and math.isfinite(pair.rejected)):
            raise DataError(
                "the reward model gave a score that is not a finite number",
                where=pair.origin,
                got=f"{pair.chosen} and {pair.rejected}",
                fix="try dtype=float32; a model whose weights are broken must be trained again",
            )
    decided = [pair if pair.q > 0.5 else pair.swapped() for pair in pairs if pair.q != 0.5]
    if not decided:
        raise DataError(
            "no pair of responses has different labels",
            got=f"{plural(len(pairs), 'pair')}, all tied" if pairs else "no pair",
            expected="two or more responses a row, one better than another",
            fix="give comparisons: prompt, chosen, rejected; or prompt, responses with scores or ranks",
        )
    return decided


def _reliability(
    bins: int | Sequence[float], d_P: Floats, outcome_P: Floats, clusters: Sequence[Hashable] | None
) -> list[ReliabilityBin]:
    """Returns the bins that have pairs."""
    from scipy.special import expit

    confidence_P = np.clip(expit(np.abs(d_P)), 0.5, 1.0)
    observed = binned(confidence_P, bins, outcome_P, clusters)
    predicted = binned(confidence_P, bins, confidence_P)
    bins_of_both = zip(observed, predicted, strict=True)
    return [ReliabilityBin(o.low, o.high, p.rate.value, o.rate) for o, p in bins_of_both if o.rate.n]


def _ece(bins: Sequence[ReliabilityBin]) -> float:
    total = sum(b.observed.n for b in bins)
    return sum(b.observed.n / total * abs(b.observed.value - b.predicted) for b in bins)


def _half_steps(x: Floats) -> Floats:
    """Returns 1 above zero, 0 below, 1/2 at zero."""
    return (np.sign(x) + 1) / 2


def _both_orders(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    return np.concatenate([x, -x]), np.concatenate([y, -y])


def _pearson(x: Floats, y: Floats) -> float:
    a, b = x - x.mean(), y - y.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else math.nan


def _spearman(x: Floats, y: Floats) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(x), rankdata(y))


def _span(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{low:,.0f} or more"
    return f"{low:,.0f}" if high == low + 1 else f"{low:,.0f} to {high - 1:,.0f}"


def _named(value: Any) -> Any:
    """Converts nested records to dictionaries."""
    if hasattr(value, "_asdict"):
        return {key: _named(item) for key, item in value._asdict().items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return {key: _named(item) for key, item in value.items()} if isinstance(value, dict) else value
