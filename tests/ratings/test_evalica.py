"""Equality with evalica where it computes the same."""

import numpy as np
import pytest

from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.elo import in_orders

from .planted import planted

evalica = pytest.importorskip("evalica", reason="a development dependency: make install")


def columns(battles):
    winners = [evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw]
    names = battles.models
    return [names[i] for i in battles.a_N], [names[i] for i in battles.b_N], [winners[o] for o in battles.outcome_N]


def logits(scores, models):
    found = np.log([scores[m] for m in models])
    return found - found.mean()


def test_evalica_bradley_terry():
    battles = planted(np.random.default_rng(0), 500, 5, 0.2)
    found = evalica.bradley_terry(*columns(battles), tie_weight=0.5, tolerance=1e-13, limit=100_000)
    assert bradley_terry(battles).rating_M == pytest.approx(logits(found.scores, battles.models), abs=1e-6)


def test_evalica_newman_is_davidson_with_nu_halved():
    battles = planted(np.random.default_rng(1), 500, 5, 0.3)
    found = evalica.newman(*columns(battles), tolerance=1e-13, limit=100_000)
    fit = bradley_terry(battles, ties="davidson")
    assert fit.rating_M == pytest.approx(logits(found.scores, battles.models), abs=1e-6)
    assert fit.tie_parameter / 2 == pytest.approx(found.v, abs=1e-6)


def test_evalica_elo_in_one_order():
    battles = planted(np.random.default_rng(2), 200, 4, 0.2)
    found = evalica.elo(*columns(battles), initial=1000, base=10, scale=400, k=4)
    mine = in_orders(battles, np.arange(200)[:, None], 4, 1000)[0]
    assert mine == pytest.approx([found.scores[m] for m in battles.models], abs=1e-6)
