"""Annotations in AlpacaEval's form, written here: our points are the published ones, our intervals not narrower."""

import json

import numpy as np
import pytest
from benchmarks import win_rates


def annotations(n: int = 300, seed: int = 0, taste: float = 1.0) -> list[dict]:
    """A judge with a taste for length, on texts of letters."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        lengths = rng.integers(20, 400, 2)
        logit = 0.3 + taste * np.tanh((lengths[1] - lengths[0]) / 150)
        p = 1 / (1 + np.exp(-(logit + rng.normal())))
        texts = ["x" * int(length) for length in lengths]
        made.append({"instruction": f"Question {i}", "output_1": texts[0], "output_2": texts[1], "preference": 1 + p})
    return made


@pytest.fixture(autouse=True)
def _sklearn():
    pytest.importorskip("sklearn")


def test_points_are_the_published_ones_and_intervals_are_not_narrower():
    made = annotations()
    theirs, (raw, controlled) = win_rates.published(made), win_rates.ours(made, rounds=400)
    assert 100 * raw.value == pytest.approx(theirs.raw, abs=1e-9)
    assert 100 * (raw.high - raw.low) / 2 == pytest.approx(1.96 * theirs.raw_error, rel=0.08)
    assert 100 * controlled.value == pytest.approx(theirs.unpenalised, abs=0.05)
    assert 100 * controlled.value == pytest.approx(theirs.controlled, abs=0.5)
    assert theirs.controlled_error == pytest.approx(0, abs=1e-9)  # equal fitted probabilities: no error at all
    assert 100 * (controlled.high - controlled.low) > 2


def test_with_difficulties_the_published_interval_is_that_of_fitted_probabilities():
    made = annotations(seed=1)
    difficulty = np.random.default_rng(2).normal(size=len(made))
    theirs, (_, controlled) = win_rates.published(made, difficulty), win_rates.ours(made, rounds=400)
    assert 0 < 1.96 * theirs.controlled_error < 100 * (controlled.high - controlled.low) / 2
    assert 100 * controlled.value == pytest.approx(theirs.controlled, abs=1)


def test_ties_and_the_judge_that_likes_length():
    made = [one | {"preference": preference} for one, preference in zip(annotations(4), (0, 1, 1.5, 2), strict=True)]
    assert win_rates.outcomes(made).tolist() == [0.5, 0, 0.5, 1]
    fond = annotations(seed=3, taste=3.0)
    raw, controlled = win_rates.ours(fond, rounds=200)
    assert controlled.low < 1 / (1 + np.exp(-0.3)) < controlled.high
    assert raw.n == 300


def test_the_table(tmp_path, monkeypatch, capsys):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations(60)))
    monkeypatch.setattr("sys.argv", ["win_rates", str(path), "--rounds", "50"])
    win_rates.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("| annotations | 60 | ")
    assert printed[2].count(" to ") == 2
