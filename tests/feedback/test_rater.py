"""The simulated rater: expectations of ratings from 1 to 10 around the utility, and ratings drawn by that law."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from tests.chance import chi_square, shifted

from tiltyard.errors import ConfigError
from tiltyard.feedback import SimulatedJudge, SimulatedRater, build_score_judge
from tiltyard.types import Group
from tiltyard.world import gold

from .worlds import judge_settings, world_pairs


def golds(group: Group) -> tuple[float, ...]:
    return tuple(gold(group.prompt.meta, r.text).total for r in group.responses)


def law(u: float, temperature: float) -> dict[float, float]:
    """The chance of each of (2i - 11)/9: weights that fall off around u, in plain numbers."""
    units = [(2 * i - 11) / 9 for i in range(1, 11)]
    weights = [math.exp(-((x - u) ** 2) / (2 * temperature**2)) for x in units]
    return {x: w / sum(weights) for w, x in zip(weights, units, strict=True)}


def moments(u: float, temperature: float) -> tuple[float, float]:
    """Mean and variance of a rating."""
    chances = law(u, temperature)
    mean = sum(p * x for x, p in chances.items())
    return mean, sum(p * (x - mean) ** 2 for x, p in chances.items())


@pytest.mark.parametrize("temperature", [0.15, 0.5, 2.0])
def test_a_rating_is_an_expectation_around_the_utility(temperature: float) -> None:
    groups = world_pairs(20)
    judge = SimulatedRater({"gold": 1.0, "length": -0.1}, temperature)
    plain = SimulatedJudge({"gold": 1.0, "length": -0.1})
    wanted = [g.score for row in plain.score(groups) for g in row]
    found = [g.score for row in judge.score(groups) for g in row]
    assert found == pytest.approx([moments(u, temperature)[0] for u in wanted], abs=1e-12)
    assert all(-1 <= x <= 1 for x in found)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(found[a] < found[b] for a, b in itertools.pairwise(order) if wanted[b] - wanted[a] > 1e-9)
    assert judge.usage.calls == 40


def test_a_rater_that_knows_nothing_or_everything() -> None:
    """Uniform over the ten ratings: 5.5, which is 0. Sure: the nearest rating."""
    groups = world_pairs(10)
    assert [g.score for row in SimulatedRater(temperature=1e6).score(groups) for g in row] == pytest.approx([0.0] * 20)
    for row, truth in zip(SimulatedRater(temperature=1e-2).score(groups), map(golds, groups), strict=True):
        for grade, u in zip(row, truth, strict=True):
            nearest = min(((2 * i - 11) / 9 for i in range(1, 11)), key=lambda x: abs(x - u))
            assert grade.score == pytest.approx(nearest, abs=1e-6) or abs(abs(nearest - u) - 1 / 9) < 1e-3


@pytest.mark.statistical
def test_drawn_ratings_are_of_that_law() -> None:
    """The mean of many votes against the law's own mean and variance, for every answer once."""
    votes = 4000
    answers = {(i, r.text): (g, r) for i, g in enumerate(world_pairs(20)) for r in g.responses}
    groups = [Group(g.prompt, (r,)) for g, r in answers.values()]
    found = [row[0].score or 0.0 for row in SimulatedRater({}, 0.5, votes, seed=shifted(3)).score(groups)]
    exact = [moments(golds(g)[0], 0.5) for g in groups]
    statistic = sum(votes * (x - mean) ** 2 / spread for x, (mean, spread) in zip(found, exact, strict=True))
    chi_square(statistic, len(groups))


def test_drawn_ratings_are_whole_and_repeat() -> None:
    groups = world_pairs(20)
    few = SimulatedRater(temperature=0.5, votes=1, seed=3)
    first = [g.score for row in few.score(groups) for g in row]
    assert {round((9 * x + 11) / 2, 9) for x in first} <= set(range(1, 11))
    assert len(set(first)) > 3
    assert [g.score for row in few.score(groups) for g in row] == first  # its error is the question's
    assert [g.score for row in SimulatedRater(temperature=0.5, votes=1, seed=4).score(groups) for g in row] != first


def test_who_is_asked_for_a_score_rates() -> None:
    """`ask: score` is a rating on [-1, 1], `points` the utility itself, which no votes are drawn for."""
    groups = world_pairs(4)

    def built(**settings: Any) -> Any:
        return build_score_judge(
            judge_settings(kind="simulated", **settings), lambda name: pytest.fail("no model is needed")
        )

    drawn = {"temperature": 0.4, "votes": 3, "seed": 5}
    assert built(ask="score", **drawn).score(groups) == SimulatedRater({}, 0.4, 3, seed=5).score(groups)
    assert [tuple(g.score for g in row) for row in built(ask="points").score(groups)] == [golds(g) for g in groups]
    with pytest.raises(ConfigError, match="votes has no effect with ask: points"):
        built(ask="points", votes=3)
    with pytest.raises(ConfigError, match="position_bias has no effect with ask: score"):
        built(ask="score", position_bias=1.0)
