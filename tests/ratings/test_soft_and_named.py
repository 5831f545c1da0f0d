"""Soft labels in ratings, and votes on responses that name their model."""

from dataclasses import replace

import numpy as np
import pytest
from tests.exchange.judged import group

from tiltyard.errors import DataError
from tiltyard.stats.corrected import ppi_rate
from tiltyard.stats.judged import NAMED, NAMES_ITSELF, battles_of_votes, rewarded, votes_of
from tiltyard.stats.judged_rates import corrected_wins
from tiltyard.stats.ratings.battles import battles_of
from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.elo import in_orders
from tiltyard.stats.ratings.uncertainty import sandwich
from tiltyard.types import Preference


def soft(k: int, p: float, **meta):
    one = group(k, **meta)
    return replace(one, preference=replace(one.preference, ranks=None, shares=(p, 1 - p)))


def test_a_soft_label_is_its_probability():
    """One comparison of p = 0.8: log-odds log 4, and as many battles as labels."""
    battles = battles_of_votes(votes_of([soft(k, 0.8) for k in range(10)]).votes)
    fit = bradley_terry(battles)
    rating = dict(zip(fit.models, fit.rating_M, strict=True))
    assert rating["sft"] - rating["dpo"] == pytest.approx(np.log(4))
    assert len(battles) == 10
    assert sandwich(fit) == pytest.approx(np.zeros((2, 2)), abs=1e-12)  # every label is the same number: no spread
    assert in_orders(battles.where(np.arange(1)), np.array([[0]]), 10.0, 0.0)[0] == pytest.approx([-3, 3])
    hard = votes_of([soft(k, 0.8) for k in range(3)], hard=True).votes
    assert {vote.p for vote in hard} == {None}


def test_soft_labels_are_weighted_copies():
    p = [0.9, 0.3, 0.6]
    found = bradley_terry(battles_of("xxy", "yzz", ["a", "b", "a"], p=p, prompt=[0, 1, 2]))
    copies = bradley_terry(
        battles_of("xxyxxy", "yzzyzz", "aaabbb", weight=[*p, *(1 - x for x in p)], prompt=[0, 1, 2, 0, 1, 2])
    )
    assert found.rating_M == pytest.approx(copies.rating_M, abs=1e-10)
    assert sandwich(found) == pytest.approx(sandwich(copies), abs=1e-10)
    with pytest.raises(DataError, match="the outcome that it prefers"):
        battles_of("x", "y", "a", p=[0.2])


def test_rewards_take_soft_labels():
    (one,) = rewarded([soft(0, 0.9)], prior_sd=1.0)
    (other,) = rewarded([soft(0, 0.6)], prior_sd=1.0)
    assert one.scores[0] > other.scores[0] > 0


def test_votes_that_were_not_blind_are_left_out_and_counted():
    told = group(1)
    told = replace(
        told,
        responses=(replace(told.responses[0], meta=told.responses[0].meta | {NAMES_ITSELF: True}), told.responses[1]),
    )
    found = votes_of([group(0), told])
    assert (len(found.votes), found.left_out) == (1, {NAMED: 1})
    assert len(votes_of([group(0), told], keep_named=True).votes) == 2


def test_corrected_wins_weigh_people_by_how_they_were_chosen():
    rng = np.random.default_rng(4)
    judge, people, chosen, truth = [], [], [], []
    for k in range(400):
        hard = k % 2
        p = 0.4 if hard else 0.1
        won = rng.random() < (0.3 if hard else 0.8)
        said = won if rng.random() < 0.8 else not won
        judge.append(group(k, ranks=(1, 2) if said else (2, 1), annotator="judge:x"))
        labelled = rng.random() < p
        chosen.append(p)
        truth.append(float(won) if labelled else np.nan)
        if labelled:
            people.append(group(k, ranks=(1, 2) if won else (2, 1), chosen_with=p))
    rows = {row.model: row for row in corrected_wins(votes_of([*people, *judge]).votes, rounds=100)}
    said = [float(g.preference.ranks == (1, 2)) for g in judge]
    expected = ppi_rate(said, truth, [f"q{k}" for k in range(400)], chosen_with=chosen, rounds=100)
    assert rows["sft"].corrected.estimate.value == pytest.approx(expected.estimate.value)
    assert rows["sft"].corrected.people.value == pytest.approx(expected.people.value)
    same = [replace(g, preference=replace(g.preference, meta=g.preference.meta | {"chosen_with": p}))
            for g, p in zip(judge, chosen, strict=True)]  # fmt: skip
    rows = {row.model: row for row in corrected_wins(votes_of([*people, *same]).votes, rounds=100)}
    plain = ppi_rate(said, truth, [f"q{k}" for k in range(400)], rounds=100)
    assert rows["sft"].corrected.estimate.value == pytest.approx(
        plain.estimate.value
    )  # the judge's pairs were drawn so


def test_a_preference_of_three_has_shares_of_each_pair():
    one = group(0, ("sft", "dpo", "ppo"))
    one = replace(one, preference=Preference(shares=(0.6, 0.3, 0.1), annotator="ada"))
    assert {round(max(v.p, 1 - v.p), 3) for v in votes_of([one]).votes} == {0.667, 0.857, 0.75}
