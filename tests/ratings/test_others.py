"""Elo, Plackett-Luce and rewards: identities, closed forms, and the errors by name."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from tests.chance import near, shifted

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.bradley_terry import ELO, bradley_terry
from tiltyard.stats.ratings.elo import elo, in_orders
from tiltyard.stats.ratings.plackett_luce import plackett_luce
from tiltyard.stats.ratings.rewards import rewards_of_responses
from tiltyard.stats.ratings.uncertainty import sandwich

from .planted import planted, repeated

# ------------------------------------------------------------------------------------------------------------------ Elo


def test_elo_by_hand():
    """Equal ratings: the winner takes k / 2; then 1016 against 984, E = 1 / (1 + 10^(-32/400))."""
    battles = battles_of("xx", "yy", ["a", "tie"])
    found = in_orders(battles, np.array([[0, 1], [1, 0]]), 32.0, 1000.0)
    move = 32 * (0.5 - 1 / (1 + 10 ** (-32 / 400)))
    assert found[0].tolist() == pytest.approx([1016 + move, 984 - move])
    assert found[1].tolist() == pytest.approx([1016, 984])
    assert found.sum(1) == pytest.approx([2000, 2000])


@pytest.mark.statistical
def test_small_steps_over_many_orders_come_near_bradley_terry():
    battles = planted(np.random.default_rng(shifted(0)), 4000, 3, 0.1)
    found = elo(battles, k=2, seed=shifted(1))
    truth_M = bradley_terry(battles).rating_M * ELO
    assert found.sd_M.min() > 0
    for m in range(3):
        near(found.mean_M[m] - 1000, truth_M[m], 3)  # points; an order alone moves it by found.sd_M, about 10


def test_elo_refuses_one_order_and_weights():
    battles = repeated([("x", "y", "a", 1)])
    with pytest.raises(DataError, match="depends on the order"):
        elo(battles, orders=1)
    with pytest.raises(DataError, match="positive k"):
        elo(battles, k=0)
    with pytest.raises(DataError, match="cannot weigh"):
        elo(battles_of("xx", "yy", "ab", weight=[1, 2]))
    with pytest.raises(DataError, match="no battle is left"):
        elo(repeated([("x", "y", "both_bad", 1)]))


# -------------------------------------------------------------------------------------------------------- Plackett-Luce


def test_rankings_of_two_are_battles():
    battles = planted(np.random.default_rng(2), 80, 4, 0.2)
    rankings = []
    for a, b, outcome in zip(battles.a_N, battles.b_N, battles.outcome_N, strict=True):
        one, other = battles.models[a], battles.models[b]
        rankings.append([[[one], [other]], [[other], [one]], [[one, other]]][outcome])
    found, expected = plackett_luce(rankings, ties="every_order"), bradley_terry(battles)
    assert found.models == expected.models
    assert found.rating_M == pytest.approx(expected.rating_M, abs=1e-9)
    assert found.covariance_MM == pytest.approx(sandwich(expected), abs=1e-9)


def test_rankings_are_the_maximum_that_another_optimiser_finds():
    rng = np.random.default_rng(3)
    true = np.array([0.8, 0.1, -0.3, -0.6])
    orders = [np.argsort(-(true + rng.gumbel(size=4)))[: rng.integers(2, 5)] for _ in range(60)]

    def loss(x):
        x = np.append(x, 0)
        return sum(np.log(np.exp(x[o[i:]]).sum()) - x[o[i]] for o in orders for i in range(len(o) - 1))

    best = minimize(loss, np.zeros(3), options={"gtol": 1e-8}).x
    found = plackett_luce([[[f"m{i}"] for i in order] for order in orders])
    assert found.rating_M[:3] - found.rating_M[3] == pytest.approx(best, abs=1e-5)


def test_a_tie_is_the_mean_over_its_orders():
    """A tie of three, six times: as all six orders once."""
    rest = [[["a"], ["b"], ["c"]], [["c"], ["a"], ["b"]], [["b"], ["c"], ["a"]], [["a"], ["c"], ["b"]]]
    tied = plackett_luce([[["a", "b", "c"]]] * 6 + rest, ties="every_order")
    apart = plackett_luce([[[m] for m in order] for order in itertools.permutations("abc")] + rest)
    assert tied.rating_M == pytest.approx(apart.rating_M, abs=1e-9)
    with pytest.raises(DataError, match="ranking:2: the ranking has a tie"):
        plackett_luce([[["a"], ["b"]], [["a", "b"]]])
    with pytest.raises(DataError, match="too many models"):
        plackett_luce([[list("abcdef")]], ties="every_order")


def test_rankings_name_who_cannot_be_compared():
    found = plackett_luce([[["best"], ["x"], ["y"], ["worst"]], [["best"], ["y"], ["x"]], [["u"], ["v"]]])
    ratings = dict(zip(found.models, found.rating_M, strict=True))
    assert (ratings["best"], ratings["worst"]) == (np.inf, -np.inf)
    assert (ratings["x"], ratings["y"]) == (pytest.approx(0), pytest.approx(0))
    assert math.isnan(ratings["u"])
    assert np.isnan(found.covariance_MM[0]).all()
    for wrong in ([["a"]], [["a"], ["a"]]):
        with pytest.raises(DataError, match="ranking:1"):
            plackett_luce([wrong])
    with pytest.raises(DataError, match="no two models"):
        plackett_luce([[["a"], ["b"]]])
    with pytest.raises(DataError, match="needs its prompt"):
        plackett_luce([[["a"], ["b"]]], prompt=[1, 2])


# -------------------------------------------------------------------------------------------------------------- rewards


def test_rewards_are_centred_ratings():
    rows = battles_of("xxxx", "yyyy", "aaab", prompt=[0] * 4)
    rewards = rewards_of_responses(rows)
    assert rewards["x"] - rewards["y"] == pytest.approx(math.log(3))
    assert sum(rewards.values()) == pytest.approx(0)
    with pytest.raises(DataError, match="one prompt only"):
        rewards_of_responses(battles_of("xx", "yy", "ab"))


def test_a_prior_bounds_rewards_and_fades():
    """One vote x over y under Normal(0, s^2): the mode solves r = s^2 sigmoid(-2 r)."""
    vote = battles_of("x", "y", "a", models=["idle"])
    with pytest.raises(DataError, match="no two models"):
        rewards_of_responses(vote)
    for sd in (0.5, 2.0):
        found = rewards_of_responses(vote, prior_sd=sd)
        assert found["x"] == pytest.approx(sd**2 / (1 + math.exp(2 * found["x"])), abs=1e-9)
        assert (found["y"], found["idle"]) == (pytest.approx(-found["x"]), pytest.approx(0))
    rows = battles_of("xxxx", "yyyy", "aaab", prompt=[0] * 4)
    wide = rewards_of_responses(rows, prior_sd=1e4)
    assert wide["x"] == pytest.approx(rewards_of_responses(rows)["x"], abs=1e-6)
    with pytest.raises(DataError, match="must be positive"):
        rewards_of_responses(rows, prior_sd=0)
