"""Any few battles: an error by name, or ratings at which the likelihood is stationary, and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import Battles, battles_of
from tiltyard.stats.ratings.bradley_terry import bradley_terry, wins_and_ties
from tiltyard.stats.ratings.connected import tie_model_is_finite
from tiltyard.stats.ratings.tables import win_matrix
from tiltyard.stats.ratings.uncertainty import intervals

MODELS = "uvwxy"
BATTLE = st.tuples(
    st.permutations(MODELS).map(lambda order: order[:2]),
    st.sampled_from(["a", "b", "tie", "both_bad"]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(0, 5),
)


def battles_from(rows) -> Battles:
    pairs, outcomes, weights, prompts = zip(*rows, strict=True)
    a, b = zip(*pairs, strict=True)
    return battles_of(a, b, outcomes, weight=weights, prompt=prompts)


def stretchable(wins_MM: np.ndarray, ties_MM: np.ndarray) -> bool:
    """Whether ratings exist in which a win spans at least one step and a tie at most one, by linear programming."""
    rows, bounds = [], []
    for i, j in zip(*np.nonzero(wins_MM), strict=True):
        rows.append(np.eye(len(wins_MM))[j] - np.eye(len(wins_MM))[i])
        bounds.append(-1)
    for i, j in zip(*np.nonzero(ties_MM), strict=True):
        rows.append(np.eye(len(wins_MM))[j] - np.eye(len(wins_MM))[i])
        bounds.append(1)
    return linprog(np.zeros(len(wins_MM)), A_ub=rows, b_ub=bounds, bounds=(None, None)).status == 0


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(
    rows=st.lists(BATTLE, min_size=1, max_size=25),
    ties=st.sampled_from(["half_win", "davidson", "rao_kupper"]),
    both_bad=st.sampled_from(["apart", "tie", "left out"]),
)
def test_any_battles(rows, ties, both_bad):
    battles = battles_from(rows)
    try:
        fit = bradley_terry(battles, ties=ties, both_bad=both_bad)
    except DataError as error:
        if not error.fix:
            pytest.fail(f"no advice in {error}")
        return
    rated = fit.connectivity.rated_K
    assert np.isfinite(fit.rating_M[rated]).all()
    assert fit.rating_M[rated].mean() == pytest.approx(0, abs=1e-9)
    assert len(fit.connectivity.notes()) == len(set(fit.connectivity.status) - {"rated"})
    counts, terms = fit.rows.counts(), fit.design.terms(fit.parameter_P[None], fit.rows.counts()[None])
    assert np.abs(terms.d @ fit.design.linear()).max() < 1e-7 * counts.sum()
    assert abs(terms.t.sum()) < 1e-7 * counts.sum()
    if ties == "half_win":
        table = win_matrix(battles, both_bad=both_bad)
        k = np.ix_(rated, rated)
        expected = table.battles_MM[k] / (1 + np.exp(fit.rating_M[rated][None, :] - fit.rating_M[rated][:, None]))
        assert expected.sum(1) == pytest.approx(table.wins_MM[k].sum(1), abs=1e-6)
    if fit.rows.n_clusters > 1:
        for method in ("sandwich", "bootstrap"):
            found = intervals(fit, method=method, rounds=10)
            assert (found.low_M <= found.high_M).all()
            assert (found.rank_low_M <= found.rank_high_M).all()


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(rows=st.lists(BATTLE, min_size=2, max_size=12))
def test_ties_without_a_maximum_are_those_that_can_be_stretched(rows):
    wins_MM, ties_MM = wins_and_ties(battles_from(rows))
    if ties_MM.any():
        assert tie_model_is_finite(wins_MM, ties_MM) == (not stretchable(wins_MM, ties_MM))
