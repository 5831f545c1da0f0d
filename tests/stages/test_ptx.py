"""PPO-ptx as a stage: a corpus is read, every update learns from it, and without its weight it changes nothing.

`test_kill_methods` has its resuming, `distributed.test_processes` the sharing of its work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiltyard.errors import ConfigError

from . import tiny
from .conftest import Whole

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop


def go(whole: Whole, folder: Path, name: str, **more: Any) -> tuple[list[dict[str, float]], bytes]:
    """(metrics, the model's weights) of a short PPO stage from the finished ones."""
    made, _ = tiny.tuned(whole.run, folder / name, "ppo", steps=3, prompts_per_step=4, ppo_epochs=2, **more)
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
