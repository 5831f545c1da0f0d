"""PPO-ptx as a stage: a corpus is read, every update learns from it, and without its weight it changes nothing.

`test_kill_methods` has its resuming, `training.test_processes` the sharing of its work.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tiltyard.errors import ConfigError
from tiltyard.pipeline import run_recipe

from . import tiny
from .conftest import Whole

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop


def go(whole: Whole, folder: Path, name: str, **more: Any) -> tuple[list[dict[str, float]], bytes]:
    """(metrics, the model's weights) of a short PPO stage from the finished ones."""
    settings = {
        "method": "ppo",
        "model": str(whole.run / "sft"),
        "prompts": str(whole.run / "world" / "prompts.jsonl"),
        "reward": str(whole.run / "reward"),
        "limit": 12,
        "steps": 3,
        "batch": 4,
        "lr": 1e-3,
        "ppo_epochs": 2,
        "max_tokens": 8,
        "max_prompt": 48,
        "device": "cpu",
        **more,
    }
    (folder / f"{name}.yaml").write_text(f"name: {name}\nstages:\n  - tuned: {json.dumps(settings)}\n")
    run_recipe(folder / f"{name}.yaml", runs_root=folder, console=Console(file=io.StringIO()))
    made = folder / name / "tuned"
    return tiny.rows(made / "metrics.jsonl"), (made / "model" / "model.safetensors").read_bytes()


def test_every_update_learns_from_the_corpus(whole: Whole, tmp_path: Path) -> None:
    corpus = str(whole.run / "world" / "corpus_held_out.jsonl")
    plain, weights = go(whole, tmp_path, "plain")
    unweighted, same = go(whole, tmp_path, "unweighted", corpus=corpus)
    assert same == weights
    assert not any("ptx_loss" in row for row in [*plain, *unweighted])
    rows, learnt = go(whole, tmp_path, "ptx", corpus=corpus, ptx=0.5)
    assert learnt != weights
    for row in rows:
        assert 0 < row["ptx_loss"] < 10
        assert row["ptx_grad_ratio"] > 0
    strong, _ = go(whole, tmp_path, "strong", corpus=corpus, ptx=500.0)
    assert strong[0]["ptx_grad_ratio"] > 100 * rows[0]["ptx_grad_ratio"]


def test_a_weight_without_texts(whole: Whole, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the pretraining term has no texts"):
        go(whole, tmp_path, "none", ptx=0.5)
