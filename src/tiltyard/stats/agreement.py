"""Agreement of annotators: percent, Cohen's and Fleiss' kappa, Krippendorff's alpha, Kendall's W, with intervals.

Labels of one unit are not independent, so every interval resamples whole units. Units with one label say nothing of
agreement and are left out. Where an index is undefined it is nan, and `reason` holds the cause: with one label alone
in the data, chance agreement is 1 and 1 - 1/0 is neither 0 nor 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.intervals import Estimate, expanded_tail, rate_ci, wilson

Distance = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]

_CHUNK = 2_000_000  # numbers in memory at once
ONE_LABEL = "all labels are the same: chance agreement is 1"
NO_PAIRS = "no unit has two labels"


class Agreement(NamedTuple):
    """An index of agreement with its interval; `n` counts the units with two labels or more.

    `reason`: why the value or the interval is nan, else empty.
    """

    value: float
    low: float
    high: float
    n: int
    reason: str = ""


def percent_agreement(data: Annotations, *, rounds: int = 1000, seed: int = 0, level: float = 0.95) -> Agreement:
    """Computes the mean over units of the share of pairs of labels that are equal.

    P_u = (sum_c n_uc^2 - m_u) / (m_u (m_u - 1)), where n_uc of the unit's m_u labels are c.
    """
    n_UC = _pairable(data)
    if not len(n_UC):
        return _undefined(0, NO_PAIRS)
    share = rate_ci(_pairs_equal_U(n_UC), range(len(n_UC)), rounds=rounds, seed=seed, level=level)
    return Agreement(share.value, share.low, share.high, share.n, "one unit alone" if math.isnan(share.low) else "")


def cohen_kappa(
    data: Annotations,
    annotators: tuple[Hashable, Hashable] | None = None,
    *,
    distance: Distance = "nominal",
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Agreement:
    """Computes Cohen's kappa of two annotators over the units that both labelled.

    kappa = 1 - sum_ab d_ab o_ab / sum_ab d_ab e_ab with the confusion o and e_ab = row_a column_b / n (Cohen 1960;
    with the nominal distance (p_o - p_e) / (1 - p_e)). "interval": d is the squared difference of the labels, which
    is the quadratic weighting (Cohen 1968); "ordinal": of their places in the order.

    Raises:
        DataError: other than two annotators in the data and none named, or an unknown name.
    """
    first, second = _two(data, annotators)
    label_UA = data.table_UA()[:, [first, second]]
    label_UA = label_UA[(label_UA >= 0).all(1)]
    if not len(label_UA):
        return _undefined(0, NO_PAIRS)
    cells, n_P = np.unique(label_UA, axis=0, return_counts=True)
    n_labels = len(data.labels)
    place_C = data.values_C() if distance == "interval" else np.arange(n_labels, dtype=float)
    a_PC, b_PC = np.eye(n_labels)[cells[:, 0]], np.eye(n_labels)[cells[:, 1]]
    differ_P = (cells[:, 0] != cells[:, 1]).astype(float)
    apart_P = differ_P if distance == "nominal" else (place_C[cells[:, 0]] - place_C[cells[:, 1]]) ** 2
    d_CC = 1 - np.eye(n_labels) if distance == "nominal" else (place_C[:, None] - place_C) ** 2

    def index(weight_RP: Floats) -> Floats:
        by_chance_R = np.einsum("rc,cd,rd->r", weight_RP @ a_PC, d_CC, weight_RP @ b_PC) / weight_RP.sum(1)
        return _chance_corrected(weight_RP @ apart_P, by_chance_R)

    marginal_2C = np.stack([n_P @ a_PC, n_P @ b_PC]) / n_P.sum()
    return _resampled(index, n_P, float((marginal_2C[0] * marginal_2C[1]).sum()), rounds, seed, level)


def fleiss_kappa(data: Annotations, *, rounds: int = 1000, seed: int = 0, level: float = 0.95) -> Agreement:
    """Computes Fleiss' kappa, (mean P_u - P_e) / (1 - P_e), P_e = sum_c p_c^2 (Fleiss 1971); Scott's pi for two labels.

    Defined for units with the same number of labels; nan with that reason where the numbers differ.
    """
    n_UC = _pairable(data)
    if not len(n_UC):
        return _undefined(0, NO_PAIRS)
    m_U = n_UC.sum(1)
    if m_U.min() != m_U.max():
        return _undefined(
            len(n_UC),
            f"units have {m_U.min():.0f} to {m_U.max():.0f} labels: Krippendorff's alpha is defined for those",
        )
    n_PC, n_P = _patterns(n_UC)
    differ_P = 1 - _pairs_equal_U(n_PC)

    def index(weight_RP: Floats) -> Floats:
        share_RC = weight_RP @ n_PC / (weight_RP.sum(1, keepdims=True) * m_U[0])
        return _chance_corrected(weight_RP @ differ_P / weight_RP.sum(1), 1 - (share_RC**2).sum(1))

    share_C = n_UC.sum(0) / n_UC.sum()
    return _resampled(index, n_P, float((share_C**2).sum()), rounds, seed, level)


def krippendorff_alpha(
    data: Annotations, *, distance: Distance = "nominal", rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Agreement:
    """Computes Krippendorff's alpha, 1 - D_o / D_e, for any number of annotators and missing labels.

    D_o = sum_u sum_ck n_uc n_uk d_ck / (m_u - 1), D_e = sum_ck n_c n_k d_ck / (N - 1), n_c over the units with two
    labels or more (Krippendorff 2011). "ordinal": d_ck is the squared number of labels between c and k, half of both
    included; "interval": (c - k)^2. Both are squared differences of positions, so the sums are variances.
    """
    n_UC = _pairable(data)
    if not len(n_UC):
        return _undefined(0, NO_PAIRS)
    n_PC, n_P = _patterns(n_UC)
    m_P = n_PC.sum(1)
    fixed_C = data.values_C() if distance == "interval" else None

    def index(weight_RP: Floats) -> Floats:
        n_RC = weight_RP @ n_PC
        total_R = n_RC.sum(1)
        if distance == "nominal":
            within_RP = (m_P**2 - (n_PC**2).sum(1))[None, :]
            by_chance_R = total_R**2 - (n_RC**2).sum(1)
        else:
            place_RC = np.cumsum(n_RC, 1) - n_RC / 2 if fixed_C is None else np.tile(fixed_C, (len(n_RC), 1))
            place_RC = place_RC - ((n_RC * place_RC).sum(1) / total_R)[:, None]  # sum_c n_c place_c = 0 from here on
            within_RP = 2 * (m_P * (place_RC**2 @ n_PC.T) - (place_RC @ n_PC.T) ** 2)
            by_chance_R = 2 * total_R * (n_RC * place_RC**2).sum(1)
        observed_R = (weight_RP * within_RP / (m_P - 1)).sum(1)
        return _chance_corrected(observed_R, by_chance_R / (total_R - 1))

    n_C = n_UC.sum(0)
    equal = float((n_C * (n_C - 1)).sum() / (n_C.sum() * (n_C.sum() - 1)))
    return _resampled(index, n_P, equal, rounds, seed, level)


def kendall_w(ranks_mk: ArrayLike) -> float:
    """Computes Kendall's W of m annotators' ranks of k objects, [m, k] (equal ranks: their mean), corrected for ties.

    W = 12 S / (m^2 (k^3 - k) - m sum T), S the squared deviations of the objects' rank sums, T = sum (t^3 - t) over
    an annotator's groups of t equal ranks. nan if every annotator ranks all objects the same or k < 2.

    Raises:
        DataError: other than a matrix of finite numbers.
    """
    given = np.asarray(ranks_mk, dtype=float)
    if given.ndim != 2 or not given.size or not np.isfinite(given).all():
        raise DataError("ranks are a matrix [annotators, objects] of finite numbers", got=f"shape {given.shape}")
    below_mk = (given[:, None, :] < given[:, :, None]).sum(2)
    equal_mk = (given[:, None, :] == given[:, :, None]).sum(2)
    rank_mk = below_mk + (equal_mk + 1) / 2  # equal values share the mean of their ranks
    m, k = rank_mk.shape
    sums_k = rank_mk.sum(0)
    most = m * m * (k**3 - k) - m * float((equal_mk**2 - 1).sum())
    return 12 * float(((sums_k - sums_k.mean()) ** 2).sum()) / most if most > 0 else math.nan


def mean_kendall_w(units: Sequence[ArrayLike], *, rounds: int = 1000, seed: int = 0, level: float = 0.95) -> Agreement:
    """Computes the mean of Kendall's W over units (prompts), each a matrix of ranks [annotators, objects].

    Units with fewer than two annotators, or whose W is undefined, are left out.
    """
    w_U = [w for ranks in units if len(np.asarray(ranks)) > 1 and not math.isnan(w := kendall_w(ranks))]
    if not w_U:
        return _undefined(0, "no unit has two rankings that order anything")
    mean: Estimate = rate_ci(np.minimum(w_U, 1.0), range(len(w_U)), rounds=rounds, seed=seed, level=level)
    return Agreement(mean.value, mean.low, mean.high, mean.n, "one unit alone" if math.isnan(mean.low) else "")


def _two(data: Annotations, annotators: tuple[Hashable, Hashable] | None) -> tuple[int, int]:
    names = data.annotators if annotators is None else annotators
    unknown = [name for name in names if name not in data.annotators]
    if len(names) != 2 or unknown:
        raise DataError(
            "Cohen's kappa compares two annotators",
            got=repr(unknown[0]) if unknown else f"{len(names)} annotators",
            expected=f"two of {list(data.annotators)[:8]}",
            fix="name two, or use Krippendorff's alpha",
        )
    return data.annotators.index(names[0]), data.annotators.index(names[1])


def _pairable(data: Annotations) -> Floats:
    n_UC = data.counts_UC()
    return n_UC[n_UC.sum(1) >= 2]


def _patterns(n_UC: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Returns the different rows and how often each occurs: resampling counts rows, whatever their number."""
    n_PC, n_P = np.unique(n_UC, axis=0, return_counts=True)
    return n_PC, n_P


def _pairs_equal_U(n_UC: Floats) -> Floats:
    m_U = n_UC.sum(1)
    return ((n_UC**2).sum(1) - m_U) / (m_U * (m_U - 1))


def _chance_corrected(observed_R: Floats, by_chance_R: Floats) -> Floats:
    """Returns 1 - observed / by chance; nan where disagreement by chance is 0, down to rounding."""
    possible_R = by_chance_R > 1e-12
    return np.where(possible_R, 1 - observed_R / np.where(possible_R, by_chance_R, 1.0), np.nan)


def _undefined(n: int, reason: str) -> Agreement:
    return Agreement(math.nan, math.nan, math.nan, n, reason)


def _resampled(
    index: Callable[[Floats], Floats], n_P: NDArray[np.int64], equal: float, rounds: int, seed: int, level: float
) -> Agreement:
    """Returns the index with its percentile interval over resamples of the units, of which n_P have pattern P.

    `equal`: the chance that two labels are equal. With full agreement all resamples are 1; the lower bound is then
    that of Wilson's interval for the share of units with a disagreement, as far apart as those by chance.
    """
    n = int(n_P.sum())
    value = float(index(n_P[None, :].astype(float))[0])
    if math.isnan(value):
        return _undefined(n, ONE_LABEL)
    if n < 2:
        return Agreement(value, math.nan, math.nan, n, "one unit alone")
    if value == 1:
        return Agreement(1.0, 1 - (1 - wilson(n, n, level)[0]) / (1 - equal), 1.0, n)
    if rounds < 1:
        raise DataError("the bootstrap needs at least one round", got=rounds)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(n_P))
    values = [
        index(rng.multinomial(n, n_P / n, size=min(step, rounds - start)).astype(float))
        for start in range(0, rounds, step)
    ]
    value_R = np.concatenate(values)
    tail = expanded_tail(n, level)
    undefined = float(np.isnan(value_R).mean())
    if undefined > tail:
        return Agreement(value, math.nan, math.nan, n, f"undefined in {undefined:.0%} of the resamples")
    low, high = np.nanquantile(value_R, [tail, 1 - tail])
    return Agreement(value, min(float(low), value), max(float(high), value), n)
