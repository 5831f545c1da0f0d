"""Equality with choix where it computes the same."""

import numpy as np
import pytest

from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.plackett_luce import plackett_luce

from .planted import planted

choix = pytest.importorskip("choix", reason="a development dependency: make install")


def test_choix_pairs_and_rankings():
    battles = planted(np.random.default_rng(3), 300, 5)
    pairs = [(a, b) if o == 0 else (b, a) for a, b, o in zip(battles.a_N, battles.b_N, battles.outcome_N, strict=True)]
    found = choix.ilsr_pairwise(5, pairs, tol=1e-12, max_iter=10_000)
    assert bradley_terry(battles).rating_M == pytest.approx(found - found.mean(), abs=1e-6)
    rng = np.random.default_rng(4)
    orders = [rng.permutation(5)[: rng.integers(2, 6)] for _ in range(80)]
    found = choix.ilsr_rankings(5, orders, tol=1e-12, max_iter=10_000)
    mine = plackett_luce([[[f"m{i}"] for i in order] for order in orders])
    assert mine.rating_M == pytest.approx(found - found.mean(), abs=1e-6)
