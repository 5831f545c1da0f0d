"""What `evaluate` prints covers the truth in 95 +- 2% of 500 simulated evaluations, also of 30 prompts and at 95%."""

import math

import numpy as np
import pytest
from tests.chance import shifted
from tests.stats.simulated import SIMULATIONS, covers

from tiltyard.data.benchmarks import Item
from tiltyard.evaluation import EvaluatedResponse, summarise
from tiltyard.evaluation.benchmarks import BITS, PAIR, Column, figures
from tiltyard.types import Group, Prompt, Response

PROMPTS, ROUNDS = 30, 400


def rates(rng, p, spread=2.0):
    """A rate for each prompt with mean p: responses to one prompt are alike."""
    return rng.beta(spread * p, spread * (1 - p), PROMPTS)


def responses(rows):
    """Responses of rows of (prompt, measurements)."""
    return [EvaluatedResponse(f"p{i}", "", "", 5, **fields) for i, fields in rows]


def summary_of(kind, rng, p):
    """(estimate's low, high, truth) of one simulated evaluation."""
    if kind == "reward":  # three responses to a prompt, scores of prompt and response, of skewness 1
        levels = rng.gamma(4, 0.25, PROMPTS)
        rows = [(i, {"proxy": levels[i] + rng.normal()}) for i in range(PROMPTS) for _ in range(3)]
        return (*summarise("m", responses(rows), rounds=ROUNDS).proxy_ci, 1.0)
    if kind == "pass rate":
        of = rates(rng, p)
        rows = [(i, {"helpful": float(rng.random() < of[i])}) for i in range(PROMPTS) for _ in range(2)]
        return (*summarise("m", responses(rows), rounds=ROUNDS).helpful_ci, p)
    base = responses([(i, {"proxy": 0.0}) for i in range(PROMPTS)])
    if kind == "judge":  # the mean of two orders: 0, 1/2, 1
        of = rates(rng, p)
        rows = [(i, {"win": float((rng.random(2) < of[i]).mean())}) for i in range(PROMPTS)]
        return (*summarise("m", responses(rows), base, "judge", rounds=ROUNDS).win_rate_ci, p)
    of = rates(rng, p)  # wins by reward over one response of the baseline
    rows = [(i, {"proxy": 1.0 if rng.random() < of[i] else -1.0}) for i in range(PROMPTS) for _ in range(2)]
    return (*summarise("m", responses(rows), base, "proxy", rounds=ROUNDS).win_rate_ci, p)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "p"), [("reward", 0.5), *((kind, p) for kind in ("pass rate", "judge", "wins") for p in (0.5, 0.95))]
)
def test_tables_of_models(kind, p):
    rng = np.random.default_rng(shifted(round(100 * p)))
    runs = SIMULATIONS * (4 if kind == "reward" else 1)  # it is near the edge of 93%: 500 runs at some seeds are below
    low, high, truth = np.array([summary_of(kind, rng, p) for _ in range(runs)]).T
    covers(low, high, float(truth[0]), f"{kind}, {PROMPTS} prompts, {p}:")


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("measure", [PAIR, BITS])
def test_tables_of_benchmarks(measure):
    """Rates of two models on the same items, and bits per byte of documents of unequal size, with their differences."""
    rng = np.random.default_rng(shifted(3))
    items = [Item(Group(Prompt(text=f"q{i}"), (Response(text="x"),))) for i in range(40)]
    places = tuple(range(len(items)))
    found = []
    for _ in range(SIMULATIONS):
        level = rng.normal(size=40)
        sides = []
        weights = rng.integers(200, 2000, 40).astype(float) if measure is BITS else np.array([])
        for shift in (0.0, 0.5):
            if measure is BITS:
                values = 1.5 + 0.2 * level - 0.1 * shift + 0.05 * rng.normal(size=40)
            else:
                values = (rng.random(40) < 1 / (1 + np.exp(-level - shift))) * 1.0
            sides.append([Column(measure, places, tuple(values), tuple(weights))])
        before, after = figures("b", items, dict(zip(("before", "after"), sides, strict=True)), "before", rounds=ROUNDS)
        found.append((*before.estimate.ci, after.difference.low, after.difference.high))
    low, high, low_d, high_d = np.array(found).T
    grid = np.random.default_rng(0).normal(size=400_000)
    rate = [float((1 / (1 + np.exp(-grid - shift))).mean()) for shift in (0.0, 0.5)]
    covers(low, high, 1.5 if measure is BITS else rate[0], f"{measure.name}:")
    covers(low_d, high_d, -0.05 if measure is BITS else rate[1] - rate[0], f"difference of {measure.name}:")
    assert not math.isnan(low_d[0])
