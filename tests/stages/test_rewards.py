"""Rewards of a recipe and of the command line: functions by path, weighted sums, monitors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiltyard import cli
from tiltyard.errors import TiltyardError

from . import tiny
from .conftest import Whole

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

REWARDS = '''
def concise(prompt, response):
    """1 for no words, 0.02 less a word."""
    return 1 - 0.02 * len(response.text.split())


async def of_group(group):
    """Each response's place in its group."""
    return [float(k) for k in range(len(group.responses))]


def broken(prompt, response):
    """No number."""
    return None
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def go(whole: Whole, folder: Path, **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    made, _ = tiny.tuned(whole.run, folder, "grpo", steps=2, prompts_per_step=3, samples_per_prompt=3, **more)
    return tiny.rows(made / "metrics.jsonl"), tiny.rows(made / "groups.jsonl")


def words(group: dict[str, Any]) -> list[float]:
    return [1 - 0.02 * len(r.get("text", "").split()) for r in group["responses"]]


def test_a_function_of_a_file_and_a_monitor_beside_it(whole: Whole, place: Path) -> None:
    rows, groups = go(whole, place, reward="rewards.py:concise", monitors=["gold", "rewards.py:of_group"])
    for group in groups:
        assert group["scores"] == pytest.approx(words(group))
    for row in rows:
        scores = [s for g in groups if g["step"] == row["step"] for s in g["scores"]]
        assert row["score"] == pytest.approx(sum(scores) / len(scores))
        assert row["reward/of_group"] == pytest.approx(1.0)
        assert -3 < row["reward/gold"] < 3


def test_a_weighted_sum_logs_its_parts(whole: Whole, place: Path) -> None:
    parts = {
        "quality": {"from": str(whole.run / "reward"), "weight": 0.5},
        "brevity": {"from": "rewards.py:concise", "weight": 2.0},
    }
    rows, groups = go(whole, place, reward=parts, monitors=[])
    for row in rows:
        assert row["score"] == pytest.approx(0.5 * row["reward/quality"] + 2 * row["reward/brevity"], abs=1e-6)
        brevity = [w for g in groups if g["step"] == row["step"] for w in words(g)]
        assert row["reward/brevity"] == pytest.approx(sum(brevity) / len(brevity))
    assert "reward/gold" not in rows[0]


def test_a_rule_scores_one_or_nought_and_is_a_monitor_too(whole: Whole, place: Path) -> None:
    parts = {
        "brief": {"from": "rule", "max_words": 3},
        "asks": {"from": "rule", "ends_with_question": True, "weight": 2},
    }
    rows, groups = go(whole, place, reward=parts, monitors={"short": {"from": "rule", "max_words": 3}})
    for row in rows:
        here = [w for g in groups if g["step"] == row["step"] for w in words(g)]
        passed = [float(w >= 1 - 0.02 * 3 - 1e-9) for w in here]
        assert row["reward/brief"] == row["reward/short"] == pytest.approx(sum(passed) / len(passed))
        assert row["score"] == pytest.approx(row["reward/brief"] + 2 * row["reward/asks"])


def test_one_rule_by_itself_is_a_pass_rate(whole: Whole, place: Path) -> None:
    rows, groups = go(whole, place, reward={"from": "rule", "min_words": 2, "no_list": True})
    scores = [score for group in groups for score in group["scores"]]
    assert set(scores) <= {0.0, 1.0}
    assert sum(row["score"] for row in rows) / len(rows) == pytest.approx(sum(scores) / len(scores))


def test_from_the_command_line_and_again_after_a_change(whole: Whole, place: Path, capsys: Any) -> None:
    run = whole.run
    command = ["train", "grpo", f"model={run / 'sft'}", "reward=rewards.py:of_group", "steps=1", "device=cpu"]
    command += [f"prompts={run / 'world/prompts.jsonl'}", "prompts_per_step=2", "samples_per_prompt=2", "max_tokens=4"]
    assert cli.main([*command, "limit=4", "max_prompt=48"]) == 0
    assert cli.main([*command, "limit=4", "max_prompt=48"]) == 0
    assert "skipped" in capsys.readouterr().out
    (place / "rewards.py").write_text(REWARDS + "\n# changed\n")
    assert cli.main([*command, "limit=4", "max_prompt=48"]) == 0
    assert "its file rewards.py:of_group changed" in capsys.readouterr().out
    config = json.loads((place / "runs/grpo/grpo/config.json").read_text())
    assert config["settings"]["reward"] == "rewards.py:of_group"


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("rewards.py:concize", ["no function 'concize'", "did you mean 'concise'?"]),
        ("reward.py:concise", ["reward.py", "did you mean 'rewards.py'?"]),
        ("rewards.py:broken", ["no step taught anything", "the scores"]),
        (
            {"a": {"from": "rewards.py:concise", "wieght": 1}},
            ["unknown setting 'reward.a.wieght'", "did you mean 'weight'?"],
        ),
        ({"a": {"weight": 1}}, ["a.from: Field required"]),
        ({"from": "rule", "max_wrods": 3}, ["unknown setting 'reward.max_wrods'", "did you mean 'max_words'?"]),
        ({"a": {"from": "rule", "max_words": "3"}}, ["'reward.a.max_words' does not fit", "int"]),
        ({"from": "rule"}, ["a rule needs at least one wish"]),
        ({"a": {"from": "rewards.py:concise", "max_words": 3}}, ["max_words is a wish of a rule"]),
        ({"from": "rule", "number": "total"}, ["no field 'total'", "reward.number"]),
    ],
)
def test_what_is_wrong_is_named(whole: Whole, place: Path, reward: Any, said: list[str]) -> None:
    with pytest.raises(TiltyardError) as error:
        go(whole, place, reward=reward)
    for text in said:
        assert text in str(error.value)
