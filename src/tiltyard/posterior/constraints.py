"""Coefficients of a distributional constraint: the tilt of a prior under which features have given means.

prior(y|x) exp(sum_i lambda_i phi_i(x, y)) / Z(x) is the distribution nearest to the prior, in KL, whose features have
the means `moments` over prompts (Csiszar 1975; Khalifa, Elsahar & Dymetman 2021, "A distributional approach to
controlled text generation"). Each prompt has a Z of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiltyard.errors import ConfigError
from tiltyard.stats.importance import Floats, log_mean_exp, normalised

STEPS = 100
POINTWISE = 40.0  # nats that a response without a required feature loses: exp(-40) of its probability is left
TOLERANCE = 1e-10


def solve_constraint(feature_PMK: Floats, moments: Sequence[float], log_weight_PM: Floats | None = None) -> Floats:
    """The coefficients [K] of moments of which some may be 0 or 1: pointwise constraints on features that are 0 or 1.

    Such a feature gets `POINTWISE` nats, or minus that, and prompts without any sample that has what is required are
    left out. The other coefficients are solved under them.

    Args:
        feature_PMK, moments, log_weight_PM: see `solve_moments`.

    Raises:
        ConfigError: means that no tilt of these samples has; no sample has what is required.
    """
    goal = np.asarray(moments, dtype=np.float64)
    binary = [bool(np.isin(feature_PMK[:, :, k], (0.0, 1.0)).all()) for k in range(len(goal))]
    sure = [k for k, value in enumerate(goal.tolist()) if binary[k] and value in (0.0, 1.0)]
    rest = [k for k in range(len(goal)) if k not in sure]
    coefficients = np.zeros(len(goal))
    base = np.zeros(feature_PMK.shape[:2]) if log_weight_PM is None else log_weight_PM
    if sure:
        coefficients[sure] = np.where(goal[sure] == 1, POINTWISE, -POINTWISE)
        base = base + feature_PMK[:, :, sure] @ coefficients[sure]
        able_P = (feature_PMK[:, :, sure] == goal[sure]).all(-1).any(-1)
        if not able_P.any():
            raise ConfigError(
                "no sample has what is required of all",
                where="moments",
                got=f"0 of {feature_PMK.shape[0] * feature_PMK.shape[1]:,} samples of the prior",
                expected="at least one",
                fix="draw more samples, require less, or train towards a lower mean first",
            )
        base, feature_PMK = base[able_P], feature_PMK[able_P]
    if rest:
        coefficients[rest] = solve_moments(feature_PMK[:, :, rest], goal[rest].tolist(), base)
    return coefficients


def solve_moments(feature_PMK: Floats, moments: Sequence[float], log_weight_PM: Floats | None = None) -> Floats:
    """The coefficients [K] by damped Newton steps on the convex log-partition function.

    Args:
        feature_PMK: features of M samples of the prior to each of P prompts. moments: the wanted means.
        log_weight_PM: log probabilities of the responses, where they are all that there are rather than samples.

    Raises:
        ConfigError: means that no tilt of these samples has.
    """
    goal = np.asarray(moments, dtype=np.float64)
    low, high = feature_PMK.min(1).mean(0), feature_PMK.max(1).mean(0)
    for i, (least, value, most) in enumerate(zip(low, goal, high, strict=True)):
        if not least < value < most:
            raise ConfigError(
                "no tilt of the prior has this mean",
                where=f"moments[{i}]",
                got=f"{value:g}",
                expected=f"strictly between {least:.4g} and {most:.4g}, the least and the most of the samples",
                fix="draw more samples, or choose a mean that the prior can reach",
            )
    base = np.zeros(feature_PMK.shape[:2]) if log_weight_PM is None else log_weight_PM
    coefficients = np.zeros(len(goal))
    for _ in range(STEPS):
        p = normalised(base + feature_PMK @ coefficients)
        mean_PK = np.einsum("pm,pmk->pk", p, feature_PMK)
        gradient = goal - mean_PK.mean(0)
        if np.abs(gradient).max() < TOLERANCE:
            return coefficients
        second = np.einsum("pm,pmk,pml->pkl", p, feature_PMK, feature_PMK) - mean_PK[:, :, None] * mean_PK[:, None]
        step = np.linalg.lstsq(second.mean(0), gradient, rcond=None)[0]
        coefficients = coefficients + step * _scale(base, feature_PMK, coefficients, step, goal)
    raise ConfigError(
        "the moments cannot be had together",
        where="moments",
        got=f"{goal.tolist()}, missed by {np.abs(gradient).max():.2g}",
        expected="means that one distribution has",
        fix="relax one of them",
    )


def _scale(base: Floats, feature_PMK: Floats, at: Floats, step: Floats, goal: Floats) -> float:
    """The largest of 1, 1/2, 1/4, ... at which the step raises the dual, goal . lambda - mean log Z."""

    def dual(x: Floats) -> float:
        return float(goal @ x - log_mean_exp(base + feature_PMK @ x).mean())

    start, scale = dual(at), 1.0
    while dual(at + scale * step) < start and scale > 1e-6:
        scale /= 2
    return scale
