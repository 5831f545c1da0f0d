"""Stages with adapters on one backbone: what they write, what they keep in memory, what reads it afterwards."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tiltyard import load_language_model, load_scalar_model
from tiltyard.errors import ConfigError
from tiltyard.pipeline import run_recipe

from . import tiny

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

COMMON = "{device: cpu, prompts_per_step: 4, lr: 3e-3, warmup: 0, max_length: 64}"
SHORT = "max_tokens: 8, max_prompt: 48"
RL = f"prompts: START/world/prompts.jsonl, limit: 12, steps: 3, {SHORT}, ppo_epochs: 2"
RECIPE = f"""name: memory
defaults: {COMMON}
stages:
  - reward: {{model: START/sft, data: START/label/rankings.groups.jsonl, steps: 5, normalise: unit, lora: {{rank: 4}}}}
  - one: {{method: ppo, model: START/sft, reward: reward, {RL}, lora: {{rank: 4}}}}
  - shared: {{method: ppo, model: START/sft, reward: reward, {RL}, lora: {{rank: 4}}, value_init: shared}}
  - apart: {{method: ppo, model: START/sft, reward: START/reward, {RL}, lora: {{rank: 4}}}}
  - whole: {{method: ppo, model: START/sft, reward: reward, {RL}}}
  - dpo: {{model: START/sft, data: START/label/rankings.groups.jsonl, pairs: all, steps: 3, lora: {{rank: 4}}}}
  - after: {{method: sft, model: one, data: START/world/demonstrations_held_out.jsonl, limit: 20, steps: 2}}
  - evaluate: {{models: [one, dpo], reward: reward, prompts: START/world/held_out.jsonl, limit: 6, {SHORT}}}
"""


class Made:
    def __init__(self, start: Path, folder: Path):
        text, out = RECIPE.replace("START", str(start)), io.StringIO()
        (folder / "memory.yaml").write_text(text)
        run_recipe(folder / "memory.yaml", runs_root=folder, console=Console(file=out, width=200))
        self.start, self.run, self.text = start, folder / "memory", out.getvalue()

    def result(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / stage / "done.json").read_text())["result"]
        return found


@pytest.fixture(scope="module")
def made(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(start, tmp_path_factory.mktemp("memory"))


def test_models_in_memory_are_counted_by_their_trunks(made: Made) -> None:
    counts = {stage: made.result(stage)["models_in_memory"] for stage in ("one", "shared", "apart", "whole", "dpo")}
    assert counts == {"one": 1, "shared": 1, "apart": 2, "whole": 4, "dpo": 1}
    assert made.text.count("an adapter and a head on the policy's backbone") == 2
    assert "one frozen backbone with adapters of rank 4: policy, value (trained), ref (adapters off" in made.text


def test_the_first_step_is_at_the_reference(made: Made) -> None:
    for stage in ("one", "shared", "apart"):
        rows = tiny.rows(made.run / stage / "metrics.jsonl")
        # exact in tests/training/test_lora.py; here the sampler's word is the policy's, which rounds otherwise
        assert max(abs(rows[0][key]) for key in ("kl", "kl_k3", "kl_exact")) < 1e-4
        assert rows[-1]["kl_exact"] > 1e-3
        assert max(abs(row["sampler_gap"]) for row in rows) < 1e-4


def test_on_one_trunk_or_two_the_scores_are_the_same(made: Made, tmp_path: Path) -> None:
    """The policies begin alike, so the first answers are the same ones, and so are their scores up to rounding."""
    one, whole = (tiny.rows(made.run / stage / "metrics.jsonl")[0] for stage in ("one", "whole"))
    assert one["length"] == whole["length"]
    assert one["score"] == pytest.approx(whole["score"], abs=1e-4)
    assert one["value"] == pytest.approx(whole["value"], abs=1e-4)  # both values begin as what the reward model says


def test_what_is_written(made: Made) -> None:
    for stage, others in (("one", {"value"}), ("shared", {"value"}), ("dpo", set()), ("reward", set())):
        folders = {p.name for p in (made.run / stage).iterdir() if p.is_dir()}
        assert folders == {"model", "adapter", "checkpoints"} | others
        size = {p.parent.name: p.stat().st_size for p in (made.run / stage).glob("*/*.safetensors")}
        assert size["adapter"] < 0.3 * size["model"]
    base, tuned = (load_language_model(f, device="cpu") for f in (made.start / "sft", made.run / "one"))
    same = {k: v.equal(tuned.module.state_dict()[k]) for k, v in base.module.state_dict().items()}
    assert same["model.embed_tokens.weight"]
    assert not same["model.layers.0.self_attn.q_proj.weight"]
    value = load_scalar_model(made.run / "shared" / "value", device="cpu")
    assert torch.equal(value.backbone.state_dict()["norm.weight"], tuned.backbone.state_dict()["norm.weight"])


def test_a_new_model_has_nothing_to_adapt(made: Made, tmp_path: Path) -> None:
    recipe = (
        "{data: START/world/corpus_held_out.jsonl, arch: {preset: 1m, vocab: 400, context: 64}, lora: {}, steps: 1}"
    )
    text = f"name: none\nstages:\n  - pretrain: {recipe}\n".replace("START", str(made.start))
    (tmp_path / "none.yaml").write_text(text)
    with pytest.raises(ConfigError, match="no weights that an adapter"):
        run_recipe(tmp_path / "none.yaml", runs_root=tmp_path, console=Console(file=io.StringIO()))


def test_four_bits_need_adapters_and_cuda(made: Made, tmp_path: Path) -> None:
    data = f"model: {made.start}/sft, data: {made.start}/world/demonstrations_held_out.jsonl, steps: 1, device: cpu"
    for more, what in (("", "cannot be trained themselves"), (", lora: {}", "need a CUDA device")):
        (tmp_path / "four.yaml").write_text(f"name: four\nstages:\n  - sft: {{{data}, quantize: 4bit{more}}}\n")
        with pytest.raises(ConfigError, match=what):
            run_recipe(tmp_path / "four.yaml", runs_root=tmp_path, console=Console(file=io.StringIO()))
