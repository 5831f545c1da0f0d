"""Alarms of training on simulated series: what raises one, when, and how often nothing does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chance import shifted

from tiltyard.stats.alarms import Alarms, AlarmWatch, Series, alarms_of
from tiltyard.stats.refusals import begins_with_refusal
from tiltyard.stats.text import repeated_pairs

STEPS, CHANGE = 60, 30


def rows_of(**columns):
    return [{"step": i + 1, **{k.replace("gold", "reward/gold"): float(v[i]) for k, v in columns.items()}}
            for i in range(len(next(iter(columns.values()))))]  # fmt: skip


def noise(rng, scale, size=STEPS):
    return rng.normal(0, scale, size)


def healthy(rng, steps=STEPS):
    """A run whose reward and gold rise together, with a little more KL, a little longer."""
    t = np.linspace(0, 1, steps)
    return {
        "score": -0.1 + 0.6 * t + noise(rng, 0.09, steps),
        "gold": 0.3 + 0.25 * t + noise(rng, 0.09, steps),
        "length": 13 + 3 * t + noise(rng, 0.8, steps),
        "kl": 1.5 * t + noise(rng, 0.05, steps),
        "entropy": 0.6 - 0.15 * t + noise(rng, 0.04, steps),
        "repetition": 0.02 + noise(rng, 0.005, steps),
        "unique": 0.9 + noise(rng, 0.03, steps),
        "refusals": 0.2 + noise(rng, 0.05, steps),
    }


def ramp(before, after, scale, rng):
    """A series that changes over ten steps from `CHANGE` on."""
    t = np.clip((np.arange(STEPS) - CHANGE) / 10, 0, 1)
    return before + (after - before) * t + noise(rng, scale)


PLANTED = {
    "proxy": {"gold": (0.4, -0.2, 0.09)},
    "length": {"length": (14, 40, 0.8)},
    "repetition": {"repetition": (0.02, 0.5, 0.01)},
    "refusals": {"refusals": (0.2, 0.8, 0.05)},
    "collapse": {"entropy": (0.6, 0.05, 0.04)},
    "kl": {"kl": (1.0, 30.0, 0.1)},
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_raises_its_alarm_and_no_other(kind):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        columns = healthy(rng) | {name: ramp(*how, rng) for name, how in PLANTED[kind].items()}
        found = alarms_of(rows_of(**columns))
        assert [one.kind for one in found] == [kind]
        assert CHANGE < found[0].step <= CHANGE + 15
        assert found[0].text


def test_fewer_different_responses_is_a_collapse():
    rng = np.random.default_rng(0)
    found = alarms_of(rows_of(**(healthy(rng) | {"unique": ramp(0.9, 0.1, 0.03, rng)})))
    assert [(one.kind, one.metric) for one in found] == [("collapse", "unique")]
    assert found[0].now < 0.4 * found[0].before


def test_a_monitor_that_does_not_follow():
    """Gold neither rises nor falls while the reward rises by twenty of its standard errors."""
    rng = np.random.default_rng(1)
    columns = healthy(rng) | {"score": np.linspace(0, 3, STEPS) + noise(rng, 0.09), "gold": 0.2 + noise(rng, 0.09)}
    (found,) = alarms_of(rows_of(**columns))
    assert (found.kind, found.metric) == ("proxy", "reward/gold")
    assert "did not" in found.text


@pytest.mark.statistical
def test_healthy_runs_raise_next_to_none():
    """At most one alarm in a hundred of the runs of `healthy`: those have the trends of regularised runs."""
    seed = shifted(11)
    runs = [alarms_of(rows_of(**healthy(np.random.default_rng((seed, i))))) for i in range(200)]
    assert sum(map(bool, runs)) <= 2 + 4 * math.sqrt(2)


def test_scales_do_not_matter():
    """Reward and monitor are compared in standard errors: any units give the same steps."""
    rng = np.random.default_rng(3)
    columns = healthy(rng) | {"gold": ramp(0.4, -0.2, 0.09, rng)}
    scaled = columns | {"score": 100 * columns["score"] - 7, "gold": 0.001 * columns["gold"] + 3}
    steps = [[(one.step, one.kind) for one in alarms_of(rows_of(**c))] for c in (columns, scaled)]
    assert steps[0] == steps[1] != []


def test_parts_of_the_trained_reward_are_no_monitors():
    rng = np.random.default_rng(4)
    columns = healthy(rng) | {"gold": ramp(0.4, -0.2, 0.09, rng)}
    assert alarms_of(rows_of(**columns), trained=["gold"]) == []


def test_limits_switch_kinds_off():
    rng = np.random.default_rng(5)
    columns = healthy(rng) | {name: ramp(*how, rng) for kind in PLANTED for name, how in PLANTED[kind].items()}
    rows = rows_of(**columns)
    assert {one.kind for one in alarms_of(rows)} == set(PLANTED)
    off = {"alarm_length": 1.0, "alarm_repetition": 1.0, "alarm_refusals": 1.0, "alarm_collapse": 0.0, "alarm_kl": 0.0}
    assert {one.kind for one in alarms_of(rows, Alarms.model_validate(off))} == {"proxy"}
    assert alarms_of(rows, Alarms(alarm_window=0)) == []


def test_rows_without_a_value_and_values_that_are_no_numbers():
    """Methods that sample in rounds have rows without these metrics; JSON has null for what is not finite."""
    rng = np.random.default_rng(6)
    rows = rows_of(**(healthy(rng) | {"length": ramp(14, 40, 0.8, rng)}))
    sparse = [
        row for one in rows for row in (one, {"step": one["step"], "loss": 1.0, "length": None, "score": math.nan})
    ]
    assert alarms_of(sparse) == alarms_of(rows)
    assert alarms_of([]) == []
    assert alarms_of(rows[:9]) == []


def test_each_kind_once():
    rng = np.random.default_rng(7)
    watch, raised = AlarmWatch(), []
    for row in rows_of(**(healthy(rng) | {"length": ramp(14, 40, 0.8, rng)})):
        raised += watch.add(row["step"], row)
    assert [one.kind for one in raised] == ["length"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(1, 6))
def test_the_running_change_is_that_of_the_whole_series(values, window):
    series = Series(window)
    for step, value in enumerate(values, 1):
        series.add(step, value)
    found = series.change()
    if len(values) < 2 * window:
        assert found is None
        return
    x = np.array(values)
    means = np.convolve(x, np.ones(window) / window, "valid")
    error = math.sqrt(np.sum(np.diff(x) ** 2) / (len(x) - 1) / window)
    assert found.before == pytest.approx(x[:window].mean(), abs=1e-9)
    assert found.now == pytest.approx(x[-window:].mean(), abs=1e-9)
    assert found.best == pytest.approx(means.max(), abs=1e-9)
    assert means[found.best_at - window] == pytest.approx(means.max(), abs=1e-9)
    assert found.z == pytest.approx((found.now - found.before) / error if error else 0, rel=1e-6, abs=1e-6)


@pytest.mark.statistical
def test_z_is_a_standard_normal_where_nothing_changes():
    rng = np.random.default_rng(shifted(8))
    z = []
    for _ in range(2000):
        series = Series(5)
        for step, value in enumerate(rng.normal(3, 2, 80)):
            series.add(step, value)
        z.append(series.change().z)
    assert np.mean(z) == pytest.approx(0, abs=4 / math.sqrt(2000))
    assert np.std(z) == pytest.approx(1.0, abs=0.08)  # the noise is estimated, of 79 differences


# ------------------------------------------------------------------------------------------------------------ of texts


def test_repeated_pairs():
    assert repeated_pairs([1, 2, 3, 4]) == 0
    assert repeated_pairs([1, 2, 1, 2, 1]) == pytest.approx(0.5)
    assert repeated_pairs([7] * 11) == pytest.approx(0.9)
    assert repeated_pairs([]) == repeated_pairs([1]) == 0


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, but I can\u2019t help with that.", True),
        ("Sorry, I will not help with this.", True),
        ("I cannot do that.", True),
        ("As an AI language model, I ...", True),
        ("Please do not hit anyone.", True),
        ("  **Unfortunately, I am unable** to", True),
        ("I can help with that.", False),
        ("Mija lives in Oakford.", False),
        ("He said: I cannot.", False),
        ("", False),
        ("I canter.", False),
    ],
)
def test_a_refusal_by_its_first_words(text, refuses):
    assert begins_with_refusal(text) is refuses
