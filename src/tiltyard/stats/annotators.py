"""Quality of annotators from their labels alone: Dawid-Skene and MACE by EM, with intervals, and who is shown poor.

Both models hold a hidden true label for each unit. They are fitted from the majority's labels, so "right" means: as the
others, weighted by how far they in turn can be trusted. A majority that errs together is not found by any of this.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import DataError
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.intervals import Estimate, expanded_tail, wilson

Floats = NDArray[np.float64]
Standing = Literal["poor", "good", "unclear"]

_FLOOR = 1e-10  # of expected counts, so that a label never given keeps a logarithm
_CHUNK = 2_000_000  # numbers in memory at once


class Fitted(NamedTuple):
    """A fitted model of U units, A annotators, C labels.

    `quality`: {annotator: Estimate}, Dawid-Skene's accuracy sum_c prior_c confusion_cc or MACE's competence; `n` counts
    the annotator's labels. `confusion_ACC`: [annotator, true label, given label]. `posterior_UC`: of the true labels.
    """

    quality: Mapping[Hashable, Estimate]
    confusion_ACC: Floats
    prior_C: Floats
    posterior_UC: Floats
    log_likelihood: float
    iterations: int
    converged: bool


class _State(NamedTuple):
    """Parameters of R fits at once. `spam_RA` and `habit_RAC` are MACE's, of which it makes the confusion."""

    confusion_RCAC: Floats
    prior_RC: Floats
    spam_RA: Floats
    habit_RAC: Floats


def dawid_skene(
    data: Annotations,
    *,
    iterations: int = 2000,
    tol: float = 1e-8,
    rounds: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Fitted:
    """Fits one confusion matrix an annotator by EM (Dawid and Skene 1979), from the majority's labels.

    Stops when the log-likelihood per unit rises by less than `tol`. Intervals of the accuracies: percentiles of
    refits on resampled units, each begun at the fit, and never narrower than Wilson's interval of as many labels.
    """
    return _fitted(data, False, iterations, tol, rounds, seed, level)


def mace(
    data: Annotations,
    *,
    iterations: int = 2000,
    tol: float = 1e-8,
    rounds: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Fitted:
    """Fits MACE by EM (Hovy et al. 2013): an annotator gives the true label, or with chance s one from their own habit.

    P(given k | true c) = (1 - s) [k = c] + s habit_k; true labels are equally likely. Counts are smoothed by 0.01 / C,
    as in the paper. The quality is the competence 1 - s. It has fewer parameters than Dawid-Skene: for few labels.
    """
    return _fitted(data, True, iterations, tol, rounds, seed, level)


def standing(quality: Mapping[Hashable, Estimate], floor: float) -> dict[Hashable, Standing]:
    """Returns who is shown to be below a floor ("poor": the whole interval), at or above it ("good"), or neither.

    A point below the floor shows nothing. With many annotators, give the fit a `level` of 1 - 0.05 / A.
    """
    return {name: "poor" if x.high < floor else "good" if x.low >= floor else "unclear" for name, x in quality.items()}


def _fitted(
    data: Annotations, spamming: bool, iterations: int, tol: float, rounds: int, seed: int, level: float
) -> Fitted:
    label_UA = data.table_UA()
    n_labels, n_annotators = len(data.labels), len(data.annotators)
    if n_labels < 2 or n_annotators < 2:
        raise DataError(
            "a model of annotators needs two labels and two annotators",
            got=f"{n_labels} labels, {n_annotators} annotators",
        )
    if rounds < 1:
        raise DataError("the bootstrap needs at least one round", got=rounds)
    pattern_PA, pattern_U, n_P = np.unique(label_UA, axis=0, return_inverse=True, return_counts=True)
    given_PAC = (pattern_PA[:, :, None] == np.arange(n_labels)).astype(float)
    votes_PC = given_PAC.sum(1)
    given_PX = given_PAC.reshape(len(n_P), -1)
    state = _State(
        np.zeros((1, n_labels, n_annotators, n_labels)),
        np.full((1, n_labels), 1 / n_labels),
        np.full((1, n_annotators), 0.5),
        np.full((1, n_annotators, n_labels), 1 / n_labels),
    )
    weight_1P = n_P[None].astype(float)
    state = _step(state, weight_1P, (votes_PC / votes_PC.sum(1, keepdims=True))[None], given_PX, spamming)
    fit = _em(state, weight_1P, given_PX, spamming, iterations, tol)
    value_A = _quality_RA(fit.state, spamming)[0]
    value_RA = _refits(fit.state, given_PX, n_P, spamming, rounds, seed)
    n_U = int(n_P.sum())
    tail = expanded_tail(n_U, level) if n_U > 1 else 0.5
    quality = {
        name: _estimate(value_A[a], value_RA[:, a], int((label_UA[:, a] >= 0).sum()), tail, level)
        for a, name in enumerate(data.annotators)
    }
    posterior_UC = fit.posterior_RPC[0][pattern_U.reshape(-1)]
    confusion_ACC = fit.state.confusion_RCAC[0].transpose(1, 0, 2)
    return Fitted(
        quality,
        confusion_ACC,
        fit.state.prior_RC[0],
        posterior_UC,
        float(fit.log_likelihood_R[0]),
        fit.used,
        fit.converged,
    )


def _estimate(value: float, value_R: Floats, n: int, tail: float, level: float) -> Estimate:
    value = min(max(float(value), 0.0), 1.0)
    low, high = (float(x) for x in np.quantile(value_R, [tail, 1 - tail]))
    known = wilson(value * n, n, level)  # as if the true labels were known: what is hidden cannot make it narrower
    return Estimate(value, min(low, known[0]), max(high, known[1]), n)


class _Run(NamedTuple):
    state: _State
    posterior_RPC: Floats
    log_likelihood_R: Floats
    used: int
    converged: bool


def _em(state: _State, weight_RP: Floats, given_PX: Floats, spamming: bool, iterations: int, tol: float) -> _Run:
    before_R = np.full(len(weight_RP), -np.inf)
    for used in range(iterations + 1):
        posterior_RPC, log_RP = _posterior(state, given_PX)
        now_R = (weight_RP * log_RP).sum(1)
        converged = bool((now_R - before_R <= tol * weight_RP.sum(1)).all())
        if converged or used == iterations:
            break
        state, before_R = _step(state, weight_RP, posterior_RPC, given_PX, spamming), now_R
    return _Run(state, posterior_RPC, now_R, used, converged)


def _refits(state: _State, given_PX: Floats, n_P: NDArray[np.int64], spamming: bool, rounds: int, seed: int) -> Floats:
    """Returns the quality [R, A] of refits on resampled units, begun at `state`."""
    n_U, rng = int(n_P.sum()), np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(len(n_P) * state.prior_RC.shape[1], state.confusion_RCAC.size))
    found = []
    for start in range(0, rounds, chunk):
        weight_RP = rng.multinomial(n_U, n_P / n_U, size=min(chunk, rounds - start)).astype(float)
        begun = _State(*(np.repeat(x, len(weight_RP), axis=0) for x in state))
        found.append(_quality_RA(_em(begun, weight_RP, given_PX, spamming, 60, 1e-6).state, spamming))
    return np.concatenate(found)


def _posterior(state: _State, given_PX: Floats) -> tuple[Floats, Floats]:
    """Returns the posterior of each pattern's true label and the logarithm of the pattern's probability."""
    n_fits, n_labels = state.prior_RC.shape
    log_RCX = np.log(state.confusion_RCAC).reshape(n_fits, n_labels, -1)
    joint_RPC = np.swapaxes(log_RCX @ given_PX.T, 1, 2) + np.log(state.prior_RC)[:, None]
    most_RP1 = joint_RPC.max(2, keepdims=True)
    share_RPC = np.exp(joint_RPC - most_RP1)
    total_RP1 = share_RPC.sum(2, keepdims=True)
    return share_RPC / total_RP1, (most_RP1 + np.log(total_RP1))[..., 0]


def _step(state: _State, weight_RP: Floats, posterior_RPC: Floats, given_PX: Floats, spamming: bool) -> _State:
    """Returns the parameters that maximise the expected log-likelihood (MACE: with its smoothing)."""
    n_fits, _, n_labels = posterior_RPC.shape
    weighted_RCP = np.swapaxes(posterior_RPC * weight_RP[..., None], 1, 2)
    counts_RCAC = (weighted_RCP @ given_PX).reshape(n_fits, n_labels, -1, n_labels)
    if not spamming:
        counts_RCAC = np.maximum(counts_RCAC, _FLOOR)
        prior_RC = np.maximum(weighted_RCP.sum(2), _FLOOR)
        return state._replace(
            confusion_RCAC=counts_RCAC / counts_RCAC.sum(3, keepdims=True), prior_RC=prior_RC / prior_RC.sum(1)[:, None]
        )
    smoothing = 0.01 / n_labels
    guess_RAC = state.spam_RA[..., None] * state.habit_RAC
    right_RAC = np.einsum("rcac->rac", counts_RCAC)
    guessed_RAC = right_RAC * guess_RAC / (guess_RAC + 1 - state.spam_RA[..., None])
    spammed_RAC = counts_RCAC.sum(1) - right_RAC + guessed_RAC
    knew_RA = (right_RAC - guessed_RAC).sum(2) + smoothing
    spam_RA = spammed_RAC.sum(2) + smoothing
    spam_RA = spam_RA / (spam_RA + knew_RA)
    habit_RAC = (spammed_RAC + smoothing) / (spammed_RAC + smoothing).sum(2, keepdims=True)
    confusion_RACC = (spam_RA[..., None] * habit_RAC)[:, :, None] + (1 - spam_RA)[..., None, None] * np.eye(n_labels)
    return _State(np.swapaxes(confusion_RACC, 1, 2), state.prior_RC, spam_RA, habit_RAC)


def _quality_RA(state: _State, spamming: bool) -> Floats:
    if spamming:
        return 1 - state.spam_RA
    return np.einsum("rc,rcac->ra", state.prior_RC, state.confusion_RCAC)
