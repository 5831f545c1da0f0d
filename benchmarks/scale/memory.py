"""The tables of memory in docs/scale.md: 0.5B, 8B and 70B under DPO, GRPO and PPO, as a dry run computes them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.scale.shapes import CONFIGS

from tiltyard.methods import METHODS
from tiltyard.stages.base import StageContext
from tiltyard.stages.footprint import Layout, Work, engine_bytes, memory_of, parts_of
from tiltyard.stages.plan import work_of
from tiltyard.stages.settings import method_settings

LAYOUTS = (Layout(1), Layout(8, True), Layout(64, True))
ROWS = (("0.5B", "weights"), ("8B", "weights"), ("70B", "weights"), ("70B", "bfloat16"))  # models, shard_dtype
GPU = 75 * 2**30  # of a device's 80 GB, what a run can use
USUAL = {
    "models": {"dtype": "bfloat16", "gradient_checkpointing": True, "device": "cpu"},
    "run": {"tokens_per_microbatch": 8192},
    "prompts_per_step": 64,
}
SAMPLED = {
    "prompts": {"path": "prompts.jsonl", "max_prompt": 256},
    "sampling": {"samples_per_prompt": 8, "max_tokens": 1024},
    "vllm": {"url": "http://engine:8000", "engine_dtype": "bfloat16"},
}
STAGES: dict[str, dict[str, Any]] = {
    "dpo": {"data": {"path": "pairs.jsonl", "max_length": 2048}},
    "dpo, LoRA": {"data": {"path": "pairs.jsonl", "max_length": 2048}, "lora": {"rank": 16}},
    "grpo, a rule": {**SAMPLED, "reward": "rules.py:concise"},
    "ppo, a reward model": {**SAMPLED, "reward": "."},
}


def work(model: str, stage: str, shard_dtype: str = "weights") -> Work:
    """What a stage computes on a GPU, read from a folder that has nothing but config.json."""
    method = METHODS[stage.partition(",")[0]]
    given = json.loads(json.dumps({**USUAL, **STAGES[stage]}))
    given["models"]["shard_dtype"] = shard_dtype
    if lora := given.pop("lora", None):
        given["models"]["lora"] = lora
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(CONFIGS[model]))
        given["model"] = str(folder)
        if given.get("reward") == ".":
            given["reward"] = str(folder)
        settings = method_settings(method).model_validate_json(json.dumps(given))
        context = StageContext(run_name="scale", name=method.name, folder=folder, run_folder=folder, dry_run=True)
        return work_of(method, context, settings, device="cuda")


def table() -> list[str]:
    """Peak of each process in GiB; bold where it fits on a device of 80 GB."""
    lines = [
        "| | | 1 GPU, whole | 8 GPUs, sharded | 8 x 8, sharded | vLLM: weights + keys and values |",
        "|---|---|---|---|---|---|",
    ]
    for model, shard_dtype in ROWS:
        for stage in STAGES:
            one = work(model, stage, shard_dtype)
            peaks = [memory_of(one, layout).total for layout in LAYOUTS]
            cells = [f"**{peak / 2**30:,.1f}**" if peak <= GPU else f"{peak / 2**30:,.0f}" for peak in peaks]
            engine = " + ".join(f"{size / 2**30:,.1f}" for size in engine_bytes(one)) if one.engine else ""
            name = f"{model}, `{shard_dtype}`" if shard_dtype != "weights" else model
            lines.append(f"| {name} | {stage} | {' | '.join(cells)} | {engine} |")
    return lines


def parts(model: str = "8B", stage: str = "ppo, a reward model") -> list[str]:
    """The parts of one of them, in GiB."""
    one = work(model, stage)
    columns = [{(part.role, part.what): part.bytes for part in parts_of(one, layout)} for layout in LAYOUTS]
    lines = [f"| {model}, {stage} | 1 GPU, whole | 8 GPUs, sharded | 8 x 8, sharded |", "|---|---|---|---|"]
    for key in dict.fromkeys(key for column in columns for key in column):
        cells = [f"{column[key] / 2**30:,.2f}" if key in column else "" for column in columns]
        lines.append(f"| {key[0]}: {key[1]} | {' | '.join(cells)} |")
    return lines
