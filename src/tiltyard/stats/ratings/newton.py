"""Newton's method for many weightings of the same comparisons at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import Floats, Ints
from tiltyard.stats.ratings.tie_models import TIE_MODELS, Terms, Ties

ITERATIONS = 100
_BEYOND = 30.0  # logits: the difference that ten million million battles would not show
_STEP = 1e-9  # Newton's steps are squared from one to the next: the one after is below rounding


class Design(NamedTuple):
    """Unique comparisons: d_U = rating[i_U] - rating[j_U] + x_UK @ coefficients.

    Args:
        i_U, j_U: the two models, i before j. x_UK: features of the comparison, of i's side minus j's; K may be 0.
        n_models: M. ties: the tie model. has_tie: whether its parameter is estimated.
        prior_precision: of a normal prior on every rating; 0 is none.

    The parameters are the M ratings, the K coefficients and at most one of ties: P in all.
    """

    i_U: Ints
    j_U: Ints
    x_UK: Floats
    n_models: int
    ties: Ties
    has_tie: bool
    prior_precision: float = 0.0

    @property
    def n_parameters(self) -> int:
        return self.n_models + self.x_UK.shape[1] + int(self.has_tie)

    def linear(self):  # type: ignore[no-untyped-def]
        """Returns the sparse matrix X of d = X parameters, without the column of ties, shape [U, M + K]."""
        from scipy.sparse import csr_array

        u = np.arange(len(self.i_U))
        k = self.x_UK.shape[1]
        rows = np.concatenate([u, u, np.repeat(u, k)])
        columns = np.concatenate([self.i_U, self.j_U, self.n_models + np.tile(np.arange(k), len(u))])
        values = np.concatenate([np.ones(len(u)), -np.ones(len(u)), self.x_UK.ravel()])
        return csr_array((values, (rows, columns)), shape=(len(u), self.n_models + k))

    def squares(self):  # type: ignore[no-untyped-def]
        """Returns the sparse matrix of the outer products x_u x_u^T as rows, shape [U, (M + K)^2]."""
        from scipy.sparse import csr_array

        u, k, q = np.arange(len(self.i_U)), self.x_UK.shape[1], self.n_models + self.x_UK.shape[1]
        place = np.column_stack([self.i_U, self.j_U, np.tile(self.n_models + np.arange(k), (len(u), 1))])
        value = np.column_stack([np.ones(len(u)), -np.ones(len(u)), self.x_UK])
        columns = (place[:, :, None] * q + place[:, None, :]).ravel()
        values = (value[:, :, None] * value[:, None, :]).ravel()
        return csr_array((values, (np.repeat(u, (2 + k) ** 2), columns)), shape=(len(u), q * q))

    def terms(self, parameter_RP: Floats, count_RU3: Floats) -> Terms:
        """Computes the terms of every comparison under every weighting, each [R, U]."""
        m, k = self.n_models, self.x_UK.shape[1]
        d_RU = parameter_RP[:, self.i_U] - parameter_RP[:, self.j_U]
        if k:
            d_RU = d_RU + parameter_RP[:, m : m + k] @ self.x_UK.T
        t_R1 = parameter_RP[:, -1:] if self.has_tie else np.zeros((len(parameter_RP), 1))
        # without a tie every model of ties is Bradley and Terry's
        return TIE_MODELS[self.ties if self.has_tie else "half_win"](d_RU, t_R1, count_RU3)


class Solution(NamedTuple):
    """Parameters that maximise each likelihood, [R, P], and the negative Hessians there, [R, P, P]."""

    parameter_RP: Floats
    information_RPP: Floats
    converged_R: NDArray[np.bool_]


def maximise(design: Design, count_RU3: Floats, start_P: Floats) -> Solution:
    """Maximises the log-likelihood of each weighting by Newton's method with halved steps; ratings have mean 0.

    A model without a comparison under a weighting keeps the rating 0.

    Args:
        count_RU3: weights of the outcomes "i wins", "j wins", "tie" of every unique comparison, for R weightings.
        start_P: parameters to start from.
    """
    x, squares = design.linear(), design.squares()
    parameter_RP = np.tile(start_P, (len(count_RU3), 1))
    total_R = np.maximum(count_RU3.sum((1, 2)), 1e-300)
    value_R, gradient_RP, information_RPP = _derivatives(design, x, squares, parameter_RP, count_RU3)
    done_R = np.zeros(len(count_RU3), dtype=bool)
    for _ in range(ITERATIONS):
        step_RP = _solved(information_RPP, gradient_RP)
        decrement_R = (step_RP * gradient_RP).sum(1)
        done_R = (np.abs(step_RP).max(1) < _STEP) | (decrement_R < 1e-17 * total_R)
        scale_R = np.minimum(1, 10 / np.maximum(np.abs(step_RP).max(1), 1e-300))
        for _ in range(40):
            new_RP = parameter_RP + scale_R[:, None] * step_RP
            with np.errstate(invalid="ignore"):
                new_R = _value(design, new_RP, count_RU3)
            worse_R = ~(new_R >= value_R - 1e-12 * np.abs(value_R) - 1e-300)
            if not worse_R.any():
                break
            scale_R = np.where(worse_R, scale_R / 2, scale_R)
        parameter_RP = np.where(worse_R[:, None], parameter_RP, new_RP)
        value_R, gradient_RP, information_RPP = _derivatives(design, x, squares, parameter_RP, count_RU3)
        if (done_R | worse_R).all():
            break
    return Solution(parameter_RP, information_RPP, done_R)


def _solved(information_RPP: Floats, gradient_RP: Floats) -> Floats:
    """Solves for Newton's steps; where a likelihood without a maximum became flat, with a ridge that lets it go on."""
    try:
        return np.asarray(np.linalg.solve(information_RPP, gradient_RP[..., None])[..., 0])
    except np.linalg.LinAlgError:
        p = gradient_RP.shape[1]
        ridge_R = 1e-10 * np.maximum(np.einsum("rpp->rp", information_RPP).max(1), 1e-300)
        return np.asarray(
            np.linalg.solve(information_RPP + ridge_R[:, None, None] * np.eye(p), gradient_RP[..., None])[..., 0]
        )


def bounded(solution: Solution) -> NDArray[np.bool_]:
    """Returns for each weighting whether Newton's method found a finite maximum, shape [R]."""
    return solution.converged_R & (np.abs(solution.parameter_RP).max(1) <= _BEYOND)


def check_converged(solution: Solution) -> None:
    """Raises a DataError where the likelihood has no finite maximum that Newton's method found."""
    if not bounded(solution).all():
        raise DataError(
            "the ratings did not converge",
            got=f"parameters up to {np.abs(solution.parameter_RP).max():.3g} after {ITERATIONS} steps",
            expected="a likelihood with a finite maximum",
            fix="where a feature or the ties separate wins from losses: leave length_control out, or ties='half_win'",
        )


def _value(design: Design, parameter_RP: Floats, count_RU3: Floats) -> Floats:
    prior_R = design.prior_precision / 2 * (parameter_RP[:, : design.n_models] ** 2).sum(1)
    return design.terms(parameter_RP, count_RU3).value.sum(1) - prior_R


def _derivatives(  # type: ignore[no-untyped-def]
    design: Design, x, squares, parameter_RP: Floats, count_RU3: Floats
) -> tuple[Floats, Floats, Floats]:
    """Returns the value [R], the gradient [R, P] and the negative Hessian [R, P, P], regular in all directions.

    The likelihood does not change when a constant is added to all ratings. The ones that are added to the Hessian in
    that direction alone, where the gradient is 0, change no estimate: steps keep the mean of the ratings.
    """
    terms = design.terms(parameter_RP, count_RU3)
    r, m, q, p = len(parameter_RP), design.n_models, x.shape[1], design.n_parameters
    gradient_RP, information_RPP = np.empty((r, p)), np.empty((r, p, p))
    gradient_RP[:, :q] = terms.d @ x
    information_RPP[:, :q, :q] = -(terms.dd @ squares).reshape(r, q, q)
    if design.has_tie:
        gradient_RP[:, q] = terms.t.sum(1)
        information_RPP[:, :q, q] = information_RPP[:, q, :q] = -(terms.dt @ x)
        information_RPP[:, q, q] = -terms.tt.sum(1)
    diagonal_RP = np.einsum("rpp->rp", information_RPP)  # a view
    if design.prior_precision:
        gradient_RP[:, :m] -= design.prior_precision * parameter_RP[:, :m]
        diagonal_RP[:, :m] += design.prior_precision
    else:
        active_RM = (diagonal_RP[:, :m] > 0).astype(float)
        scale_R = diagonal_RP[:, :m].max(1)[:, None, None] / m
        information_RPP[:, :m, :m] += scale_R * active_RM[:, :, None] * active_RM[:, None, :]
        diagonal_RP[:, :m] += 1 - active_RM
    prior_R = design.prior_precision / 2 * (parameter_RP[:, :m] ** 2).sum(1)
    return terms.value.sum(1) - prior_R, gradient_RP, information_RPP
