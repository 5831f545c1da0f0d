"""Three models of a comparison with ties: log-likelihoods of one pair and their derivatives.

`d` is the difference of the two ratings (in logits), `t` the parameter of ties, `count` the weights of the three
outcomes: first wins, second wins, tie. All are concave in (d, t) together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from tiltyard.stats.ratings.battles import Floats

Ties = Literal["half_win", "davidson", "rao_kupper"]


class Terms(NamedTuple):
    """Log-likelihood and its derivatives by d and t, each of the shape of d."""

    value: Floats
    d: Floats
    t: Floats
    dd: Floats
    dt: Floats
    tt: Floats


def half_win(d: Floats, t: Floats, count: Floats) -> Terms:  # noqa: ARG001
    """Computes the quasi-likelihood in which a tie is half a win for each: y log sigmoid(d) + (n - y) log sigmoid(-d).

    It has no probability of a tie, so it has no tie parameter; its information overstates what ties teach, and only
    the sandwich or the bootstrap give its intervals.
    """
    n = count.sum(-1)
    y, p = count[..., 0] + count[..., 2] / 2, _sigmoid(d)
    zero = np.zeros_like(d)
    return Terms(y * _log_sigmoid(d) + (n - y) * _log_sigmoid(-d), y - n * p, zero, -n * p * (1 - p), zero, zero)


def davidson(d: Floats, t: Floats, count: Floats) -> Terms:
    """Computes Davidson's likelihood (1970): wins and ties in the ratios exp(d/2) : exp(-d/2) : nu, with t = log nu.

    Newman's model (2023) is the same with nu halved.
    """
    n = count.sum(-1)
    t = np.broadcast_to(t, d.shape)
    z = np.logaddexp(np.logaddexp(d / 2, -d / 2), t)
    a, b, tie = np.exp(d / 2 - z), np.exp(-d / 2 - z), np.exp(t - z)
    won = (count[..., 0] - count[..., 1]) / 2
    return Terms(
        won * d + count[..., 2] * t - n * z,
        won - n * (a - b) / 2,
        count[..., 2] - n * tie,
        -n * (a + b - (a - b) ** 2) / 4,
        n * (a - b) * tie / 2,
        -n * tie * (1 - tie),
    )


def rao_kupper(d: Floats, t: Floats, count: Floats) -> Terms:
    """Computes Rao and Kupper's likelihood (1967): P(first wins) = sigmoid(d - t), P(second wins) = sigmoid(-d - t).

    t = log kappa > 0 is the least difference that is noticed; the rest is the probability of a tie.
    """
    a, b, tie = count[..., 0] + count[..., 2], count[..., 1] + count[..., 2], count[..., 2]
    u, v = _sigmoid(d - t), _sigmoid(-d - t)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        rest = np.where(t > 0, np.log(np.expm1(2 * t)), -np.inf)
        gap = -np.expm1(-2 * t)
        value = a * _log_sigmoid(d - t) + b * _log_sigmoid(-d - t) + np.where(tie > 0, tie * rest, 0.0)
        value = np.where(t > 0, value, -np.inf)
        return Terms(
            value,
            a * (1 - u) - b * (1 - v),
            -a * (1 - u) - b * (1 - v) + tie * 2 / gap,
            -a * u * (1 - u) - b * v * (1 - v),
            a * u * (1 - u) - b * v * (1 - v),
            -a * u * (1 - u) - b * v * (1 - v) - tie * 4 * (1 - gap) / gap**2,
        )


TIE_MODELS: dict[str, Callable[[Floats, Floats, Floats], Terms]] = {
    "half_win": half_win,
    "davidson": davidson,
    "rao_kupper": rao_kupper,
}


def start_of_ties(ties: Ties, share: float) -> float:
    """Returns the tie parameter at which equal models tie with this probability."""
    share = min(max(share, 1e-3), 0.999)
    return float(np.log(2 * share / (1 - share)) if ties == "davidson" else 2 * np.arctanh(share))


def _sigmoid(x: Floats) -> Floats:
    return (1 + np.tanh(x / 2)) / 2


def _log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0, -x)
