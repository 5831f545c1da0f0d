"""Input checks of the statistics: lists of numbers become arrays, bad ones an error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError


def numbers(values: ArrayLike, name: str, *, empty_ok: bool = False) -> NDArray[np.float64]:
    """Returns a one-dimensional float array without NaN; infinities are allowed.

    Raises:
        DataError: another shape, no values (unless `empty_ok`), or NaN.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or (len(x) == 0 and not empty_ok):
        raise DataError(f"{name} must be a non-empty list of numbers", got=f"shape {x.shape}")
    if np.isnan(x).any():
        raise DataError(f"{name} contains {int(np.isnan(x).sum())} NaN", fix="find where the score went wrong")
    return x


def finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Returns `numbers(values, name)`; an infinity is an error too.

    Raises:
        DataError: as `numbers`, or an infinite value.
    """
    x = numbers(values, name)
    if not np.isfinite(x).all():
        raise DataError(f"{name} contains infinite numbers", fix="find where the score went wrong")
    return x
