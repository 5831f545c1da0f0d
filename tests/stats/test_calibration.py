"""Judges beside people: closed forms, planted biases that fire, a judge that is no better than `longest`."""

import math

import numpy as np
import pytest
from tests.chance import near, shifted

from tiltyard.errors import DataError
from tiltyard.stats.calibration import (
    JudgedPairs,
    calibration_table,
    majority,
    order_counts,
    people_agreement,
)

NAN = math.nan


def rows(judges, people, lengths=None, prompts=None):
    n = len(people)
    lengths = np.stack([np.arange(n) % 7, np.arange(n) % 5], 1) if lengths is None else lengths
    table = calibration_table(judges, people, range(n) if prompts is None else prompts, lengths, rounds=300)
    return {row.name: row for row in table}


def test_majority_of_votes():
    assert majority([1, 1, 0]) == 1
    assert majority([1, 0, 0.5]) == 0.5
    assert majority([0.5, 0]) == 0
    assert math.isnan(majority([]))


def test_one_person_against_the_others():
    """Votes 1, 1, 0: two of them meet a tie of the others (one half each), the third a majority against it."""
    assert people_agreement([[1, 1, 0], [1]], ["a", "b"]).value == pytest.approx(1 / 3)
    assert people_agreement([[1], [0]], ["a", "b"]).n == 0


def test_closed_forms():
    people = [1, 1, 0, 0, 0.5]
    lengths = [[9, 1], [1, 9], [5, 5], [2, 8], [1, 2]]
    judge = JudgedPairs([0.9, 0.2, 0.5, NAN, 0.9], again_N=[0.9, 0.8, 0.5, 0.1, 0.9], price=1.5, seconds=20)
    found = rows({"j": judge}, people, lengths)
    j = found["j"]
    assert (j.n, j.missing) == (3, 1)
    assert j.agreement.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert j.gain.value == pytest.approx((0 + 0 + 0) / 3)  # longest: right, wrong, a tie
    assert j.longer.value == pytest.approx(2 / 3)  # of the pairs 1, 2 and 5
    assert j.repeat.value == pytest.approx(3 / 4)
    assert (j.price, j.seconds) == (1.5, 20)
    assert found["longest"].agreement.value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["first"].agreement.value == 0.5
    assert found["random"].agreement.value == 0.5
    assert found["random"].agreement.n == 4
    assert not found["longest"].biases


def test_counts_of_both_orders():
    """Published definitions: a missing verdict is never right, and the kappa is that of `1` against anything else."""
    counts = order_counts([1, 0, 1, NAN, NAN], [1, 0, 0, NAN, 1], [1, 0, 1, 1, 1])
    assert counts[:5] == (5, (3, 3), 2, 3, 2)
    assert counts.average == pytest.approx(0.6)
    by_chance = 0.4 * 0.4 + 0.6 * 0.6
    assert counts.kappa == pytest.approx((3 / 5 - by_chance) / (1 - by_chance))
    assert math.isnan(order_counts([1, 1], [1, 1], [1, 1]).kappa)


def test_a_judge_that_is_longest_gains_nothing_over_it():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, (200, 2))
    people = (rng.random(200) < 0.5).astype(float)
    longest = (np.sign(lengths[:, 0] - lengths[:, 1]) + 1) / 2
    found = rows({"j": JudgedPairs(longest), "right": JudgedPairs(people)}, people, lengths)
    assert found["j"].gain[:3] == (0, 0, 0)
    assert not found["j"].beats_longest
    assert found["right"].beats_longest
    assert found["right"].kappa.value == 1
    assert found["j"].agreement == found["longest"].agreement


@pytest.mark.statistical
@pytest.mark.parametrize("bias", ["none", "position", "length", "self-preference"])
def test_planted_biases_fire(bias):
    """Log-odds of 1.5 for the right response, and 2 more for the first position, the longer or the own response."""
    rng, n = np.random.default_rng(shifted(3)), 1500
    truth = (rng.random(n) < 0.5).astype(float)
    lengths = rng.integers(50, 400, (n, 2))
    own = (rng.random(n) < 0.5).astype(float)
    logit = 1.5 * (2 * truth - 1) + rng.logistic(size=(2, n))
    if bias == "length":
        logit += 2 * np.sign(lengths[:, 0] - lengths[:, 1])
    if bias == "self-preference":
        logit += 2 * (2 * own - 1)
    position = 2.0 if bias == "position" else 0.0
    orders = 1 / (1 + np.exp(-(logit + np.array([[position], [-position]]))))
    judge = JudgedPairs(orders.mean(0), orders.T, own_N=own)
    found = rows({"j": judge}, truth, lengths)["j"]
    assert bias == "none" or bias in found.biases
    if bias == "position":
        assert found.first.value > 0.65
        assert found.disagree.value > 0.3
    assert found.beats_longest
    near(found.own_excess.value, 0.0, 0.03, "own response") if bias == "none" else None


def test_bad_input():
    with pytest.raises(DataError, match="one verdict for each pair"):
        rows({"j": JudgedPairs([1, 0])}, [1, 0, 1])
    with pytest.raises(DataError, match="decided none"):
        rows({}, [0.5, NAN])
    with pytest.raises(DataError, match="two lengths"):
        calibration_table({}, [1, 0], ["a", "b"], [[1, 2]])
    with pytest.raises(DataError, match="rename"):
        rows({"first": JudgedPairs([1, 0])}, [1, 0])
    with pytest.raises(DataError, match="two verdicts and a label"):
        order_counts([1], [1, 0], [1, 0])
