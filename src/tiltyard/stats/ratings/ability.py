"""Bradley-Terry ratings together with the ability of each annotator: one likelihood for models and people.

P(annotator k prefers a to b) = sigmoid(ability_k (rating_a - rating_b)), as in am-ELO (Liu et al. 2025,
arXiv:2505.03475). An annotator who guesses has the ability 0, one who prefers the worse a negative one. Unlike
Dawid-Skene and MACE it needs no item that two people judged: an arena has none. The abilities have the mean 1, so with
equal ones the ratings are Bradley and Terry's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tiltyard.errors import DataError
from tiltyard.stats.intervals import Estimate, normal_quantile
from tiltyard.stats.ratings.battles import BOTH_BAD, Battles, BothBad, Floats, Ints, numbered
from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.connected import Connectivity
from tiltyard.stats.ratings.elo import scores_of_a

_ITERATIONS = 200
_MOST_CELLS = 50_000_000  # battles x parameters in memory: 400 MB


class AbilityFit(NamedTuple):
    """Ratings in logits of an annotator of mean ability, [M], mean 0, with intervals; abilities with intervals.

    Models without a finite rating, and battles against them, are left out: their ratings and intervals are as in
    `bradley_terry`. `log_likelihood` is without the prior.
    """

    models: tuple[str, ...]
    rating_M: Floats
    low_M: Floats
    high_M: Floats
    ability: Mapping[Hashable, Estimate]
    log_likelihood: float


def bradley_terry_with_abilities(
    battles: Battles,
    annotators: Sequence[Hashable],
    *,
    prior_sd: float = 1.0,
    both_bad: BothBad = "apart",
    level: float = 0.95,
) -> AbilityFit:
    """Fits ratings and abilities by penalised maximum likelihood (Newton's method from the Bradley-Terry fit).

    Ties are half-wins, soft labels their probability. Intervals are those of the sandwich with prompts as clusters.

    Args:
        annotators: who judged each battle.
        prior_sd: deviation of the abilities around 1, which draws those of few battles towards 1. Some prior is needed:
            an annotator who never erred would have an infinite ability.
        both_bad: as in `bradley_terry`.

    Raises:
        DataError: no annotator for each battle, one annotator alone, battles of a single prompt, and the errors of
            `bradley_terry`; a likelihood whose maximum is not found; more battles and annotators than fit into memory.
    """
    if len(annotators) != len(battles):
        raise DataError("every battle has an annotator", got=len(annotators), expected=len(battles))
    if not 0 < prior_sd < np.inf:
        raise DataError("the deviation of the abilities must be positive", got=prior_sd)
    start = bradley_terry(battles, both_bad=both_bad)
    who_N, names = numbered(annotators), tuple(dict.fromkeys(annotators))
    keep_N = (battles.outcome_N != BOTH_BAD) | (both_bad == "tie")
    place_M = np.full(len(battles.models), -1)
    place_M[start.connectivity.rated_K] = np.arange(len(start.connectivity.rated_K))
    keep_N = keep_N & (place_M[battles.a_N] >= 0) & (place_M[battles.b_N] >= 0)
    used, who_N = battles.where(keep_N), who_N[keep_N]
    present = np.unique(who_N)
    if len(present) < 2:
        raise DataError("abilities compare annotators", got=f"{len(present)} annotator", expected="two at least")
    place_A = np.full(len(names), -1)
    place_A[present] = np.arange(len(present))
    cells = len(used) * (len(start.connectivity.rated_K) + len(present))
    if cells > _MOST_CELLS:
        raise DataError(
            "too many battles and annotators to fit abilities",
            got=f"{len(used):,} battles, {len(present):,} annotators",
            expected=f"{_MOST_CELLS:,} battles x parameters at most",
            fix="rate without abilities, or the annotators of many battles alone",
        )
    data = _Data(
        place_M[used.a_N],
        place_M[used.b_N],
        place_A[who_N],
        scores_of_a(used),
        used.weight_N / used.weight_N.mean(),
        len(start.connectivity.rated_K),
        len(present),
        prior_sd**-2,
    )
    found = _maximum(data, start.rating_M[start.connectivity.rated_K])
    return _result(battles.models, names, present, start.connectivity, data, found, used.prompt_N, level)


class _Data(NamedTuple):
    """Battles n: models a and b, annotator, score of a, weight; numbers of models and annotators."""

    a_N: Ints
    b_N: Ints
    who_N: Ints
    score_N: Floats
    weight_N: Floats
    models: int
    annotators: int
    precision: float


def _gradients(data: _Data, x_P: Floats) -> tuple[Floats, Floats, Floats, float]:
    """Returns each battle's gradient [N, P], the negative Hessian [P, P], the prior's gradient [P] and the value."""
    m, n = data.models, len(data.a_N)
    gap_N, ability_N = x_P[data.a_N] - x_P[data.b_N], x_P[m + data.who_N]
    d_N = ability_N * gap_N
    p_N = (1 + np.tanh(d_N / 2)) / 2
    residual_N, curve_N = data.weight_N * (data.score_N - p_N), data.weight_N * p_N * (1 - p_N)
    rows = np.arange(n)
    direction_NP = np.zeros((n, len(x_P)))
    direction_NP[rows, data.a_N], direction_NP[rows, data.b_N] = ability_N, -ability_N
    direction_NP[rows, m + data.who_N] = gap_N
    information_PP = direction_NP.T @ (curve_N[:, None] * direction_NP)
    for side_N, sign in ((data.a_N, 1.0), (data.b_N, -1.0)):  # d = ability x gap has a mixed second derivative
        np.add.at(information_PP, (side_N, m + data.who_N), -sign * residual_N)
        np.add.at(information_PP, (m + data.who_N, side_N), -sign * residual_N)
    prior_P = np.zeros(len(x_P))
    prior_P[m:] = -data.precision * (x_P[m:] - 1)
    information_PP[m:, m:] += data.precision * np.eye(data.annotators)
    value = float(data.weight_N @ (data.score_N * d_N - np.logaddexp(0, d_N)))
    return residual_N[:, None] * direction_NP, information_PP, prior_P, value


def _maximum(data: _Data, rating_K: Floats) -> Floats:
    """Maximises under mean rating 0 and mean ability 1, by Newton's method with a ridge where it is not concave."""
    x_P = np.concatenate([rating_K, np.ones(data.annotators)])
    basis_PF = _free(data)

    def penalised(x_P: Floats) -> float:
        return _gradients(data, x_P)[3] - data.precision / 2 * float(((x_P[data.models :] - 1) ** 2).sum())

    now = penalised(x_P)
    for _ in range(_ITERATIONS):
        gradient_NP, information_PP, prior_P, _ = _gradients(data, x_P)
        slope_F = basis_PF.T @ (gradient_NP.sum(0) + prior_P)
        bent_FF = basis_PF.T @ information_PP @ basis_PF
        least = float(np.linalg.eigvalsh(bent_FF)[0])
        lift = 1e-3 - least if least < 1e-9 else 0.0
        step_P = basis_PF @ np.linalg.solve(bent_FF + lift * np.eye(len(bent_FF)), slope_F)
        if np.abs(step_P).max() < 1e-9 and not lift:
            return x_P
        scale = min(1.0, 2 / max(float(np.abs(step_P).max()), 1e-300))
        while (new := penalised(x_P + scale * step_P)) < now - 1e-12 * abs(now) and scale > 1e-9:
            scale /= 2
        x_P, now = x_P + scale * step_P, max(now, new)
    raise DataError(
        "ratings and abilities did not converge",
        got=f"parameters up to {np.abs(x_P).max():.3g} after {_ITERATIONS} steps",
        fix="collect more battles of each annotator, or rate without abilities",
    )


def _free(data: _Data) -> Floats:
    """Returns an orthonormal basis of the directions that keep the mean rating and the mean ability, [P, P - 2]."""
    fixed_2P = np.zeros((2, data.models + data.annotators))
    fixed_2P[0, : data.models] = fixed_2P[1, data.models :] = 1
    return np.asarray(np.linalg.svd(fixed_2P)[2][2:].T)


def _result(
    models: tuple[str, ...],
    names: tuple[Hashable, ...],
    present: Ints,
    connected: Connectivity,
    data: _Data,
    x_P: Floats,
    prompt_N: Ints,
    level: float,
) -> AbilityFit:
    gradient_NP, information_PP, _, value = _gradients(data, x_P)
    basis_PF = _free(data)
    _, cluster_N = np.unique(prompt_N, return_inverse=True)
    clusters = int(cluster_N.max()) + 1
    if clusters < 2:
        raise DataError("intervals need battles of two prompts at least", got="one prompt")
    score_CP = np.zeros((clusters, len(x_P)))
    np.add.at(score_CP, cluster_N.ravel(), gradient_NP)
    score_CF = score_CP @ basis_PF
    bread_FF = np.linalg.inv(basis_PF.T @ information_PP @ basis_PF)
    covariance_FF = bread_FF @ (score_CF.T @ score_CF) @ bread_FF * clusters / (clusters - 1)
    sd_P = np.sqrt(np.diag(basis_PF @ covariance_FF @ basis_PF.T).clip(0))
    z, m = normal_quantile(level), data.models
    rating_M, low_M, high_M = connected.unrated(), np.full(len(models), -np.inf), np.full(len(models), np.inf)
    rated_K = connected.rated_K
    rating_M[rated_K], low_M[rated_K], high_M[rated_K] = x_P[:m], x_P[:m] - z * sd_P[:m], x_P[:m] + z * sd_P[:m]
    count_A = np.bincount(data.who_N, minlength=data.annotators)
    ability = {
        names[present[k]]: Estimate(
            float(x_P[m + k]),
            float(x_P[m + k] - z * sd_P[m + k]),
            float(x_P[m + k] + z * sd_P[m + k]),
            int(count_A[k]),
        )
        for k in range(data.annotators)
    }
    return AbilityFit(models, rating_M, low_M, high_M, ability, value)
