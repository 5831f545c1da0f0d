"""ReST as a stage: demonstrations beside the samples, offline losses, and judges whose scores cannot be pooled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiltyard.errors import ConfigError
from tiltyard.runs.groups import read_groups
from tiltyard.training.rounds import sampled
from tiltyard.world import gold

from . import tiny
from .conftest import Whole

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop


def go(whole: Whole, folder: Path, method: str, **more: Any) -> tuple[Path, dict[str, Any]]:
    """(the stage's folder, its result) of a short stage from the finished ones."""
    return tiny.tuned(
        whole.run,
        folder,
        method,
        **{"samples_per_prompt": 4, "steps": 4, "iterations": 2, "prompts_per_step": 3} | more,
    )


@pytest.mark.parametrize("loss", ["nll", "gold", "vmpo", "hinge"])
@pytest.mark.parametrize("reward", ["gold", "model"])
def test_demonstrations_join_the_rounds(whole: Whole, tmp_path: Path, loss: str, reward: str) -> None:
    """Scored by the reward model or by the world's rules like the samples; they cost judge calls and no samples."""
    data = whole.run / "world" / "demonstrations_held_out.jsonl"
    few = tmp_path / "few.jsonl"
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:5]))
    more = {"reward": "gold"} if reward == "gold" else {}
    folder, result = go(whole, tmp_path, "rest", demonstrations=str(few), loss=loss, thresholds=[0.1], **more)
    rows = tiny.rows(folder / "metrics.jsonl")
    for number in range(2):
        groups = list(read_groups(folder / "rounds" / f"round-{number:04d}.groups.jsonl"))
        assert len(sampled(groups)) == 6
        assert [g.responses[0].finish for g in groups[6:]] == ["given"] * 5
        row = rows[2 * number]
        assert row["sampled_share"] == pytest.approx(24 / 29)
        if reward == "gold":
            truth = [gold(g.prompt.meta, r.text).total for g in groups for r in g.responses]
            assert [s for g in groups for s in g.scores or ()] == pytest.approx(truth)
            assert row["reward/gold"] == pytest.approx(sum(truth[:24]) / 24)
    assert result["samples"] == 2 * 24


def test_a_pool_of_scores_that_are_no_scale_is_refused_before_anything_is_sampled(whole: Whole, tmp_path: Path) -> None:
    pair = {"kind": "simulated"}
    for judge, why in ((pair, "a judge of pairs"), ({"kind": "model", "model": "policy", "ask": "score"}, "as judge")):
        with pytest.raises(ConfigError, match="not on one scale") as caught:
            go(whole, tmp_path, "rft", reward=None, judge=judge)
        assert why in caught.value.got
        assert not (tmp_path / "rft" / "rft" / "rounds").exists()
    _, result = go(whole, tmp_path, "rft", reward=None, judge=pair, pool="last")
    assert result["judge_calls"] > 0


def test_the_rules_of_the_world_score_no_foreign_demonstration(whole: Whole, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "Who wrote it?", "completion": "Nobody knows."}) + "\n")
    with pytest.raises(ConfigError, match="belong to the embedded world"):
        go(whole, tmp_path, "rest", demonstrations=str(data), reward="gold", thresholds=[0.1])
