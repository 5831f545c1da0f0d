"""Whether a reward model can be trusted: accuracy, log-loss, calibration and length bias on labelled answers. numpy.

Everything is counted over pairs of answers to one prompt. A pair says with which probability q its first answer is the
preferred one (1 where somebody simply decided); d is the score of the preferred answer minus that of the other, and a
Bradley-Terry model predicts sigmoid(d). Pairs tied in the labels (q = 1/2) are left out and counted; pairs tied in
score are half right and counted. Intervals resample whole prompts where a prompt has several pairs.
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
from tiltyard.evaluation.reward_pairs import FIELDS, Pair, pairs_of, taus_of
from tiltyard.stats.estimates import Estimate, binned, mean_ci, rate_ci
from tiltyard.types import Group

Floats = NDArray[np.float64]
BINS = 10
MARGIN_BINS = 5


class Reliability(NamedTuple):
    """One bin of predicted probability in [low, high): its mean prediction, and how often the prediction was right."""

    low: float
    high: float
    predicted: float
    observed: Estimate


class Row(NamedTuple):
    """Accuracy on some of the pairs, and beside it that of the rule "the longer answer is better"."""

    label: str
    accuracy: Estimate
    longer_wins: float


class Breakdown(NamedTuple):
    """Accuracy by the values of one field; `mean` weighs every value the same, however many pairs it has."""

    rows: list[Row]
    mean: float


@dataclass(frozen=True)
class RewardReport:
    """What `assess` found.

    `log_loss`: mean of -q log sigmoid(d) - (1-q) log sigmoid(-d), every pair weighing the same; ln 2 for a coin.
    `scale`: the factor for all scores that would make the log-loss least (below 1: the model is too sure; nan: no
    factor is best, because every pair is right), and `log_loss_scaled` the loss there.
    `ece`: sum over bins of (pairs in the bin / all pairs) |observed - predicted|, where a pair's prediction is
    sigmoid(|d|) and its outcome q if the higher score has the preferred answer, else 1 - q (equal scores: 1/2).
    `reliability` has 10 equally wide bins from 1/2 to 1, `reliability_full` as many equally full ones (`ece_full`).
    `longer_wins`: accuracy of the rule "the longer answer is better" (equal lengths: 1/2); `above_rule`: accuracy
    minus that. `picks_longer`: how often the score prefers the longer answer; `longer_excess`: picks_longer minus
    longer_wins, above 0 where the model's mistakes lean to long answers.
    `length_pearson`, `length_spearman`: correlation of the differences in score and in tokens, over every pair taken
    both ways round, so that it does not depend on which answer is called chosen.
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
    reliability: list[Reliability]
    reliability_full: list[Reliability]
    longer_wins: Estimate
    above_rule: Estimate
    picks_longer: Estimate
    longer_excess: Estimate
    length_pearson: float
    length_spearman: float
    by_margin: list[Row]
    by_length: list[Row]
    by_field: dict[str, Breakdown]
    tau: Estimate | None
    tau_undefined: int

    def to_dict(self) -> dict[str, Any]:
        """For programs: every tuple with its names. What is undefined is nan, which JSON writers make null."""
        return {f.name: _named(getattr(self, f.name)) for f in fields(self)}


def judge_groups(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> RewardReport:
    """The report on labelled groups and a reward model's score of each of their answers."""
    return assess(pairs_of(groups, scores), taus_of(groups, scores))


def assess(pairs: Sequence[Pair], taus: Sequence[tuple[Hashable, float]] = ()) -> RewardReport:
    """Every figure of the report.

    Args:
        pairs: scored pairs; those with q below 1/2 are turned round, those with q = 1/2 left out and counted.
        taus: (prompt, tau) of each ranking, nan where it is undefined.

    Raises:
        DataError: there is no pair that a label decides, or a score is not a finite number.
    """
    kept = _decided(pairs)
    d_P = np.array([p.chosen - p.rejected for p in kept], dtype=float)
    q_P = np.array([p.q for p in kept])
    longer_P = np.array([p.chosen_tokens - p.rejected_tokens for p in kept], dtype=float)
    names = [p.prompt for p in kept]
    clusters = names if len(set(names)) < len(names) else None  # a pair a prompt: Wilson's interval needs no more
    right_P, rule_P, picks_P = _half_steps(d_P), _half_steps(longer_P), _half_steps(d_P * longer_P)
    rows = _Rows(right_P, rule_P, clusters)
    outcome_P = q_P * right_P + (1 - q_P) * (1 - right_P)
    wide = _reliability(np.linspace(0.5, 1.0, BINS + 1).tolist(), d_P, outcome_P, clusters)
    full = _reliability(BINS, d_P, outcome_P, clusters)
    scale = best_scale(d_P, q_P)
    defined = [(name, tau) for name, tau in taus if not math.isnan(tau)]
    return RewardReport(
        pairs=len(kept),
        prompts=len(set(names)),
        tied_in_labels=len(pairs) - len(kept),
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
        length_pearson=_pearson(*_both_ways(d_P, longer_P)),
        length_spearman=_pearson(*(average_ranks(x) for x in _both_ways(d_P, longer_P))),
        by_margin=rows.by_margin(np.array([p.margin for p in kept], dtype=float)),
        by_length=rows.by_length(longer_P),
        by_field=rows.by_field([dict(p.labels) for p in kept]),
        tau=mean_ci([tau for _, tau in defined], [name for name, _ in defined]) if defined else None,
        tau_undefined=len(taus) - len(defined),
    )


# ------------------------------------------------------------------------------------------------------ the statistics


def log_loss_P(d_P: Floats, q_P: Floats) -> Floats:
    """-q log sigmoid(d) - (1-q) log sigmoid(-d) of each pair, in nats; finite for any finite d."""
    return q_P * np.logaddexp(0.0, -d_P) + (1 - q_P) * np.logaddexp(0.0, d_P)


def best_scale(d_P: Floats, q_P: Floats) -> float:
    """The factor a >= 0 at which the mean log-loss of a*d is least; nan where it falls for ever.

    The loss is convex in a, so the sign of its slope, mean d (sigmoid(a d) - q), is bisected.
    """
    size = float(np.abs(d_P).max())
    if size == 0:
        return 1.0  # every factor is as good as any other
    if bool(np.all((q_P == 1) & (d_P >= 0))):
        return math.nan
    x_P = d_P / size

    def slope(a: float) -> float:
        return float((x_P * (_sigmoid(a * x_P) - q_P)).mean())

    if slope(0.0) >= 0:
        return 0.0
    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2 / size


def average_ranks(x: Floats) -> Floats:
    """1 for the least value; equal values share the mean of their places."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


@dataclass(frozen=True)
class _Rows:
    """Accuracy, and that of the length rule, by whatever the pairs are sorted into."""

    right_P: Floats
    rule_P: Floats
    clusters: Sequence[Hashable] | None

    def row(self, label: str, where_P: NDArray[np.bool_]) -> Row:
        names = None if self.clusters is None else [c for c, w in zip(self.clusters, where_P, strict=True) if w]
        return Row(label, rate_ci(self.right_P[where_P], names), float(self.rule_P[where_P].mean()))

    def by_margin(self, margin_P: Floats) -> list[Row]:
        """Equally full bins of the margins that are known."""
        known_P = np.isfinite(margin_P)
        if not known_P.any():
            return []
        bins = binned(margin_P[known_P], MARGIN_BINS, self.right_P[known_P])
        found = []
        for number, part in enumerate(bins, 1):
            below_P = margin_P <= part.high if number == len(bins) else margin_P < part.high
            to = f"{'' if number == len(bins) else '<'}{part.high:.3g}"
            label = f"{part.low:.3g}" if part.low == part.high else f"{part.low:.3g} to {to}"
            found.append((label, known_P & (margin_P >= part.low) & below_P))
        return [self.row(label, where_P) for label, where_P in found if where_P.any()]

    def by_length(self, longer_P: Floats) -> list[Row]:
        """By tokens of the chosen answer minus those of the rejected one, in thirds of their size to either side."""
        size_P = np.abs(longer_P)
        if not size_P.any():
            return []
        cuts = np.unique(np.ceil(np.quantile(size_P[size_P > 0], [1 / 3, 2 / 3])))
        edges = [1.0, *(float(c) for c in cuts if c > 1), math.inf]
        spans = list(itertools.pairwise(edges))
        found = [(f"chosen shorter by {_span(*s)}", (-longer_P >= s[0]) & (-longer_P < s[1])) for s in spans[::-1]]
        found += [("same length", longer_P == 0)]
        found += [(f"chosen longer by {_span(*s)}", (longer_P >= s[0]) & (longer_P < s[1])) for s in spans]
        return [self.row(label, where_P) for label, where_P in found if where_P.any()]

    def by_field(self, labels: Sequence[Mapping[str, str]]) -> dict[str, Breakdown]:
        found = {}
        for name in FIELDS:
            values = np.array([row.get(name) for row in labels], dtype=object)
            rows = [self.row(value, values == value) for value in sorted({v for v in values if v is not None})]
            if rows:
                found[name] = Breakdown(rows, float(np.mean([row.accuracy.value for row in rows])))
        return found


def _decided(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that are not tied in their labels, the likelier preferred answer first; every score is checked."""
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
    kept = [pair if pair.q > 0.5 else pair.swapped() for pair in pairs if pair.q != 0.5]
    if not kept:
        raise DataError(
            "no two answers are told apart by their labels",
            got=f"{len(pairs):,} pairs, all tied" if pairs else "no pair",
            expected="two or more answers a row, one better than another",
            fix="give comparisons: prompt, chosen, rejected; or prompt, responses with scores or ranks",
        )
    return kept


def _reliability(
    bins: int | Sequence[float], d_P: Floats, outcome_P: Floats, clusters: Sequence[Hashable] | None
) -> list[Reliability]:
    """Bins without pairs are left out."""
    confidence_P = np.clip(_sigmoid(np.abs(d_P)), 0.5, 1.0)  # rounding may fall a hair below one half
    observed = binned(confidence_P, bins, outcome_P, clusters)
    predicted = binned(confidence_P, bins, confidence_P)
    both = zip(observed, predicted, strict=True)
    return [Reliability(o.low, o.high, p.rate.value, o.rate) for o, p in both if o.rate.n]


def _ece(bins: Sequence[Reliability]) -> float:
    total = sum(b.observed.n for b in bins)
    return sum(b.observed.n / total * abs(b.observed.value - b.predicted) for b in bins)


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))


def _half_steps(x: Floats) -> Floats:
    """1 above zero, 0 below, 1/2 at it."""
    return (np.sign(x) + 1) / 2


def _both_ways(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    return np.concatenate([x, -x]), np.concatenate([y, -y])


def _pearson(x: Floats, y: Floats) -> float:
    a, b = x - x.mean(), y - y.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else math.nan


def _span(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{low:,.0f} or more"
    return f"{low:,.0f}" if high == low + 1 else f"{low:,.0f} to {high - 1:,.0f}"


def _named(value: Any) -> Any:
    """Records as mappings all the way down."""
    if hasattr(value, "_asdict"):
        return {key: _named(item) for key, item in value._asdict().items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return {key: _named(item) for key, item in value.items()} if isinstance(value, dict) else value
