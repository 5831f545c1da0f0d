"""Judge-corrected rates: closed forms, planted errors, useless and perfect judges, coverage."""

import math

import numpy as np
import pytest
from tests.chance import near, shifted
from tests.stats.simulated import SIMULATIONS, covers

from tiltyard.errors import DataError
from tiltyard.stats.corrected import ppi_rate, rogan_gladen
from tiltyard.stats.intervals import rate_ci


def judged(rng, n, n_people, rate=0.6, q1=0.85, q0=0.75, per_prompt=1, spread=0.0):
    """Returns judge, people and prompts: prompts differ in their rate by `spread`, and come whole."""
    prompt_N = np.arange(n) // per_prompt
    rate_N = np.clip(rate + spread * rng.standard_normal(n)[prompt_N], 0, 1)
    truth_N = (rng.random(n) < rate_N).astype(float)
    judge_N = np.where(truth_N == 1, rng.random(n) < q1, rng.random(n) >= q0).astype(float)
    return judge_N, np.where(prompt_N < n_people // per_prompt, truth_N, np.nan), prompt_N


def test_rogan_gladen_closed_form():
    """Test rate 0.5, sensitivity 0.8, specificity 0.9: (0.5 + 0.9 - 1) / 0.7."""
    judge = [1] * 8 + [0] * 2 + [0] * 9 + [1] + [1, 0] * 50
    people = [1] * 10 + [0] * 10 + [math.nan] * 100
    found = rogan_gladen(judge, people)
    assert found.estimate.value == pytest.approx(0.4 / 0.7)
    assert (found.sensitivity, found.specificity) == (0.8, pytest.approx(0.9))
    assert found.judge.value == pytest.approx(59 / 120)
    assert found.people.value == 0.5
    assert found.method == "rogan_gladen"
    assert found.estimate.low < 0.4 / 0.7 < found.estimate.high


def test_ppi_closed_form():
    """Weight 1 is the difference estimator; the tuned weight is that of PPI++."""
    rng = np.random.default_rng(0)
    judge, people, _ = judged(rng, 400, 100)
    on, off, h = judge[:100], judge[100:], people[:100]
    assert ppi_rate(judge, people, weight=1).estimate.value == pytest.approx(h.mean() + off.mean() - on.mean())
    weight = np.cov(h, on, bias=True)[0, 1] / ((1 + 100 / 300) * on.var())
    found = ppi_rate(judge, people)
    assert found.weight == pytest.approx(weight)
    assert found.estimate.value == pytest.approx(h.mean() + weight * (off.mean() - on.mean()))
    assert found.estimate.high - found.estimate.low < found.people.high - found.people.low


def test_constant_judge_gives_the_peoples_own_interval():
    people = np.where(np.arange(200) < 50, np.arange(200) % 3 == 0, np.nan)
    for constant in (0.0, 1.0):
        found = ppi_rate(np.full(200, constant), people)
        assert found.estimate == found.people == rate_ci(people[:50])
        assert (found.method, found.weight) == ("people", 0)
        assert found.reason
        found = rogan_gladen(np.full(200, constant), people)
        assert found.estimate == found.people
        assert "of no use" in found.reason


def test_judge_that_is_always_right():
    judge, people, _ = judged(np.random.default_rng(1), 2000, 200, q1=1, q0=1)
    for method in (rogan_gladen, ppi_rate):
        found = method(judge, people)
        assert found.estimate.value == pytest.approx(judge[200:].mean(), abs=0.02)
        assert found.estimate.low < found.estimate.value < found.estimate.high
        assert found.estimate.high - found.estimate.low < 0.7 * (found.people.high - found.people.low)


def test_every_item_labelled():
    judge, people, _ = judged(np.random.default_rng(2), 300, 300)
    assert ppi_rate(judge, people).estimate == rate_ci(people)
    assert rogan_gladen(judge, people).estimate.value == pytest.approx(people.mean())


def test_ties_and_probabilities():
    judge, people, prompts = judged(np.random.default_rng(3), 300, 60)
    judge, people = np.where(judge == 1, 0.8, 0.3), np.where(np.arange(300) % 10 == 0, people * 0 + 0.5, people)
    found = ppi_rate(judge, people, prompts)
    assert math.isnan(found.sensitivity)
    assert found.estimate.low < found.estimate.value < found.estimate.high
    with pytest.raises(DataError, match="0 or 1"):
        rogan_gladen(judge, people)


def test_bad_input():
    nan = math.nan
    with pytest.raises(DataError, match="two labels"):
        ppi_rate([1, 0, 1], [1, nan, nan])
    with pytest.raises(DataError, match="same order"):
        ppi_rate([1, 0, 1], [1, 0])
    with pytest.raises(DataError, match=r"0\.\.1"):
        ppi_rate([1, 0, 2], [1, 0, nan])
    with pytest.raises(DataError, match="all the same"):
        rogan_gladen([1, 0, 1], [1, 1, nan])
    with pytest.raises(DataError, match="weight"):
        ppi_rate([1, 0, 1], [1, 0, nan], weight=2)
    alone = ppi_rate([1, 0, 1, 1], [1, 0, nan, 0], ["p"] * 4)
    assert math.isnan(alone.estimate.low)


def test_equal_probabilities_change_nothing():
    judge, people, prompts = judged(np.random.default_rng(5), 400, 100)
    plain = ppi_rate(judge, people, prompts)
    weighted = ppi_rate(judge, people, prompts, chosen_with=np.full(400, 0.25))
    assert weighted.estimate.value == pytest.approx(plain.estimate.value, abs=1e-12)
    assert weighted.weight == pytest.approx(plain.weight, abs=1e-12)
    assert weighted.estimate.ci == pytest.approx(plain.estimate.ci, abs=1e-12)
    assert weighted.people.value == pytest.approx(plain.people.value)


def test_inverse_probabilities_closed_form():
    """Labels with probabilities 1/2 and 1/4 count 2 and 4; a perfect judge's own rate comes out."""
    judge, people = [1, 0, 1, 1, 0, 0], [1, 0, math.nan, math.nan, math.nan, 1]
    chosen = [0.5, 0.25, 0.5, 0.25, 0.25, 0.5]
    found = ppi_rate(judge, people, chosen_with=chosen, weight=0)
    assert found.people.value == pytest.approx((2 + 2) / (2 + 4 + 2))
    half = ppi_rate(judge, people, chosen_with=chosen, weight=0.5)  # 0.5 on the 3 others, 1 on all
    assert half.estimate.value == pytest.approx(4 / 8 + 1.0 * (3 / 6 - 2 / 8))
    sure = rogan_gladen([1, 1, 0, 0] * 50, [1, 1, 0, 0] * 50, chosen_with=[0.5, 0.25, 0.5, 1.0] * 50)
    assert sure.estimate.value == 0.5
    with pytest.raises(DataError, match="at most at 1"):
        ppi_rate(judge, people, chosen_with=[0.5, 0, 1, 1, 1, 1])
    with pytest.raises(DataError, match="has a probability"):
        ppi_rate(judge, people, chosen_with=[0.5])


def uneven(rng, n=1200):
    """Items of two kinds: of the harder one people label more, it is lost more often, and the judge errs more."""
    hard = rng.random(n) < 0.4
    truth = (rng.random(n) < np.where(hard, 0.35, 0.75)).astype(float)
    right = rng.random(n) < np.where(hard, 0.65, 0.9)
    chosen = np.where(hard, 0.4, 0.1)
    people = np.where(rng.random(n) < chosen, truth, np.nan)
    return np.where(right, truth, 1 - truth), people, chosen


UNEVEN_RATE = 0.4 * 0.35 + 0.6 * 0.75


@pytest.mark.statistical
def test_labels_drawn_unevenly_are_weighted():
    judge, people, chosen = uneven(np.random.default_rng(shifted(11)), 60_000)
    weighted = ppi_rate(judge, people, chosen_with=chosen, rounds=300)
    near(weighted.estimate.value, UNEVEN_RATE, (weighted.estimate.high - weighted.estimate.low) / 3.92, "ppi")
    assert weighted.people.value == pytest.approx(UNEVEN_RATE, abs=0.02)
    assert ppi_rate(judge, people, rounds=300).people.value < UNEVEN_RATE - 0.05  # the hard ones count too much


@pytest.mark.statistical
def test_a_judge_that_knows_nothing_leaves_the_peoples_interval():
    rng = np.random.default_rng(shifted(12))
    judge, people, _ = judged(rng, 4000, 1000, q1=0.5, q0=0.5)
    found = ppi_rate(judge, people)
    assert found.weight < 0.2
    near(found.estimate.value, found.people.value, 0.004, "value")
    assert found.estimate.high - found.estimate.low == pytest.approx(found.people.high - found.people.low, rel=0.08)
    assert rogan_gladen(judge, people).estimate == found.people


@pytest.mark.statistical
def test_planted_errors_are_corrected():
    rng = np.random.default_rng(shifted(7))
    judge, people, _ = judged(rng, 60_000, 20_000)
    for method in (rogan_gladen, ppi_rate):
        found = method(judge, people, rounds=300)
        near(found.estimate.value, 0.6, (found.estimate.high - found.estimate.low) / 3.92, method.__name__)
        assert abs(found.judge.value - 0.6) > 0.005  # 0.6 x 0.85 + 0.4 x 0.25 = 0.61


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("case", ["plain", "prompts", "useless", "wrong", "rare", "uneven"])
def test_coverage(case):
    more = {
        "plain": {},
        "prompts": {"per_prompt": 5, "spread": 0.25},
        "useless": {"q1": 0.5, "q0": 0.5},
        "wrong": {"q1": 0.3, "q0": 0.2},  # worse than a coin: people alone count
        "rare": {"rate": 0.85, "q1": 0.95, "q0": 0.9},
        "uneven": {"rate": UNEVEN_RATE},
    }[case]
    rng = np.random.default_rng(shifted(21))
    truth = more.get("rate", 0.6)
    if case == "prompts":  # the mean of the clipped rates
        truth = float(np.clip(0.6 + 0.25 * np.random.default_rng(0).standard_normal(4_000_000), 0, 1).mean())
    found = {"rogan_gladen": [], "ppi_rate": [], "people": []}
    # Rogan-Gladen of weighted labels covers 94%: three times the simulations tell that from 93
    for seed in range(SIMULATIONS * (3 if case == "uneven" else 1)):
        judge, people, prompts = judged(rng, 1000, 200, **more)
        chosen = None
        if case == "uneven":
            judge, people, chosen = uneven(rng)
        clusters = prompts if case == "prompts" else None
        for method in (rogan_gladen, ppi_rate):
            result = method(
                judge, people, clusters, chosen_with=chosen, rounds=300 if chosen is not None else 400, seed=seed
            )
            found[method.__name__].append(result.estimate.ci)
        found["people"].append(result.people.ci)
    width = {name: float(np.mean(np.diff(np.array(bounds)))) for name, bounds in found.items()}
    # people's own rate without prompts and probabilities is Wilson's: tests/stats/test_coverage.py has it exactly
    for name in found if case in ("prompts", "uneven") else ("rogan_gladen", "ppi_rate"):
        covers(
            *np.array(found[name]).T,
            truth,
            f"{case} {name}, mean width {width[name]:.3f}, people {width['people']:.3f},",
        )
    assert width["ppi_rate"] < 1.01 * width["people"]
