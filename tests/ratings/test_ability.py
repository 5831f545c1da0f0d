"""Ratings with abilities of annotators: they reduce to Bradley and Terry, planted abilities come back, coverage."""

import numpy as np
import pytest
from scipy.optimize import minimize
from tests.chance import shifted
from tests.stats.simulated import SIMULATIONS, covers

from tiltyard.errors import DataError
from tiltyard.stats.ratings.ability import bradley_terry_with_abilities
from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.bradley_terry import bradley_terry

from .planted import planted, strengths

ABILITIES = np.array([1.6, 1.3, 1.1, 0.9, 0.6, 0.5])


def judged(rng, n, abilities=ABILITIES, models=4):
    """n battles on prompts of their own, each judged by one annotator."""
    a = rng.integers(0, models, n)
    b = (a + rng.integers(1, models, n)) % models
    who = rng.integers(0, len(abilities), n)
    d = abilities[who] * (strengths(models)[a] - strengths(models)[b])
    won = rng.random(n) < 1 / (1 + np.exp(-d))
    names = np.array([f"m{i}" for i in range(models)])
    return battles_of(names[a], names[b], np.where(won, "a", "b")), [f"k{i}" for i in who]


def test_annotators_held_alike_give_bradley_terry():
    battles = planted(np.random.default_rng(0), 400, 4, 0.2)
    who = [f"k{i % 3}" for i in range(400)]
    found = bradley_terry_with_abilities(battles, who, prior_sd=1e-5)
    assert found.rating_M == pytest.approx(bradley_terry(battles).rating_M, abs=1e-6)
    assert [x.value for x in found.ability.values()] == pytest.approx([1, 1, 1], abs=1e-6)


def test_it_is_the_maximum_that_another_optimiser_finds():
    battles, who = judged(np.random.default_rng(1), 900)
    found = bradley_terry_with_abilities(battles, who)
    names = list(found.ability)
    k_N = np.array([names.index(one) for one in who])
    y_N = (battles.outcome_N == 0).astype(float)

    def loss(x):
        rating, ability = x[:4] - x[:4].mean(), x[4:] - x[4:].mean() + 1
        d = ability[k_N] * (rating[battles.a_N] - rating[battles.b_N])
        return np.sum(np.logaddexp(0, d) - y_N * d) + ((ability - 1) ** 2).sum() / 2

    best = minimize(loss, np.concatenate([np.zeros(4), np.ones(6)]), method="BFGS", options={"gtol": 1e-7}).x
    assert found.rating_M == pytest.approx(best[:4] - best[:4].mean(), abs=1e-4)
    assert [x.value for x in found.ability.values()] == pytest.approx(best[4:] - best[4:].mean() + 1, abs=1e-4)


def test_a_guesser_and_one_who_prefers_the_worse_are_found():
    battles, who = judged(np.random.default_rng(2), 6000, np.array([1.5, 1.5, 1.5, 0.0, -0.8]))
    ability = bradley_terry_with_abilities(battles, who).ability
    assert ability["k3"].low < 0.35 < min(ability[f"k{i}"].low for i in range(3))
    assert ability["k4"].high < 0
    assert sum(x.value for x in ability.values()) == pytest.approx(5)


def test_bad_input():
    battles = battles_of("xxyy", "yyxx", "abab")
    with pytest.raises(DataError, match="every battle has an annotator"):
        bradley_terry_with_abilities(battles, ["k"])
    with pytest.raises(DataError, match="two at least"):
        bradley_terry_with_abilities(battles, ["k"] * 4)
    with pytest.raises(DataError, match="must be positive"):
        bradley_terry_with_abilities(battles, ["k", "l", "k", "l"], prior_sd=0)


@pytest.mark.slow
@pytest.mark.statistical
def test_coverage():
    rng = np.random.default_rng(shifted(51))
    truth = ABILITIES / ABILITIES.mean()
    bounds, ratings = [], []
    for _ in range(SIMULATIONS):
        battles, who = judged(rng, 1800)
        found = bradley_terry_with_abilities(battles, who)
        bounds.append([found.ability[f"k{i}"].ci for i in range(len(truth))])
        ratings.append(np.stack([found.low_M, found.high_M], 1))
    for k, ability in enumerate(truth):
        covers(*np.array(bounds)[:, k].T, ability, f"ability {ability:.2f}")
    for m, rating in enumerate(strengths(4) * ABILITIES.mean()):
        covers(*np.array(ratings)[:, m].T, rating, f"rating {rating:.2f}")
