"""Bradley-Terry ratings by maximum likelihood: P(a beats b) = sigmoid(rating_a - rating_b).

Bradley & Terry 1952; no pseudo-counts, no ridge. A model whose rating the battles do not bound has an infinite one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import DataError, nearest
from tiltyard.stats.ratings.battles import B_WINS, TIE, Battles, BothBad, Floats, Ints
from tiltyard.stats.ratings.connected import Connectivity, connectivity, tie_model_is_finite
from tiltyard.stats.ratings.newton import Design, check_converged, maximise
from tiltyard.stats.ratings.tie_models import TIE_MODELS, Ties, start_of_ties

ELO = 400 / math.log(10)  # rating points of one logit: 173.72


@dataclass(frozen=True)
class Rows:
    """The battles among rated models: battle n is the unique comparison `row_N[n]` with the outcome `outcome_N[n]`.

    Outcomes: 0 the first model of the comparison won, 1 the second, 2 a tie. `cluster_N` numbers the prompts from 0.
    """

    row_N: Ints
    outcome_N: Ints
    weight_N: Floats
    cluster_N: Ints
    n_unique: int

    @property
    def n_clusters(self) -> int:
        return int(self.cluster_N.max()) + 1

    def counts(self) -> Floats:
        """Returns the weight of each outcome of each unique comparison, shape [U, 3]."""
        cells = np.bincount(self.row_N * 3 + self.outcome_N, self.weight_N, 3 * self.n_unique)
        return cells.reshape(-1, 3).astype(float)


@dataclass(frozen=True)
class Fit:
    """Ratings of models in logits, with what their intervals need.

    Args:
        models: names. rating_M: mean 0 over the rated models; +inf, -inf or nan for the others (`connectivity`).
        ties: the tie model. tie_parameter: Davidson's nu, Rao & Kupper's kappa, or None.
        length_coefficient: logits for one standardised unit of length (`tanh`), or None.
        connectivity: which models are rated. design, rows: the comparisons among them.
        parameter_P: ratings of the rated models, coefficients, parameter of ties.
        information_PP: negative Hessian, with ones in the direction that changes nothing.
    """

    models: tuple[str, ...]
    rating_M: Floats
    ties: Ties
    tie_parameter: float | None
    length_coefficient: float | None
    connectivity: Connectivity
    design: Design
    rows: Rows
    parameter_P: Floats
    information_PP: Floats

    def scattered(self, rating_RK: Floats) -> Floats:
        """Returns ratings of the rated models among those of all models, shape [R, M]."""
        rating_RM = np.tile(self.connectivity.unrated(), (len(rating_RK), 1))
        rating_RM[:, self.connectivity.rated_K] = rating_RK
        return rating_RM


def bradley_terry(
    battles: Battles, *, ties: Ties = "half_win", both_bad: BothBad = "apart", length_control: bool = False
) -> Fit:
    """Computes Bradley-Terry ratings by maximum likelihood (Newton's method on unique weighted comparisons).

    Args:
        battles: the comparisons; a soft label counts p of a win and 1 - p of a loss.
        ties: "half_win" (a tie is half a win for each: a quasi-likelihood), "davidson" (1970) or "rao_kupper" (1967).
        both_bad: "apart" (not part of the ratings, counted in the coverage), "tie", or "left out" (not counted either).
        length_control: adds the feature tanh((length_a - length_b) / sd), whose coefficient is estimated with the
            ratings, which then are those at equal length (Dubois et al. 2024, arXiv:2404.04475).

    Raises:
        DataError: an unknown choice, no battle left, no lengths for `length_control`, or a likelihood without a finite
            maximum among models that can be compared (ties that no rating explains, lengths that separate outcomes).
    """
    if ties not in TIE_MODELS:
        raise DataError(f"unknown tie model {ties!r}", fix=nearest(str(ties), TIE_MODELS))
    used = battles.without_both_bad(both_bad).hard()
    if len(used) == 0:
        raise DataError("no battle is left to rate", got="both_bad alone", fix="use both_bad='tie'")
    beats_MM, ties_MM = wins_and_ties(used)
    connected = connectivity(used.models, beats_MM + ties_MM)
    if len(connected.rated_K) < 2:
        raise DataError(
            "no two models can be rated: no chain of wins leads from one to another and back",
            got=f"{len(used)} battles of {len(used.models)} models",
            fix="collect more battles; a rating without them would be infinite",
        )
    k = np.ix_(connected.rated_K, connected.rated_K)
    if ties != "half_win" and not tie_model_is_finite(beats_MM[k], ties_MM[k]):
        raise DataError(
            f"the likelihood of ties={ties!r} has no maximum: all rated models could lie in steps of one order",
            got="no cycle of battles with more wins than ties",
            fix="use ties='half_win', or collect more battles",
        )
    feature_N1 = _length_feature(used) if length_control else np.zeros((len(used), 0))
    design, rows = unique_comparisons(used, connected, feature_N1, ties)
    return _fitted(used, connected, design, rows)


def _fitted(used: Battles, connected: Connectivity, design: Design, rows: Rows) -> Fit:
    count_U3 = rows.counts()
    start_P = np.zeros(design.n_parameters)
    if design.has_tie:
        start_P[-1] = start_of_ties(design.ties, float(count_U3[:, 2].sum() / count_U3.sum()))
    solution = maximise(design, count_U3[None], start_P)
    check_converged(solution)
    parameter_P, k = solution.parameter_RP[0], design.n_models
    fit = Fit(
        used.models,
        connected.unrated(),
        design.ties,
        None
        if design.ties == "half_win"
        else float(np.exp(parameter_P[-1]))
        if design.has_tie
        else _NO_TIES[design.ties],
        float(parameter_P[k]) if design.x_UK.shape[1] else None,
        connected,
        design,
        rows,
        parameter_P,
        solution.information_RPP[0],
    )
    fit.rating_M[connected.rated_K] = parameter_P[:k]
    return fit


_NO_TIES = {"davidson": 0.0, "rao_kupper": 1.0}  # the parameter without a tie in the data


def wins_and_ties(battles: Battles) -> tuple[Floats, Floats]:
    """Returns the weights of wins (row beat column) and of ties (symmetric), both [M, M]; "both bad" is in neither.

    A soft label is p of a win and 1 - p of a loss.
    """
    battles = battles.hard()
    m = len(battles.models)
    b_won_N = battles.outcome_N == B_WINS
    winner_N, loser_N = np.where(b_won_N, battles.b_N, battles.a_N), np.where(b_won_N, battles.a_N, battles.b_N)
    cells_N = winner_N * m + loser_N
    decided_N, tied_N = battles.outcome_N <= B_WINS, battles.outcome_N == TIE
    wins_MM = np.bincount(cells_N[decided_N], battles.weight_N[decided_N], m * m).reshape(m, m).astype(float)
    ties_MM = np.bincount(cells_N[tied_N], battles.weight_N[tied_N], m * m).reshape(m, m).astype(float)
    return wins_MM, ties_MM + ties_MM.T


def unique_comparisons(
    battles: Battles, connected: Connectivity, feature_NK: Floats, ties: Ties
) -> tuple[Design, Rows]:
    """Returns the unique comparisons among rated models, and of each battle which one it is and how it ended."""
    place_M = np.full(len(battles.models), -1)
    place_M[connected.rated_K] = np.arange(len(connected.rated_K))
    a_N, b_N = place_M[battles.a_N], place_M[battles.b_N]
    keep_N: NDArray[np.bool_] = (a_N >= 0) & (b_N >= 0)
    a_N, b_N, outcome_N, x_NK = a_N[keep_N], b_N[keep_N], battles.outcome_N[keep_N], feature_NK[keep_N]
    swapped_N = a_N > b_N
    i_N, j_N = np.minimum(a_N, b_N), np.maximum(a_N, b_N)
    outcome_N = np.where(swapped_N & (outcome_N != TIE), 1 - outcome_N, outcome_N)
    x_NK = np.where(swapped_N[:, None], -x_NK, x_NK)
    if x_NK.shape[1]:
        table, row_N = np.unique(np.column_stack([i_N, j_N, x_NK]), axis=0, return_inverse=True)
        i_U, j_U, x_UK = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:]
    else:
        k = len(connected.rated_K)
        cell_U, row_N = np.unique(i_N * k + j_N, return_inverse=True)
        i_U, j_U, x_UK = cell_U // k, cell_U % k, np.zeros((len(cell_U), 0))
    _, cluster_N = np.unique(battles.prompt_N[keep_N], return_inverse=True)
    has_tie = ties != "half_win" and bool((outcome_N == TIE).any())
    design = Design(i_U, j_U, x_UK, len(connected.rated_K), ties, has_tie)
    return design, Rows(row_N.ravel(), outcome_N, battles.weight_N[keep_N], cluster_N.ravel(), len(i_U))


def _length_feature(battles: Battles) -> Floats:
    if battles.length_N2 is None:
        raise DataError("length control needs the lengths of the answers", fix="give `lengths`, or leave it out")
    difference_N = battles.length_N2[:, 0] - battles.length_N2[:, 1]
    # the deviation from 0, the mean over both orders of a pair: swapping a and b changes nothing
    sd = math.sqrt(float(np.average(difference_N**2, weights=battles.weight_N)))
    if sd == 0:
        raise DataError("all answers of a pair have the same length", fix="leave length_control out")
    return np.asarray(np.tanh(difference_N / sd)[:, None])
