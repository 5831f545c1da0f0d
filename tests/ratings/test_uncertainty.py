"""Intervals of ratings and ranks: coverage of planted values, the bootstrap against the sandwich, draws without one."""

import numpy as np
import pytest
from tests.chance import near, shifted

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.uncertainty import bootstrap, intervals, sandwich

from .planted import limit, planted, repeated

SIMULATIONS = 500


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("ties", "share"), [("half_win", 0.25), ("davidson", 0.25), ("half_win", 0.0)])
def test_intervals_cover_planted_ratings(ties, share):
    """95 +- 2% over 500 simulations, prompts of three dependent battles, under likelihoods that are not the truth."""
    models, rng = 5, np.random.default_rng(shifted(0))
    truth_M = bradley_terry(limit(models, share), ties=ties).rating_M
    covered_SM, ranked_SM = np.zeros((SIMULATIONS, models)), np.zeros((SIMULATIONS, models))
    for s in range(SIMULATIONS):
        found = intervals(bradley_terry(planted(rng, 900, models, share, each=3), ties=ties))
        covered_SM[s] = (found.low_M <= truth_M) & (truth_M <= found.high_M)
        ranked_SM[s] = (found.rank_low_M <= np.arange(models) + 1) & (np.arange(models) + 1 <= found.rank_high_M)
    print(f"coverage {covered_SM.mean(0)}, of ranks {ranked_SM.mean(0)}")
    assert 0.93 <= covered_SM.mean() <= 0.97
    for m in range(models):
        near(covered_SM[:, m].mean(), 0.95, np.sqrt(0.95 * 0.05 / SIMULATIONS))
    assert ranked_SM.mean(0).min() >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / SIMULATIONS)


@pytest.mark.statistical
@pytest.mark.parametrize("ties", ["half_win", "davidson", "rao_kupper"])
def test_the_bootstrap_agrees_with_the_sandwich(ties):
    fit = bradley_terry(planted(np.random.default_rng(shifted(1)), 3000, 4, 0.2, each=3), ties=ties)
    draw_RM = bootstrap(fit, rounds=1000, seed=shifted(2))
    for m in range(4):
        error = np.sqrt(sandwich(fit)[m, m])
        near(draw_RM[:, m].std(), error, 0.05 * error)  # 0.022 of the 1000 draws, the rest of 1000 prompts


def test_the_same_seed_draws_the_same():
    fit = bradley_terry(planted(np.random.default_rng(0), 60, 3))
    assert (bootstrap(fit, rounds=20, seed=1) == bootstrap(fit, rounds=20, seed=1)).all()
    assert (bootstrap(fit, rounds=20, seed=1) != bootstrap(fit, rounds=20, seed=2)).any()


@pytest.mark.parametrize("method", ["sandwich", "bootstrap"])
def test_the_anchor_changes_no_difference_and_no_rank(method):
    fit = bradley_terry(planted(np.random.default_rng(3), 300, 4, 0.2))
    free = intervals(fit, method=method, rounds=100)
    assert free.rating_M.sum() == pytest.approx(0)
    for anchor in fit.models:
        found = intervals(fit, method=method, rounds=100, anchor=anchor)
        assert found.rating_M - found.rating_M[0] == pytest.approx(free.rating_M - free.rating_M[0])
        assert (found.rank_low_M.tolist(), found.rank_high_M.tolist()) == (
            free.rank_low_M.tolist(),
            free.rank_high_M.tolist(),
        )


def test_prompts_are_resampled_whole():
    """Ten prompts whose four battles agree are ten observations, not forty."""
    a, b, outcome = ["x"] * 40, ["y"] * 40, list("aaaabbbb" * 5)
    whole = sandwich(bradley_terry(battles_of(a, b, outcome, prompt=[i // 4 for i in range(40)])))
    single = sandwich(bradley_terry(battles_of(a, b, outcome)))
    assert whole[0, 0] / single[0, 0] == pytest.approx(4 * (10 / 9) / (40 / 39))


def test_draws_without_a_finite_rating_make_an_infinite_end():
    """x lost once in forty: a third of the draws has no loss, and its rating there is +infinity."""
    fit = bradley_terry(repeated([("x", "y", "a", 39), ("x", "y", "b", 1), ("y", "z", "a", 20), ("y", "z", "b", 20)]))
    found = intervals(fit, method="bootstrap", rounds=200, anchor="y")
    assert found.high_M[0] == np.inf
    assert np.isfinite(found.low_M[0])
    assert np.isfinite([found.low_M[2], found.high_M[2]]).all()
    assert found.rank_low_M.tolist() == [1, 2, 2]


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_draws_whose_ties_have_no_maximum_leave_the_interval_open(ties):
    """Two prompts, one with wins and a tie, one with a loss: a quarter of the draws has no loss."""
    battles = battles_of("uuuuu", "vvvvv", ["a", "a", "a", "tie", "b"], prompt=[0, 0, 0, 0, 1])
    draw_RM = bootstrap(bradley_terry(battles, ties=ties), rounds=100)
    assert 0.1 < np.isnan(draw_RM[:, 0]).mean() + np.isinf(draw_RM[:, 0]).mean() < 0.9
    found = intervals(bradley_terry(battles, ties=ties), method="bootstrap", rounds=100)
    assert (found.low_M[0], found.high_M[0]) == (-np.inf, np.inf)


def test_one_prompt_has_no_interval():
    fit = bradley_terry(battles_of("xx", "yy", "ab", prompt=[0, 0]))
    for function in (sandwich, bootstrap):
        with pytest.raises(DataError, match="two prompts"):
            function(fit)
    with pytest.raises(DataError, match="did you mean 'bootstrap'"):
        intervals(bradley_terry(repeated([("x", "y", "tie", 2)])), method="bootstrp")
    with pytest.raises(DataError, match="unknown anchor 'w'"):
        intervals(bradley_terry(repeated([("x", "y", "tie", 2)])), anchor="w")
