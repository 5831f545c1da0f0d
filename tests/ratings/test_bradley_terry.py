"""Ratings against closed forms, the identity of the maximum, a second algorithm and the traps of pseudo-counts."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from tests.chance import beyond, near, shifted

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import battles_of, weights_of_propensity
from tiltyard.stats.ratings.bradley_terry import ELO, bradley_terry
from tiltyard.stats.ratings.tables import by_source, coverage, on_elo_scale, win_matrix
from tiltyard.stats.ratings.tie_models import TIE_MODELS
from tiltyard.stats.ratings.uncertainty import bootstrap, intervals, parameter_covariance, sandwich

from .planted import planted, repeated


def test_two_models_have_the_log_odds():
    """Rating difference log(w / (n - w)), sandwich variance 1 / (n p (1 - p)) n / (n - 1), in points of Elo."""
    battles = repeated([("x", "y", "a", 30), ("y", "x", "a", 10)])
    fit = bradley_terry(battles)
    assert fit.rating_M[0] - fit.rating_M[1] == pytest.approx(math.log(3), abs=1e-12)
    found = intervals(fit, anchor="y")
    assert found.rating_M.tolist() == [pytest.approx(math.log(3)), 0]
    half = 1.959964 * math.sqrt(1 / (40 * 0.75 * 0.25) * 40 / 39)
    assert found.high_M[0] - found.rating_M[0] == pytest.approx(half, rel=1e-6)
    assert found.low_M[1] == found.high_M[1] == 0
    assert (found.rank_low_M.tolist(), found.rank_high_M.tolist()) == ([1, 2], [1, 2])
    assert on_elo_scale([0, 1]).tolist() == [1000, pytest.approx(1000 + 400 / math.log(10))]
    assert pytest.approx(173.718, abs=1e-3) == ELO


def test_expected_wins_are_observed_wins():
    battles = planted(np.random.default_rng(0), 400, models=6, ties=0.3)
    fit = bradley_terry(battles)
    table = win_matrix(battles)
    expected = table.battles_MM / (1 + np.exp(fit.rating_M[None, :] - fit.rating_M[:, None]))
    assert expected.sum(1) == pytest.approx(table.wins_MM.sum(1), abs=1e-8)


def test_hunters_algorithm_finds_the_same():
    """g_i <- W_i / sum_j n_ij / (g_i + g_j) (Hunter 2004), another way to the same maximum."""
    battles = planted(np.random.default_rng(1), 300, models=5, ties=0.2)
    table = win_matrix(battles)
    g = np.ones(5)
    for _ in range(5000):
        g = table.wins_MM.sum(1) / (table.battles_MM / (g[:, None] + g[None, :])).sum(1)
        g /= np.exp(np.log(g).mean())
    assert bradley_terry(battles).rating_M == pytest.approx(np.log(g), abs=1e-8)


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_tie_models_are_the_maximum_of_their_own_probabilities(ties):
    """The published probabilities, written out, under another optimiser."""
    battles = planted(np.random.default_rng(2), 300, models=4, ties=0.3)
    fit = bradley_terry(battles, ties=ties)

    def loss(x):
        strength, t = np.exp(np.append(x[:3], 0)), np.exp(x[3])
        a, b = strength[battles.a_N], strength[battles.b_N]
        if ties == "davidson":
            every = np.array([a, b, t * np.sqrt(a * b)]) / (a + b + t * np.sqrt(a * b))
        else:
            k = 1 + t
            every = np.array([a / (a + k * b), b / (b + k * a), (k * k - 1) * a * b / ((a + k * b) * (b + k * a))])
        assert every.sum(0) == pytest.approx(np.ones(len(battles)))
        return -np.log(every[battles.outcome_N, np.arange(len(battles))]).sum()

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-7}).x
    assert fit.rating_M[:3] - fit.rating_M[3] == pytest.approx(best[:3], abs=1e-5)
    assert fit.tie_parameter == pytest.approx(np.exp(best[3]) + (ties == "rao_kupper"), abs=1e-5)


@pytest.mark.parametrize("ties", sorted(TIE_MODELS))
def test_derivatives_of_tie_models(ties):
    d, t, count, h = np.array([0.7, -2.0]), np.array([0.4, 1.1]), np.array([[3.0, 1, 2], [0, 4, 5]]), 1e-5
    at = lambda x, y: TIE_MODELS[ties](d + x, t + y, count)  # noqa: E731
    terms = at(0, 0)
    assert terms.d == pytest.approx((at(h, 0).value - at(-h, 0).value) / (2 * h), abs=1e-7)
    assert terms.t == pytest.approx((at(0, h).value - at(0, -h).value) / (2 * h), abs=1e-7)
    assert terms.dd == pytest.approx((at(h, 0).d - at(-h, 0).d) / (2 * h), abs=1e-7)
    assert terms.dt == pytest.approx((at(0, h).d - at(0, -h).d) / (2 * h), abs=1e-7)
    assert terms.tt == pytest.approx((at(0, h).t - at(0, -h).t) / (2 * h), abs=1e-7)


@pytest.mark.parametrize("ties", sorted(TIE_MODELS))
def test_the_order_and_the_sides_do_not_matter(ties):
    rng = np.random.default_rng(3)
    battles = planted(rng, 200, models=4, ties=0.2, lengths=True)
    names, results = np.array(battles.models), np.array(["a", "b", "tie"])
    turn, order = rng.random(200) < 0.5, rng.permutation(200)
    a, b = np.where(turn, battles.b_N, battles.a_N), np.where(turn, battles.a_N, battles.b_N)
    outcome = np.where(turn & (battles.outcome_N < 2), 1 - battles.outcome_N, battles.outcome_N)
    lengths = np.where(turn[:, None], battles.length_N2[:, ::-1], battles.length_N2)
    other = battles_of(
        names[a[order]],
        names[b[order]],
        results[outcome[order]],
        prompt=battles.prompt_N[order].tolist(),
        lengths=lengths[order],
    )
    for control in (False, True):
        one = bradley_terry(battles, ties=ties, length_control=control)
        two = bradley_terry(other, ties=ties, length_control=control)
        assert two.rating_M == pytest.approx(one.rating_M, abs=1e-9)
        assert sandwich(two) == pytest.approx(sandwich(one), abs=1e-9)


def test_weights_are_copies():
    """A battle of weight 3 rates as three battles do, and as one cluster has the interval of one prompt."""
    once = battles_of("xyx", "yxy", ["a", "a", "tie"], weight=[3, 2, 1], prompt=[1, 2, 3])
    copied = battles_of("xxxyyx", "yyyxxy", [*"aaaaa", "tie"], prompt=[1, 1, 1, 2, 2, 3])
    assert bradley_terry(once).rating_M == pytest.approx(bradley_terry(copied).rating_M, abs=1e-12)
    assert sandwich(bradley_terry(once)) == pytest.approx(sandwich(bradley_terry(copied)), abs=1e-12)
    assert bootstrap(bradley_terry(once), rounds=50) == pytest.approx(
        bootstrap(bradley_terry(copied), rounds=50), abs=1e-8, nan_ok=True
    )


def test_both_bad_is_no_tie_unless_asked():
    battles = repeated([("x", "y", "a", 3), ("x", "y", "b", 1), ("x", "y", "both_bad", 4)])
    for choice, odds in (("apart", 3.0), ("left out", 3.0), ("tie", 5 / 3)):
        rating = bradley_terry(battles, both_bad=choice).rating_M
        assert rating[0] - rating[1] == pytest.approx(math.log(odds))
    assert [c.both_bad for c in coverage(battles)] == [0.5, 0.5]
    assert [c.battles for c in coverage(battles, both_bad="left out")] == [4, 4]
    with pytest.raises(DataError, match="did you mean 'apart'"):
        bradley_terry(battles, both_bad="appart")


# ---------------------------------------------------------------------------------------------------- pseudo-counts


def test_no_mass_on_the_diagonal_and_on_pairs_that_never_met():
    table = win_matrix(repeated([("x", "y", "a", 2), ("x", "y", "b", 1), ("y", "z", "a", 1), ("z", "y", "a", 1)]))
    assert np.diag(table.battles_MM).tolist() == [0, 0, 0]
    assert table.battles_MM[0, 2] == table.wins_MM[0, 2] == 0
    assert np.isnan(table.rate_MM[[0, 1, 2, 0], [0, 1, 2, 2]]).all()


def test_a_pair_that_never_met_pulls_nothing_together():
    """x against y 3:1 and y against z 3:1: x - z is exactly 2 log 3."""
    rows = [("x", "y", "a", 3), ("x", "y", "b", 1), ("y", "z", "a", 3), ("y", "z", "b", 1)]
    rating = bradley_terry(repeated(rows)).rating_M
    assert rating[0] - rating[2] == pytest.approx(2 * math.log(3), abs=1e-12)


def test_groups_that_never_met_are_not_linked():
    rows = [("x", "y", "a", 3), ("x", "y", "b", 2), ("u", "v", "a", 1), ("u", "v", "b", 1)]
    fit = bradley_terry(repeated(rows))
    assert dict(zip(fit.models, np.isnan(fit.rating_M), strict=True)) == {"u": True, "v": True, "x": False, "y": False}
    assert fit.connectivity.notes() == [
        "cannot be compared with the rated models, no chain of battles leads to them: u, v"
    ]
    found = intervals(fit)
    assert (found.low_M[0], found.high_M[0]) == (-np.inf, np.inf)
    assert (found.rank_low_M[0], found.rank_high_M[0]) == (1, 4)
    with pytest.raises(DataError, match="anchor has no finite rating"):
        intervals(fit, anchor="u")


def test_a_tie_counts_once():
    table = win_matrix(repeated([("x", "y", "tie", 4)]))
    assert table.battles_MM[0, 1] == 4
    assert table.wins_MM.tolist() == [[0, 2], [2, 0]]


def test_the_interval_is_of_the_data_alone():
    """Four times the battles halve the error; a ridge or a prior in the information would not."""
    rows = [("x", "y", "a", 6), ("x", "y", "b", 4), ("y", "z", "a", 5), ("y", "z", "b", 5)]
    once, often = (bradley_terry(repeated([(a, b, o, n * k) for a, b, o, n in rows])) for k in (1, 4))
    factor = (20 / 19) / (80 / 79)
    assert sandwich(once) == pytest.approx(sandwich(often) * 4 * factor, rel=1e-9)


# ------------------------------------------------------------------------------------------------- infinite ratings


def test_who_won_or_lost_everything_has_an_infinite_rating():
    rows = [("x", "y", "a", 2), ("y", "x", "a", 1), ("best", "x", "a", 3), ("y", "worst", "a", 1)]
    fit = bradley_terry(repeated(rows))
    assert dict(zip(fit.models, fit.connectivity.status, strict=True)) == {
        "best": "above",
        "worst": "below",
        "x": "rated",
        "y": "rated",
    }
    assert fit.rating_M[:2].tolist() == [np.inf, -np.inf]
    assert fit.rating_M[2] - fit.rating_M[3] == pytest.approx(math.log(2))
    assert "best" in fit.connectivity.notes()[0]
    assert "worst" in fit.connectivity.notes()[1]
    with pytest.raises(DataError, match="no two models can be rated"):
        bradley_terry(repeated([("x", "y", "a", 5)]))


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_ties_without_a_maximum_are_found(ties):
    """Wins and ties of x over y: the further apart the two and the likelier ties, the better, for ever."""
    with pytest.raises(DataError, match="has no maximum"):
        bradley_terry(repeated([("x", "y", "a", 3), ("x", "y", "tie", 2)]), ties=ties)
    cycle = [("x", "y", "a", 1), ("y", "z", "a", 1), ("z", "x", "a", 1), ("x", "y", "tie", 1)]
    assert bradley_terry(repeated(cycle), ties=ties).rating_M == pytest.approx(np.zeros(3), abs=0.5)


@pytest.mark.parametrize(("ties", "none"), [("davidson", 0.0), ("rao_kupper", 1.0)])
def test_without_a_tie_all_models_are_one(ties, none):
    battles = planted(np.random.default_rng(4), 100, models=3)
    fit = bradley_terry(battles, ties=ties)
    assert fit.tie_parameter == none
    assert fit.rating_M == pytest.approx(bradley_terry(battles).rating_M, abs=1e-10)


def test_lengths_that_separate_outcomes_are_an_error():
    battles = battles_of("xyxy", "yxyx", "abab", lengths=[[2, 1], [1, 2], [2, 1], [1, 2]])
    with pytest.raises(DataError):
        bradley_terry(battles, length_control=True)


# ------------------------------------------------------------------------------------------------------ other tables


@pytest.mark.statistical
def test_length_control_finds_a_planted_preference_for_length():
    rng = np.random.default_rng(shifted(6))
    n = 6000
    a, b = rng.integers(0, 2, n), np.full(n, 2)
    length = rng.normal(100, 30, (n, 2)) + np.where(a[:, None] == 1, [[40, 0]], 0)
    d = length[:, 0] - length[:, 1]
    p = 1 / (1 + np.exp(-1.5 * np.tanh(d / np.sqrt((d**2).mean()))))
    names = np.array(["even", "long", "other"])
    battles = battles_of(names[a], names[b], np.where(rng.random(n) < p, "a", "b"), lengths=length)
    raw, controlled = bradley_terry(battles), bradley_terry(battles, length_control=True)
    error = np.sqrt(np.diag(parameter_covariance(controlled)))
    beyond(raw.rating_M[1] - raw.rating_M[0], 0.5, 0.06)
    near(controlled.rating_M[1], 0.0, error[1])
    near(controlled.length_coefficient, 1.5, error[3])


def test_length_control_needs_lengths():
    with pytest.raises(DataError, match="needs the lengths"):
        bradley_terry(repeated([("x", "y", "tie", 1)]), length_control=True)


def test_propensities_undo_a_skewed_choice_of_pairs():
    """Half-wins with ties are a quasi-likelihood whose limit depends on the pairing; weights restore the even one."""
    assert weights_of_propensity([0.5, 0.25]).tolist() == [2, 4]
    rows = [("x", "y", "a", 5), ("x", "y", "b", 3), ("y", "z", "a", 4), ("y", "z", "b", 4), ("x", "z", "a", 6)]
    rows.append(("x", "z", "b", 2))
    even = bradley_terry(repeated(rows))
    a, b, outcome, p = [], [], [], []
    for one, other, result, n in rows:
        often = 3 if (one, other) == ("x", "y") else 1
        for column, value in ((a, one), (b, other), (outcome, result), (p, often / 5)):
            column.extend([value] * n * often)
    weighted = bradley_terry(battles_of(a, b, outcome, weight=weights_of_propensity(p)))
    assert weighted.rating_M == pytest.approx(even.rating_M, abs=1e-9)
    assert abs(bradley_terry(battles_of(a, b, outcome)).rating_M - even.rating_M).max() > 0.01
    for bad in (0, 1.5):
        with pytest.raises(DataError, match="must lie in"):
            weights_of_propensity([0.5, bad])


def test_sources_and_coverage():
    battles = battles_of(
        ["x", "x", "x", "x"], ["y", "y", "y", "y"], ["a", "b", "a", "tie"], source=["web", "web", "lab", "lab"],
        prompt=["p", "p", "q", "r"], models=["idle"],
    )  # fmt: skip
    found = by_source(battles)
    assert found["web"].rating_M[1:].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert found["lab"].rating_M[1] - found["lab"].rating_M[2] == pytest.approx(math.log(3))
    idle, x, _ = coverage(battles)
    assert (idle.battles, idle.opponents, math.isnan(idle.ties)) == (0, 0, True)
    assert x == ("x", 4, 1, 3, 4.0, 0.25, 0.0, {"lab": 2, "web": 2})
    assert bradley_terry(battles).connectivity.status[0] == "apart"
    only = by_source(battles_of("xx", "yy", "aa", source=["web", "web"]))
    assert isinstance(only["web"], DataError)


def test_wrong_battles_are_named():
    with pytest.raises(DataError, match=r"battles\.csv:2: a model cannot battle itself"):
        battles_of("xx", "yx", "aa", where="battles.csv")
    with pytest.raises(DataError, match="did you mean 'both_bad'"):
        battles_of("x", "y", ["bothbad"])
    for column in ({"weight": [0.0]}, {"weight": [math.inf]}, {"lengths": [[1, math.nan]]}, {"prompt": [1, 2]}):
        with pytest.raises(DataError):
            battles_of("x", "y", "a", **column)
    with pytest.raises(DataError, match="no battles"):
        battles_of([], [], [])
