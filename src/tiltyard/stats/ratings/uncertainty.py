"""Intervals of ratings: the sandwich covariance and the bootstrap, both with whole prompts, and intervals of ranks."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from tiltyard.errors import DataError, nearest
from tiltyard.stats.intervals import expanded_tail, normal_quantile
from tiltyard.stats.ratings.battles import Floats, Ints
from tiltyard.stats.ratings.bradley_terry import Fit
from tiltyard.stats.ratings.connected import connectivity, strongly_connected, tie_model_is_finite
from tiltyard.stats.ratings.newton import bounded, maximise

IntervalMethod = Literal["sandwich", "bootstrap"]

_CHUNK = 4_000_000  # numbers in memory at once


def sandwich(fit: Fit) -> Floats:
    """Computes the covariance of the ratings with prompts as clusters, shape [M, M]; nan for models without a rating.

    Raises:
        DataError: battles of a single prompt.
    """
    rated_K = fit.connectivity.rated_K
    covariance_MM = np.full((len(fit.models), len(fit.models)), np.nan)
    covariance_MM[np.ix_(rated_K, rated_K)] = parameter_covariance(fit)[: len(rated_K), : len(rated_K)]
    return covariance_MM


def parameter_covariance(fit: Fit) -> Floats:
    """Computes the covariance of the rated models' ratings, the coefficients and the parameter of ties, shape [P, P].

    H^-1 (sum_c g_c g_c^T) H^-1 C / (C - 1), g_c the gradient of the battles of prompt c (Huber 1967; Liang & Zeger
    1986). It holds where the likelihood is not the truth: half-wins, weights, several battles of one prompt. The
    parameter of ties is log nu of Davidson or log kappa of Rao and Kupper.

    Raises:
        DataError: battles of a single prompt.
    """
    from scipy.sparse import csr_array, hstack

    design, rows, n = fit.design, fit.rows, len(fit.rows.row_N)
    if rows.n_clusters < 2:
        raise DataError("intervals need battles of two prompts at least", got="one prompt")
    count_N3 = np.zeros((n, 3))
    count_N3[np.arange(n), rows.outcome_N] = rows.weight_N
    # each battle as a weighting of its own would need [N, U]: as a comparison of its own it is [1, N]
    own = design._replace(i_U=design.i_U[rows.row_N], j_U=design.j_U[rows.row_N], x_UK=design.x_UK[rows.row_N])
    terms = own.terms(fit.parameter_P[None], count_N3[None])
    score_NP = own.linear().multiply(terms.d[0][:, None]).tocsr()
    if design.has_tie:
        score_NP = hstack([score_NP, csr_array(terms.t[0][:, None])]).tocsr()
    member_CN = csr_array((np.ones(n), (rows.cluster_N, np.arange(n))), shape=(rows.n_clusters, n))
    score_CP = member_CN @ score_NP
    meat_PP = (score_CP.T @ score_CP).toarray() * rows.n_clusters / (rows.n_clusters - 1)
    bread_PP = np.linalg.inv(fit.information_PP)
    return np.asarray(bread_PP @ meat_PP @ bread_PP)


def bootstrap(fit: Fit, *, rounds: int = 1000, seed: int = 0) -> Floats:
    """Refits the ratings on prompts drawn with replacement, shape [R, M].

    Prompts whose battles are the same are drawn as one with their number: the draws are multinomial weights of unique
    rows. In a draw where some models cannot be compared, those outside its largest component are +inf, -inf or nan;
    in one whose likelihood has no finite maximum for another reason (ties, lengths), all are nan.

    Raises:
        DataError: no round, or battles of a single prompt.
    """
    if rounds < 1:
        raise DataError("the bootstrap needs at least one round", got=rounds)
    design, rows = fit.design, fit.rows
    if rows.n_clusters < 2:
        raise DataError("intervals need battles of two prompts at least", got="one prompt")
    profile_QC, times_Q = _profiles(fit)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // max(len(times_Q), 3 * rows.n_unique, design.n_parameters**2))
    ratings = []
    for start in range(0, rounds, at_once):
        draw_RQ = rng.multinomial(rows.n_clusters, times_Q / rows.n_clusters, size=min(at_once, rounds - start))
        count_RU3 = (draw_RQ @ profile_QC).reshape(len(draw_RQ), rows.n_unique, 3)
        unrated_RK = _without_the_unrated(fit, count_RU3)
        ratings.append(np.where(unrated_RK == 0, _refitted(fit, count_RU3), unrated_RK))
    return fit.scattered(_centred(np.concatenate(ratings)))


def _refitted(fit: Fit, count_RU3: Floats) -> Floats:
    """Returns the ratings of each draw, [R, K]; nan where its likelihood has no finite maximum."""
    k, rating_RK = fit.design.n_models, np.full((len(count_RU3), fit.design.n_models), np.nan)
    tied_R = count_RU3[..., 2].sum(1) > 0
    for has_tie in (True, False):  # a draw without a tie has no parameter of ties
        drawn_R = np.flatnonzero((tied_R & fit.design.has_tie) == has_tie)
        if has_tie:
            drawn_R = (
                drawn_R[[_is_finite(fit, count_U3) for count_U3 in count_RU3[drawn_R]]] if len(drawn_R) else drawn_R
            )
        if len(drawn_R) == 0:
            continue
        design = fit.design._replace(has_tie=has_tie)
        solution = maximise(design, count_RU3[drawn_R], fit.parameter_P[: design.n_parameters])
        rating_RK[drawn_R] = np.where(bounded(solution)[:, None], solution.parameter_RP[:, :k], np.nan)
    return rating_RK


def _is_finite(fit: Fit, count_U3: Floats) -> bool:
    i_U, j_U, k = fit.design.i_U, fit.design.j_U, fit.design.n_models
    wins_KK, ties_KK = np.zeros((k, k)), np.zeros((k, k))
    np.add.at(wins_KK, (i_U, j_U), count_U3[:, 0])
    np.add.at(wins_KK, (j_U, i_U), count_U3[:, 1])
    np.add.at(ties_KK, (i_U, j_U), count_U3[:, 2])
    return tie_model_is_finite(wins_KK, ties_KK + ties_KK.T)


def _profiles(fit: Fit):  # type: ignore[no-untyped-def]
    """Returns the weights of the cells (comparison, outcome) of each unique prompt, sparse [Q, 3 U], and its number."""
    from scipy.sparse import csr_array

    rows = fit.rows
    shape = (rows.n_clusters, 3 * rows.n_unique)
    cells = csr_array((rows.weight_N, (rows.cluster_N, rows.row_N * 3 + rows.outcome_N)), shape=shape)
    cells.sum_duplicates()
    start, first, times = cells.indptr, list[int](), list[int]()
    number_Q: dict[tuple[bytes, bytes], int] = {}
    for c in range(rows.n_clusters):
        part = slice(start[c], start[c + 1])
        q = number_Q.setdefault((cells.indices[part].tobytes(), cells.data[part].tobytes()), len(times))
        if q == len(times):
            times.append(0)
            first.append(c)
        times[q] += 1
    return cells[first], np.array(times, dtype=float)


def _without_the_unrated(fit: Fit, count_RU3: Floats) -> Floats:
    """Removes comparisons between components of each draw (in place) and returns 0 or inf, -inf, nan: shape [R, K]."""
    i_U, j_U, k = fit.design.i_U, fit.design.j_U, fit.design.n_models
    unrated_RK = np.zeros((len(count_RU3), k))
    names = tuple(map(str, range(k)))
    beats_RKK = np.zeros((len(count_RU3), k, k))
    np.add.at(beats_RKK.transpose(1, 2, 0), (i_U, j_U), (count_RU3[..., 0] + count_RU3[..., 2]).T)
    np.add.at(beats_RKK.transpose(1, 2, 0), (j_U, i_U), (count_RU3[..., 1] + count_RU3[..., 2]).T)
    for r in np.flatnonzero(~strongly_connected(beats_RKK)):
        unrated_RK[r] = connectivity(names, beats_RKK[r]).unrated()
        outside_U = (unrated_RK[r, i_U] != 0) | (unrated_RK[r, j_U] != 0)
        count_RU3[r, outside_U] = 0
    return unrated_RK


def _centred(rating_RK: Floats) -> Floats:
    """Subtracts the mean of the finite ratings."""
    finite_RK = np.isfinite(rating_RK)
    mean_R = np.where(finite_RK, rating_RK, 0).sum(1) / np.maximum(finite_RK.sum(1), 1)
    return rating_RK - mean_R[:, None]


class Uncertain(NamedTuple):
    """Ratings relative to an anchor with their intervals, each [M], and the bounds of their ranks (1 is best)."""

    rating_M: Floats
    low_M: Floats
    high_M: Floats
    rank_low_M: Ints
    rank_high_M: Ints


def intervals(
    fit: Fit,
    *,
    method: IntervalMethod = "sandwich",
    anchor: str | None = None,
    level: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> Uncertain:
    """Computes intervals of the ratings and of the ranks.

    Args:
        anchor: the model whose rating is 0; its interval has no width. None: the mean of the rated models is 0.
        method: "sandwich" (normal) or "bootstrap" (percentiles, expanded for few prompts).
        level: of each interval. rounds, seed: of the bootstrap.

    A rank interval counts as better or worse only the models whose difference is significant at this level after
    Bonferroni's correction for the M - 1 others. A model without a finite rating has an interval from its infinity to
    the other end where it lies above or below, and ranks from 1 to M.

    Raises:
        DataError: an unknown method, an anchor without a finite rating, battles of a single prompt.
    """
    zero = _anchor_place(fit, anchor)
    k, rated_K = fit.design.n_models, fit.connectivity.rated_K
    contrast_KK = np.eye(k) - (1 / k if zero is None else (np.arange(k) == zero)[None, :].astype(float))
    rating_K = contrast_KK @ fit.parameter_P[:k]
    if method == "sandwich":
        covariance_KK = sandwich(fit)[np.ix_(rated_K, rated_K)]
        half_K = normal_quantile(level) * np.sqrt(np.diag(contrast_KK @ covariance_KK @ contrast_KK.T).clip(0))
        low_K, high_K = rating_K - half_K, rating_K + half_K
        variance_KK = np.diag(covariance_KK)[:, None] + np.diag(covariance_KK)[None, :] - 2 * covariance_KK
        half_KK = normal_quantile(1 - (1 - level) / max(k - 1, 1)) * np.sqrt(variance_KK.clip(0))
        above_KK = (rating_K[:, None] - rating_K[None, :]) > half_KK
    elif method == "bootstrap":
        draw_RK = bootstrap(fit, rounds=rounds, seed=seed)[:, rated_K]
        if zero is not None:
            with np.errstate(invalid="ignore"):
                draw_RK = np.where(np.arange(k) == zero, 0.0, draw_RK - draw_RK[:, [zero]])
        tail = expanded_tail(fit.rows.n_clusters, level)
        low_K, high_K = _quantile(draw_RK, tail), _quantile(draw_RK, 1 - tail)
        above_KK = _above_in_draws(draw_RK, tail / max(k - 1, 1))
    else:
        raise DataError(f"unknown method of intervals {method!r}", fix=nearest(str(method), ("sandwich", "bootstrap")))
    return _of_all_models(fit, rating_K, low_K, high_K, above_KK)


def _above_in_draws(draw_RK: Floats, tail: float) -> Floats:
    """Returns whether row is above column in all draws but a share of `tail`, shape [K, K]."""
    above_KK = np.zeros((draw_RK.shape[1],) * 2, dtype=bool)
    for one in range(draw_RK.shape[1]):
        # nan (not comparable in a draw) is not above
        above_KK[one] = (draw_RK[:, [one]] > draw_RK).mean(0) >= 1 - tail
    return above_KK


def _quantile(draw_RK: Floats, q: float) -> Floats:
    """Returns the q-quantile of each column; one that is not comparable in a draw counts as infinite on that side."""
    filled_RK = np.where(np.isnan(draw_RK), -np.inf if q < 0.5 else np.inf, draw_RK)
    method: Literal["lower", "higher"] = "lower" if q < 0.5 else "higher"
    return np.asarray(np.quantile(filled_RK, q, axis=0, method=method))


def _of_all_models(fit: Fit, rating_K: Floats, low_K: Floats, high_K: Floats, above_KK: Floats) -> Uncertain:
    m = len(fit.models)
    rating_M = fit.scattered(rating_K[None])[0]
    low_M, high_M = np.full(m, -np.inf), np.full(m, np.inf)
    low_M[fit.connectivity.rated_K], high_M[fit.connectivity.rated_K] = low_K, high_K
    rank_low_M, rank_high_M = np.ones(m, dtype=np.int64), np.full(m, m)
    rank_low_M[fit.connectivity.rated_K] = 1 + above_KK.sum(0)
    rank_high_M[fit.connectivity.rated_K] = m - above_KK.sum(1)
    return Uncertain(rating_M, low_M, high_M, rank_low_M, rank_high_M)


def _anchor_place(fit: Fit, anchor: str | None) -> int | None:
    if anchor is None:
        return None
    if anchor not in fit.models:
        raise DataError(f"unknown anchor {anchor!r}", fix=nearest(anchor, fit.models))
    place = fit.models.index(anchor)
    found = np.flatnonzero(fit.connectivity.rated_K == place)
    if len(found) == 0 or math.isnan(fit.rating_M[place]):
        raise DataError("the anchor has no finite rating", got=anchor, fix="; ".join(fit.connectivity.notes()))
    return int(found[0])
