"""The bounds that statistical tests hold chance to: where they lie, and that they can fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests import chance


def passes(check: Callable[..., None], *given: object) -> bool:
    try:
        check(*given)
    except AssertionError:
        return False
    return True


def test_four_standard_errors_and_the_same_chance() -> None:
    assert pytest.approx(6.334e-5, rel=1e-4) == chance.P
    assert passes(chance.near, 1.39, 1.0, 0.1)
    assert not passes(chance.near, 1.41, 1.0, 0.1)
    assert not passes(chance.near, 0.59, 1.0, 0.1)
    assert passes(chance.near, 1.0, 1.0, 0.0)
    assert not passes(chance.near, math.nan, 1.0, 0.1)
    assert passes(chance.beyond, 0.31, 0.3, 0.1)
    assert not passes(chance.beyond, 0.29, 0.3, 0.1)


def test_chi_square_is_at_its_quantile() -> None:
    """One degree of freedom: the square of a normal number. Two: an exponential one of mean 2."""
    for freedom, quantile in ((1, 16.0), (2, -2 * math.log(chance.P))):
        assert passes(chance.chi_square, quantile - 1e-6, freedom)
        assert not passes(chance.chi_square, quantile + 1e-6, freedom)


def test_a_count_is_at_the_quantile_of_its_own_law() -> None:
    """All heads of 14 and of 15: 2 * 2^-14 is above P and 2 * 2^-15 below. A certain count may not be another."""
    assert passes(chance.share, 14, 14, 0.5)
    assert passes(chance.share, 0, 14, 0.5)
    assert not passes(chance.share, 15, 15, 0.5)
    assert not passes(chance.share, 0, 15, 0.5)
    assert passes(chance.share, 5, 5, 1.0)
    assert not passes(chance.share, 4, 5, 1.0)
    assert passes(chance.below, 0, 15, 0.01)
    assert passes(chance.below, 13, 13, 0.5)
    assert not passes(chance.below, 14, 14, 0.5)


def test_counts_follow_a_law_or_do_not() -> None:
    """Of 2,000 draws c, which expects 0.8, is counted with b."""
    law = {"a": 0.5, "b": 0.4996, "c": 0.0004, "d": 0.0}
    assert passes(chance.follows, {"a": 1088, "b": 911, "c": 1}, law)
    assert not passes(chance.follows, {"a": 1090, "b": 909, "c": 1}, law)
    assert passes(chance.follows, {"a": 1010, "b": 984, "c": 6}, law)
    assert not passes(chance.follows, {"a": 1010, "b": 989, "d": 1}, law)


def test_means_of_columns_that_depend_on_each_other() -> None:
    """Two columns that add up to 0 are one: the statistic is z squared with one degree of freedom."""
    x_N = torch.linspace(-1, 1, 401, dtype=torch.float64)
    error = float(x_N.std()) / math.sqrt(401)
    for z, fine in ((3.99, True), (4.01, False)):
        moved_N = x_N + z * error
        assert passes(chance.means, torch.stack([moved_N, -moved_N], 1)) is fine


def test_rare_cells_are_joined_by_what_they_expect_and_not_by_their_counts() -> None:
    """Forty cells that expect 2.5 each: joined in their order two by two, so alternating counts cancel."""
    law = dict.fromkeys(range(40), 1 / 40)
    assert passes(chance.follows, {cell: 5 * (cell % 2) for cell in law}, law)
    assert not passes(chance.follows, {cell: 5 * (cell % 4 < 2) for cell in law}, law)
