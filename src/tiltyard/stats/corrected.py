"""Judge-corrected rates: people label a part of the items, a judge all of them.

A judge's own rate is biased by its errors. Two corrections, both with intervals that carry the noise of the part that
people labelled: Rogan-Gladen from sensitivity and specificity (Lee et al. 2025, arXiv 2511.21140), and
prediction-powered inference (Angelopoulos et al. 2023, arXiv 2311.01453; for judges Chen et al. 2026, arXiv
2601.05420), which needs no model of the errors. The labelled part is a random sample of the items: an even one, or one
drawn with known probabilities (`chosen_with`), whose labels then count with their inverses (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.intervals import Clusters, Estimate, expanded_tail, mean_ci, normal_quantile, rate_ci, wilson

Method = Literal["rogan_gladen", "ppi", "people"]
Floats = NDArray[np.float64]

_CHUNK = 4_000_000  # numbers in memory at once


class Corrected(NamedTuple):
    """A corrected rate beside the judge's own and the people's own.

    `method` "people" is the people's own rate, where the judge is of no use; `reason` holds the cause.
    `sensitivity` and `specificity` are the judge's on the labelled items (nan if the outcomes are no 0 and 1),
    `weight` is that of the judge's answers (PPI's lambda; 1 for Rogan-Gladen).
    """

    estimate: Estimate
    judge: Estimate
    people: Estimate
    method: Method
    sensitivity: float
    specificity: float
    weight: float
    reason: str = ""


def rogan_gladen(
    judge: ArrayLike,
    people: ArrayLike,
    clusters: Clusters = None,
    *,
    chosen_with: ArrayLike | None = None,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Corrected:
    """Computes (p + q0 - 1) / (q0 + q1 - 1), within 0..1: p the judge's rate, q1 sensitivity, q0 specificity.

    `judge`: [N], 0 or 1; `people`: [N], 0, 1, or NaN where no person labelled the item. p is over the items without a
    person's label (all, if every item has one), so that its noise is apart from that of q0 and q1. Interval: the
    bootstrap over clusters (prompts; None: items) of the same estimate, each of p, q0, q1 with z^2/2, 1 and 1
    successes and failures added as in Lee et al., so that a rate of 1 has noise too.

    `chosen_with`: [N], the probability with which each item was given to people (read where they labelled it). Then
    q0, q1 and the people's own rate weight labels by its inverse, scaled to their effective number, and p is over all
    items, because those that remain are no even sample.

    Where sensitivity + specificity - 1 is not shown to be above 0, the judge is of no use, and the people's own rate
    is returned.

    Raises:
        DataError: outcomes other than 0 and 1, or labels of one value alone (q0 or q1 is then unknown).
    """
    f_N, h_N, labelled_N = _checked(judge, people, clusters)
    weight_N = _weights(chosen_with, labelled_N)
    if not (np.isin(f_N, [0, 1]).all() and np.isin(h_N[labelled_N], [0, 1]).all()):
        raise DataError(
            "sensitivity and specificity need outcomes that are 0 or 1", fix="leave out ties, or use `ppi_rate`"
        )
    test_N = ~labelled_N if chosen_with is None and not labelled_N.all() else np.ones_like(labelled_N)
    won_N, lost_N = labelled_N & (h_N == 1), labelled_N & (h_N == 0)
    if not won_N.any() or not lost_N.any():
        raise DataError(
            "the people's labels are all the same: sensitivity or specificity is unknown",
            got=f"{int(won_N.sum())} ones, {int(lost_N.sum())} zeros",
            fix="label more items, or use `ppi_rate`",
        )
    won_N, lost_N = won_N * weight_N, lost_N * weight_N
    columns_NK = np.stack([test_N, test_N * f_N, won_N, won_N * f_N, lost_N, lost_N * (1 - f_N)], 1).astype(float)
    total_K = columns_NK.sum(0)
    q1, q0 = total_K[3] / total_K[2], total_K[5] / total_K[4]
    theta = float(np.clip((total_K[1] / total_K[0] + q0 - 1) / (q0 + q1 - 1), 0, 1)) if q0 + q1 != 1 else math.nan
    total_RK, n_clusters = _resampled(columns_NK, clusters, rounds, seed)
    theta_R, youden_R = _rogan_gladen_R(total_RK, level)
    shared = _beside(f_N, h_N, weight_N, clusters, rounds, seed, level, even=chosen_with is None)
    tail = expanded_tail(n_clusters, level) if n_clusters > 1 else 0.5
    if n_clusters < 2 or np.quantile(youden_R, tail) <= 0:
        why = f"sensitivity {q1:.2f} + specificity {q0:.2f} is not shown to be above 1: the judge is of no use"
        return Corrected(shared[1], *shared, "people", q1, q0, 0.0, why)
    low, high = np.quantile(theta_R, [tail, 1 - tail])
    estimate = Estimate(theta, min(float(low), theta), max(float(high), theta), len(f_N))
    return Corrected(estimate, *shared, "rogan_gladen", q1, q0, 1.0)


def _rogan_gladen_R(total_RK: Floats, level: float) -> tuple[Floats, Floats]:
    """The estimate, and sensitivity + specificity - 1, of every resample."""
    z2 = normal_quantile(level) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        p_R = (total_RK[:, 1] + z2 / 2) / (total_RK[:, 0] + z2)
        q1_R, q0_R = ((total_RK[:, k + 1] + 1) / (total_RK[:, k] + 2) for k in (2, 4))
        theta_R = np.clip((p_R + q0_R - 1) / (q0_R + q1_R - 1), 0, 1)
        youden_R = total_RK[:, 3] / total_RK[:, 2] + total_RK[:, 5] / total_RK[:, 4] - 1  # nothing added: it would help
    return theta_R, np.nan_to_num(youden_R)  # a resample without one of the labels shows nothing


def ppi_rate(
    judge: ArrayLike,
    people: ArrayLike,
    clusters: Clusters = None,
    *,
    chosen_with: ArrayLike | None = None,
    weight: float | None = None,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Corrected:
    """Computes the mean label of people on labelled items, plus weight x (judge there not labelled - judge labelled).

    `judge`: [N] outcomes or probabilities (1 a win, 1/2 a tie); `people`: [N], NaN where no person labelled. `weight`
    None is the one of smallest variance, cov(people, judge) / ((1 + n/N) var(judge)) within 0..1 (PPI++, eq. 5): a
    useless judge gets weight 0 and the people's own interval comes out, but for the weight's own noise. Interval: the
    bootstrap over clusters (prompts; None: items), the weight computed anew in each resample.

    `chosen_with`: [N], the probability with which each item was given to people (read where they labelled it). Means
    over labelled items then weight each by its inverse (Hajek's ratio), and the judge's mean over all items takes the
    place of the one over the others; of the weight the covariance and variance count with the square of the inverses,
    as they do in the estimate's variance. With equal probabilities it is the same estimate.

    Raises:
        DataError: outcomes outside 0..1, fewer than two labels of people, or probabilities outside (0, 1].
    """
    f_N, h_N, labelled_N = _checked(judge, people, clusters)
    w_N = _weights(chosen_with, labelled_N)
    if weight is not None and not 0 <= weight <= 1:
        raise DataError("the judge's weight lies in 0..1", got=weight)
    shared = _beside(f_N, h_N, w_N, clusters, rounds, seed, level, even=chosen_with is None)
    q1, q0 = _accuracies(f_N, h_N, w_N)
    if labelled_N.all():
        return Corrected(shared[1], *shared, "people", q1, q0, 0.0, "people labelled every item")
    h_N = np.where(labelled_N, h_N, 0.0)
    products_KN = np.stack([np.ones_like(f_N), h_N, f_N, f_N * h_N, f_N * f_N])
    columns = [np.stack([np.ones_like(f_N), f_N, labelled_N]), w_N * products_KN[:3], w_N**2 * products_KN]
    columns_NK = np.concatenate(columns).T
    theta, lam = (float(x[0]) for x in _ppi(columns_NK.sum(0)[None], weight))
    if lam == 0:
        return Corrected(shared[1], *shared, "people", q1, q0, 0.0, "the judge does not vary with people's labels")
    total_RK, n_clusters = _resampled(columns_NK, clusters, rounds, seed)
    theta_R = _ppi(total_RK, weight)[0]
    if n_clusters < 2:
        low, high = math.nan, math.nan
    else:
        tail = expanded_tail(n_clusters, level)
        low, high = (float(x) for x in np.quantile(theta_R, [tail, 1 - tail]))
    return Corrected(Estimate(theta, low, high, len(f_N)), *shared, "ppi", q1, q0, lam)


def _ppi(total_RK: Floats, weight: float | None) -> tuple[Floats, Floats]:
    """Returns the estimate and the weight of each resample, from the sums of its columns.

    The weight is that of the judge's answers on the other items. In terms of all items, whose mean is used here, it is
    larger by N / (N - n): both are the same estimate.
    """
    all_R, f_R, n_R, w_R, wh_R, wf_R, v_R, vh_R, vf_R, vfh_R, vff_R = total_RK.T
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance_R = vfh_R / v_R - vf_R * vh_R / v_R**2
        variance_R = vff_R / v_R - (vf_R / v_R) ** 2
        others_R = (all_R - n_R) / all_R
        best_R = np.where(variance_R > 1e-12, covariance_R / variance_R * others_R, 0.0)
        lam_R = np.clip(best_R, 0, 1) if weight is None else np.full_like(n_R, weight)
        of_all_R = np.where(others_R > 0, lam_R / others_R, 0.0)
        return wh_R / w_R + of_all_R * (f_R / all_R - wf_R / w_R), lam_R


def _checked(judge: ArrayLike, people: ArrayLike, clusters: Clusters) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    f_N, h_N = finite(judge, "judge"), np.asarray(people, dtype=float)
    if h_N.shape != f_N.shape or (clusters is not None and len(clusters) != len(f_N)):
        raise DataError(
            "judge, people and clusters stand in the same order and number",
            got=f"{f_N.shape}, {h_N.shape}, {'none' if clusters is None else len(clusters)}",
        )
    labelled_N = ~np.isnan(h_N)
    if labelled_N.sum() < 2:
        raise DataError("a correction needs two labels of people at least", got=int(labelled_N.sum()))
    both = np.concatenate([f_N, h_N[labelled_N]])
    if both.min() < 0 or both.max() > 1:
        raise DataError("an outcome must lie in 0..1", got=f"{both.min():g} .. {both.max():g}")
    return f_N, h_N, labelled_N


def _weights(chosen_with: ArrayLike | None, labelled_N: NDArray[np.bool_]) -> Floats:
    """Returns the weight of each label, 0 where there is none; their sum is the effective number of labels (Kish)."""
    if chosen_with is None:
        return labelled_N.astype(float)
    p_N = np.asarray(chosen_with, dtype=float)
    if p_N.shape != labelled_N.shape:
        raise DataError("each item has a probability", got=f"{p_N.shape} for {labelled_N.shape}")
    p_L = p_N[labelled_N]
    if not ((p_L > 0) & (p_L <= 1)).all():
        raise DataError(
            "the probability with which an item was given to people lies above 0, and at most at 1",
            got=f"{p_L.min():g} .. {p_L.max():g}",
        )
    w_N = np.zeros(len(p_N))
    w_N[labelled_N] = 1 / p_L
    return w_N * w_N.sum() / (w_N**2).sum()


def _accuracies(f_N: Floats, h_N: Floats, w_N: Floats) -> tuple[float, float]:
    """Returns sensitivity and specificity; nan without labels of that value, or with outcomes between 0 and 1."""
    labelled_N = w_N > 0
    if not (np.isin(f_N, [0, 1]).all() and np.isin(h_N[labelled_N], [0, 1]).all()):
        return math.nan, math.nan
    won_N, lost_N = w_N * (labelled_N & (h_N == 1)), w_N * (labelled_N & (h_N == 0))
    return (
        float(won_N @ f_N / won_N.sum()) if won_N.any() else math.nan,
        float(lost_N @ (1 - f_N) / lost_N.sum()) if lost_N.any() else math.nan,
    )


def _beside(
    f_N: Floats, h_N: Floats, w_N: Floats, clusters: Clusters, rounds: int, seed: int, level: float, *, even: bool
) -> tuple[Estimate, Estimate]:
    """Returns the judge's own rate on all items and the people's own on theirs."""
    labelled_N = w_N > 0
    names = None if clusters is None else list(clusters)
    own = None if names is None else [c for c, there in zip(names, labelled_N, strict=True) if there]
    judged = rate_ci(f_N, names, rounds=rounds, seed=seed, level=level)
    h_L = h_N[labelled_N]
    if not even:
        return judged, _weighted_rate(h_L, w_N[labelled_N], own, rounds, seed, level)
    labels = mean_ci if names is None and not np.isin(h_L, [0, 1]).all() else rate_ci  # Wilson is for 0 and 1
    return judged, labels(h_L, own, rounds=rounds, seed=seed, level=level)


def _weighted_rate(h_L: Floats, w_L: Floats, clusters: Clusters, rounds: int, seed: int, level: float) -> Estimate:
    """The weighted mean of labels; bootstrap interval, or Wilson's of the effective number where all are equal."""
    value = float(w_L @ h_L / w_L.sum())
    if len(set(h_L)) == 1 and value in (0.0, 1.0):
        effective = max(1, round(float(w_L.sum())))
        return Estimate(value, *wilson(value * effective, effective, level), len(h_L))
    total_RK, n_clusters = _resampled(np.stack([w_L, w_L * h_L], 1), clusters, rounds, seed)
    if n_clusters < 2:
        return Estimate(value, math.nan, math.nan, len(h_L))
    tail = expanded_tail(n_clusters, level)
    low, high = np.quantile(total_RK[:, 1] / total_RK[:, 0], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(h_L))


def _resampled(columns_NK: Floats, clusters: Clusters, rounds: int, seed: int) -> tuple[Floats, int]:
    """Returns the sums of the columns in each resample of the clusters, and the number of clusters."""
    if rounds < 1:
        raise DataError("the bootstrap needs at least one round", got=rounds)
    sums_PK = columns_NK
    if clusters is not None:
        number: dict[Hashable, int] = {}
        index_N = np.array([number.setdefault(c, len(number)) for c in clusters])
        sums_PK = np.zeros((len(number), columns_NK.shape[1]))
        np.add.at(sums_PK, index_N, columns_NK)
    n_clusters = len(sums_PK)
    sums_PK, n_P = np.unique(sums_PK, axis=0, return_counts=True)  # resampling counts rows, whatever their number
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(sums_PK))
    totals = [
        rng.multinomial(n_clusters, n_P / n_clusters, size=min(step, rounds - start)) @ sums_PK
        for start in range(0, rounds, step)
    ]
    return np.concatenate(totals), n_clusters
