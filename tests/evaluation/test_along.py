"""A training run followed through its stored samples."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tiltyard.errors import DataError
from tiltyard.evaluation.along import course_of
from tiltyard.report.along_plots import collapse_lines, collapse_png, overoptimisation_lines
from tiltyard.runs import StageReader, group_to_dict
from tiltyard.scoring import FunctionScorer
from tiltyard.types import Group, Prompt, Response


def stage(folder: Path, *, kl: bool = True) -> StageReader:
    """Ten steps of three responses: all different at first, all alike at the end."""
    with (folder / "groups.jsonl").open("w") as groups, (folder / "metrics.jsonl").open("w") as metrics:
        for step in range(1, 11):
            for k in range(3):
                words = f"it is a word number {k if step < 6 else 7}"
                one = Group(Prompt(text=f"p{k}"), (Response(ids=(1,), text=words, finish="stop"),), (0.1 * step,))
                groups.write(json.dumps({"step": step, **group_to_dict(one)}) + "\n")
            row = {"step": step, "score": 0.1 * step, "entropy": 2.0 / step} | ({"kl": 0.2 * (step - 1)} if kl else {})
            metrics.write(json.dumps(row) + "\n")
    return StageReader(folder)


def test_a_run_is_followed_step_by_step(tmp_path: Path) -> None:
    length = FunctionScorer(lambda prompt, response: float(response.text.endswith("7")))
    course = course_of("ppo", stage(tmp_path), length)
    assert course.step == list(range(1, 11))
    assert course.kl == pytest.approx([0.2 * i for i in range(10)])
    assert course.reward == pytest.approx([0.1 * i for i in range(1, 11)])
    assert course.gold == [0.0] * 5 + [1.0] * 5
    assert course.unique[0] == 1.0
    assert course.unique[-1] == pytest.approx(1 / 3)
    assert course.self_bleu[-1] == pytest.approx(1.0)
    assert course.self_bleu[0] < 0.9
    assert course.distinct_2[-1] < course.distinct_2[0]
    assert course.fit is not None
    assert course.fit.start == 0.0
    (line,) = overoptimisation_lines(None, [course])
    assert "ppo: gold = 0.00 + d (a - b log d)" in line
    assert "ppo, first to last fifth of 10 steps: entropy a token (nats) 1.50 to 0.21" in collapse_lines([course])[0]
    assert collapse_png(tmp_path / "collapse.png", [course]).read_bytes()[:4] == b"\x89PNG"
    assert json.loads(json.dumps(course.to_dict()))["fit"]["form"] == "rl"


def test_a_run_without_gold_or_without_kl(tmp_path: Path) -> None:
    course = course_of("ppo", stage(tmp_path))
    assert course.gold == []
    assert course.fit is None
    assert overoptimisation_lines(None, [course]) == []
    (tmp_path / "no").mkdir()
    with pytest.raises(DataError, match="measured a KL"):
        course_of("ppo", stage(tmp_path / "no", kl=False))
    assert not math.isnan(course.entropy[0])
