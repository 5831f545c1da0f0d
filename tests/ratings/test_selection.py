"""Active pairs: the information in closed form, exact unbiasedness of the weights, and the posterior's identities."""

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from tests.exchange.judged import group

from tiltyard.errors import DataError
from tiltyard.stats.judged import battles_of_votes, propensity_weights, votes_of
from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.selection import (
    draw_probabilities,
    expected_information,
    rating_posterior,
    weights_of_draws,
)


def entropy(p):
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 0.1), (0.5, 1.0), (-2.0, 2.0), (3.0, 0.5)])
def test_information_is_the_integral(mean, sd):
    def over(f):
        def weighted(z):
            return f(1 / (1 + math.exp(-(mean + sd * z)))) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return quad(weighted, -10, 10, epsabs=1e-12)[0]

    expected = entropy(over(lambda p: p)) - over(entropy)
    assert expected_information([mean], [sd**2])[0] == pytest.approx(expected, abs=1e-6)


def test_information_of_what_is_known_is_none():
    p = 1 / (1 + math.exp(-0.7))
    found = expected_information([0.7, 0.7], [0.0, 1e-4])
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found[1] == pytest.approx(p * (1 - p) * 1e-4 / 2, rel=1e-3)


def test_the_posterior_is_the_prior_and_then_the_likelihood():
    prior = rating_posterior(None, ("x", "y"), prior_sd=2.0)
    assert prior.difference([0], [1]) == (0.0, 8.0)
    battles = battles_of("x" * 4000, "y" * 4000, "aaab" * 1000)
    mean, variance = rating_posterior(battles, prior_sd=3.0).difference([0], [1])
    assert mean[0] == pytest.approx(math.log(3), abs=0.01)
    assert variance[0] == pytest.approx(1 / (4000 * 0.75 * 0.25), rel=0.01)
    with pytest.raises(DataError, match="must be positive"):
        rating_posterior(battles, prior_sd=0)


def test_weights_are_unbiased_over_every_sequence_of_draws():
    """All sequences of two of four items, the second depends on the first: the mean of weighted means is exact."""
    value, total = np.array([1.0, -2.0, 0.5, 7.0]), 0.0
    first_q = draw_probabilities([0.1, 3.0, 1.0, 0.0], even=0.3)
    for one, two in itertools.permutations(range(4), 2):
        left = [k for k in range(4) if k != one]
        second_q = draw_probabilities([abs(k - one) * (one + 1) for k in left], even=0.3, sharpness=2.0)
        q = first_q[one], second_q[left.index(two)]
        total += q[0] * q[1] * float((weights_of_draws(q, [4, 3]) * value[[one, two]]).mean())
    assert total == pytest.approx(value.mean(), abs=1e-12)


def test_weights_at_the_ends():
    assert weights_of_draws([0.5, 0.2], [10**6, 10**6]) == pytest.approx([1 / (1e6 * 0.5), 1 / (1e6 * 0.2)], rel=1e-3)
    assert weights_of_draws([0.7, 0.9, 1.0], [3, 2, 1]).tolist() == [1, 1, 1]  # all were drawn: nothing was chosen
    assert weights_of_draws([0.25, 1 / 3], [4, 3]) == pytest.approx([1, 1])
    for q, n in (([0.0], [2]), ([0.5], [0]), ([1.5], [2])):
        with pytest.raises(DataError, match="a draw has a probability"):
            weights_of_draws(q, n)


def test_draws_are_even_in_part_and_where_nothing_is_known():
    q = draw_probabilities([0.0, 1.0, 3.0])
    assert q == pytest.approx([0.2 / 3, 0.2 / 3 + 0.2, 0.2 / 3 + 0.6])
    assert draw_probabilities([0.0, 0.0]).tolist() == [0.5, 0.5]
    assert draw_probabilities([1.0, 2.0], sharpness=50.0)[1] == pytest.approx(0.9)
    with pytest.raises(DataError, match="even share"):
        draw_probabilities([1.0], even=0)


def test_votes_carry_their_draws():
    drawn = [group(k, drawn_with=q, candidates=n) for k, (q, n) in enumerate([(0.1, 5), (0.4, 4)])]
    votes = votes_of([*drawn, group(9)]).votes
    assert votes[0].drawn == (0.1, 5)
    assert propensity_weights(votes) == pytest.approx([*weights_of_draws([0.1, 0.4], [5, 4]), 1])
    weight = battles_of_votes(votes).weight_N
    assert weight.mean() == pytest.approx(1)
    assert propensity_weights(votes_of([group(0), group(1, chosen_with=0.5)]).votes).tolist() == [1, 2]
