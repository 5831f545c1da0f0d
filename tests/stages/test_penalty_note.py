"""A penalty for a missing end that is far larger than the spread of the scores is told at the first step."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from models import tiny
from tiltyard.losses.advantages import missing_eos_B
from tiltyard.pipeline import run_stage
from tiltyard.stages.penalty_note import PenaltyNote

from .tiny import rows

REWARD = """
def small(prompt, response):
    return 0.01 * len(response.text)
"""


@pytest.mark.parametrize(("rule", "told"), [("subtract", True), ("replace", True), ("spread", False), ("none", False)])
def test_the_first_step_of_a_run(rule: str, told: bool, tmp_path: Path) -> None:
    tiny.causal("llama", vocab_size=512).save_pretrained(tmp_path / "policy")
    tiny.chat().tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "what is it?"}\n{"prompt": "yes"}\n')
    (tmp_path / "rewards.py").write_text(REWARD)
    out = io.StringIO()
    settings = {"model": str(tmp_path / "policy"), "prompts": str(tmp_path / "prompts.jsonl"), "max_prompt": 16,
                "steps": 2, "max_tokens": 4, "prompts_per_step": 2, "samples_per_prompt": 3, "device": "cpu",
                "reward": f"{tmp_path}/rewards.py:small", "missing_eos": rule}  # fmt: skip
    run_stage("rloo", settings, runs_root=tmp_path / "runs", name="x", console=Console(file=out, width=200))
    assert out.getvalue().count("! missing_eos: the penalty of 1 is") == int(told)
    (path,) = (tmp_path / "runs").rglob("metrics.jsonl")
    for row in rows(path):
        assert 0 < row["score_std"] < 0.2
        lowered = (row["score"] - row["score_after_rule"]) / row["truncated"]
        expected = {"subtract": 1.0, "spread": row["score_std"], "none": 0.0}.get(rule, lowered)
        assert lowered == pytest.approx(expected, abs=1e-5)


def test_it_waits_for_a_cut_response_and_warns_once() -> None:
    out = io.StringIO()
    note = PenaltyNote(Console(file=out, width=300), "subtract", 1.0)
    note.log(1, {"score_std": 0.1, "truncated": 0.0})
    assert not out.getvalue()
    note.log(2, {"score_std": 0.1, "truncated": 0.25})
    note.log(3, {"score_std": 0.1, "truncated": 0.25})
    assert out.getvalue().count("10 times the spread of the scores (0.1), and 25% of the responses were cut") == 1
    small = io.StringIO()
    PenaltyNote(Console(file=small), "subtract", 1.0).log(1, {"score_std": 0.5, "truncated": 0.25})
    assert not small.getvalue()


def test_the_spread_rule_scales_with_the_reward() -> None:
    score_B, stopped_B = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True])
    one = missing_eos_B(score_B, stopped_B, "spread", 2.0, score_B.std(correction=0))
    ten = missing_eos_B(10 * score_B, stopped_B, "spread", 2.0, (10 * score_B).std(correction=0))
    torch.testing.assert_close(ten, 10 * one)
    assert one[1] == pytest.approx(2.0 - 2 * score_B.std(correction=0).item())
    assert one[[0, 2]].tolist() == [1.0, 4.0]
