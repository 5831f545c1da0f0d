import dataclasses

import numpy as np
import pytest

from tiltyard.errors import ConfigError, DataError
from tiltyard.evaluation import EvaluatedResponse, summarise


def answers(shift=0.0, prompts=12, n=3, seed=0, **changes):
    rng = np.random.default_rng(seed)
    made = [
        EvaluatedResponse(
            f"p{p}", f"question {p}", "a b c", 3 + k, k == 0, rng.normal(), shift + rng.normal(), 1.0, None, 0.5, 0.2
        )
        for p in range(prompts)
        for k in range(n)
    ]
    return [dataclasses.replace(a, **changes) for a in made]


def test_means_and_counts():
    rows = answers()
    result = summarise("sft", rows, rows)
    assert result.gold == pytest.approx(np.mean([a.gold for a in rows]))
    assert result.gold_ci[0] < result.gold < result.gold_ci[1]
    assert (result.helpful, result.truthful, result.harmless) == (1.0, None, 0.5)
    assert result.helpful_ci[0] == pytest.approx(0.7575, abs=1e-4)  # Wilson, 12 of 12 prompts: not certainty
    assert (result.length, result.truncated, result.n, result.prompts) == (4.0, pytest.approx(1 / 3), 36, 12)
    assert (result.kl, result.kl_ci) == (pytest.approx(0.2), pytest.approx((0.2, 0.2)))
    assert result.distinct_2 == pytest.approx(2 / 72)


def test_baseline_against_itself_is_exactly_half():
    rows = answers()
    result = summarise("sft", rows, rows)
    assert (result.win_rate, result.win_rate_ci) == (0.5, (0.5, 0.5))
    assert result.baseline == "sft"


def test_win_rates_mirror_each_other():
    a, b = answers(9.0, seed=1), answers(seed=2)
    assert summarise("a", a, b).win_rate == pytest.approx(1 - summarise("b", b, a).win_rate)
    assert summarise("a", a, b).win_rate > 0.5
    assert summarise("a", a, b, "proxy").win_rate != summarise("a", a, b).win_rate


def test_order_of_answers_does_not_matter():
    a, b = answers(seed=1), answers(seed=2)
    assert summarise("a", a[::-1], b).win_rate == summarise("a", a, b[::-1]).win_rate


def test_what_is_not_measured_is_none():
    result = summarise("base", answers(gold=None, kl=None), None)
    assert (result.gold, result.gold_ci, result.kl, result.win_rate, result.baseline) == (None,) * 5
    assert summarise("base", answers(gold=None), answers()).win_rate is None


def test_rates_average_where_they_apply():
    rows = answers(truthful=None)[:-1] + answers(truthful=0.0)[-1:]
    assert summarise("x", rows).truthful == 0.0


def test_one_prompt_knows_no_interval():
    result = summarise("x", answers(prompts=1))
    assert result.gold is not None
    assert result.gold_ci is None


def test_errors_name_the_model_and_the_prompt():
    with pytest.raises(DataError, match="x: there are no responses"):
        summarise("x", [])
    rows = answers()
    rows[4] = dataclasses.replace(rows[4], gold=None)
    with pytest.raises(DataError, match=r"x, prompt 'p1': 'gold' is missing on 1 of 36"):
        summarise("x", rows)
    with pytest.raises(DataError, match="'proxy' is not finite"):
        summarise("x", answers(proxy=float("nan")))
    with pytest.raises(DataError, match="same prompts"):
        summarise("x", answers(), answers(prompts=5))
    with pytest.raises(ConfigError, match="win_by"):
        summarise("x", answers(), None, "silver")
