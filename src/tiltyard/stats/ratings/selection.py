"""Active selection of pairs: expected information under the Bradley-Terry posterior, drawn with known probabilities.

Adaptive pairs change which comparisons the ratings are fitted to, and where the model is not the truth (strengths that
differ by prompt, several annotators) they change what the fit converges to. So a pair is never taken because it is the
best: it is drawn, the probability is stored, and `weights_of_draws` gives back what even pairing would have found.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.ratings.battles import Battles, BothBad, Floats
from tiltyard.stats.ratings.bradley_terry import unique_comparisons
from tiltyard.stats.ratings.connected import RATED, Connectivity
from tiltyard.stats.ratings.newton import check_converged, maximise

EVEN = 0.2  # share of the draws that is even: bounds the weights by 1 / EVEN
_NODES = 24  # of the quadrature: exact to 1e-6 nats for deviations up to 4 logits


class RatingPosterior(NamedTuple):
    """Laplace's approximation of the posterior of ratings in logits, under ratings ~ Normal(0, prior_sd^2)."""

    models: tuple[str, ...]
    mean_M: Floats
    covariance_MM: Floats

    def difference(self, i_P: ArrayLike, j_P: ArrayLike) -> tuple[Floats, Floats]:
        """Returns mean and variance of rating[i] - rating[j] for each pair, both [P]."""
        i, j = np.asarray(i_P, dtype=np.int64), np.asarray(j_P, dtype=np.int64)
        c = self.covariance_MM
        return self.mean_M[i] - self.mean_M[j], (c[i, i] + c[j, j] - 2 * c[i, j]).clip(0)


def rating_posterior(
    battles: Battles | None, models: tuple[str, ...] = (), *, prior_sd: float = 1.0, both_bad: BothBad = "apart"
) -> RatingPosterior:
    """Computes the mode and the inverse information of Bradley-Terry ratings with a normal prior; ties are half-wins.

    Args:
        battles: what was judged; None: nothing. models: names of the models, where there are no battles.
        prior_sd: in logits. both_bad: as in `bradley_terry`.

    Raises:
        DataError: a deviation that is not positive, or a likelihood that Newton's method cannot maximise.
    """
    if not prior_sd > 0 or not np.isfinite(prior_sd):
        raise DataError("the deviation of the prior must be positive", got=prior_sd)
    used = None if battles is None else battles.without_both_bad(both_bad).hard()
    names = models if battles is None else battles.models
    m = len(names)
    if used is None or len(used) == 0:
        return RatingPosterior(names, np.zeros(m), prior_sd**2 * np.eye(m))
    everyone = Connectivity(names, np.arange(m), (RATED,) * m)
    design, rows = unique_comparisons(used, everyone, np.zeros((len(used), 0)), "half_win")
    solution = maximise(design._replace(prior_precision=prior_sd**-2), rows.counts()[None], np.zeros(m))
    check_converged(solution)
    return RatingPosterior(names, solution.parameter_RP[0], np.linalg.inv(solution.information_RPP[0]))


def expected_information(mean_P: ArrayLike, variance_P: ArrayLike) -> Floats:
    """Computes the expected information of a judgement of each pair about the ratings, in nats, shape [P].

    H(E sigmoid(d)) - E H(sigmoid(d)) for d ~ Normal(mean, variance), H the entropy of a coin: the mutual information of
    the outcome and the difference of the ratings (Lindley 1956; Houlsby et al. 2011, arXiv:1112.5745), by Gauss-Hermite
    quadrature. About p (1 - p) variance / 2 where the variance is small.
    """
    mean_P, sd_P = finite(mean_P, "means"), np.sqrt(finite(variance_P, "variances"))
    node_K, weight_K = np.polynomial.hermite_e.hermegauss(_NODES)
    weight_K = weight_K / weight_K.sum()
    p_PK = (1 + np.tanh((mean_P[:, None] + sd_P[:, None] * node_K) / 2)) / 2
    return np.asarray((_entropy(p_PK @ weight_K) - _entropy(p_PK) @ weight_K).clip(0))


def draw_probabilities(information_P: ArrayLike, *, even: float = EVEN, sharpness: float = 1.0) -> Floats:
    """Returns the probability with which each candidate is drawn: `even` in equal parts, the rest by its information.

    Args:
        information_P: of each candidate, not negative. even: in (0, 1]; 1: all alike.
        sharpness: the power of the information; 1: in proportion, large: the best ones alone.

    Raises:
        DataError: no candidate, a negative information, or a share outside (0, 1].
    """
    info_P = finite(information_P, "information")
    if info_P.min() < 0 or not 0 < even <= 1:
        raise DataError("drawing needs information that is not negative and an even share in (0, 1]", got=even)
    if info_P.max() <= 0:
        return np.full(len(info_P), 1 / len(info_P))
    want_P = (info_P / info_P.max()) ** sharpness
    return np.asarray(even / len(info_P) + (1 - even) * want_P / want_P.sum())


def weights_of_draws(drawn_with_N: ArrayLike, candidates_N: ArrayLike) -> Floats:
    """Returns the weight of each drawn item under which sums over the drawn ones stand for all candidates, shape [N].

    1 + (n_last - 1) / (n - 1) (1 / (n q) - 1), with q the probability of the draw, n the number of candidates that were
    left at it and n_last those at the last one (Farquhar, Gal & Rainforth 2021, arXiv:2101.11665, eq. 8). 1 / (n q)
    while nearly all are left; 1 once all have been drawn, since then nothing was chosen. The mean of the weighted items
    is unbiased for the mean of all, however the draws depend on what was seen before.

    Args:
        drawn_with_N: probability of each draw. candidates_N: number of candidates, the drawn one among them.

    Raises:
        DataError: a probability outside (0, 1], or fewer than one candidate.
    """
    q_N, n_N = finite(drawn_with_N, "probabilities of draws"), finite(candidates_N, "numbers of candidates")
    if q_N.min() <= 0 or q_N.max() > 1 or n_N.min() < 1 or len(q_N) != len(n_N):
        raise DataError(
            "a draw has a probability in (0, 1] and one candidate at least",
            got=f"probabilities {q_N.min():g} .. {q_N.max():g}, candidates {n_N.min():g} .. {n_N.max():g}",
        )
    left = (n_N.min() - 1) / np.maximum(n_N - 1, 1)
    return np.asarray(1 + np.where(n_N > 1, left, 0.0) * (1 / (n_N * q_N) - 1))


def _entropy(p: Floats) -> Floats:
    q = 1 - p
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(p > 0, p * np.log(p), 0.0) - np.where(q > 0, q * np.log(q), 0.0)
