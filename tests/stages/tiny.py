"""The whole road as a recipe that takes seconds: every kind of stage, few steps, frequent checkpoints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from tiltyard.pipeline import run_stage

RECIPE = """name: tiny
defaults: {max_length: 64, save_every: 3, device: cpu}
stages:
  - world: {}
  - pretrain:
      data: world/corpus_held_out.jsonl
      arch: {preset: 1m, vocab: 400, context: 64}
      steps: 10
      prompts_per_step: 8
      lr: 3e-3
      limit: 100
  - sft:
      model: pretrain
      data: world/demonstrations_held_out.jsonl
      held_out: world/demonstrations_held_out.jsonl
      steps: 10
      prompts_per_step: 8
      lr: 1e-3
      dropout: 0.1
      limit: 60
      eval_every: 4
  - label: {model: sft, prompts: world/prompts.jsonl, limit: 16, k: 3, max_tokens: 10, max_prompt: 48}
  - reward:
      model: sft
      data: label/rankings.groups.jsonl
      demonstrations: world/demonstrations_held_out.jsonl
      steps: 10
      prompts_per_step: 4
      lr: 1e-3
      freeze_layers: 1
  - ppo:
      model: sft
      reward: reward
      prompts: world/prompts.jsonl
      monitors: [gold]
      beta: 0.05
      kl_target: 1.0
      ppo_epochs: 2
      minibatches: 2
      steps: 7
      prompts_per_step: 6
      limit: 20
      lr: 1e-3
      max_tokens: 8
      max_prompt: 48
      save_every: 2
  - evaluate:
      models: [pretrain, sft, ppo]
      reward: reward
      prompts: world/held_out.jsonl
      limit: 12
      max_tokens: 10
      max_prompt: 48
"""
STAGES = ("world", "pretrain", "sft", "label", "reward", "ppo", "evaluate")


def starting(name: str, *, context: int = 64, reward: bool = True, **defaults: object) -> str:
    """The recipe of what single methods begin from: a world, a model of it, labels, a reward model."""
    common = json.dumps({"max_length": 64, "device": "cpu", "prompts_per_step": 4, "lr": 1e-3, **defaults})
    recipe = f"""name: {name}
defaults: {common}
stages:
  - world: {{}}
  - pretrain:
      {{data: world/corpus_held_out.jsonl, arch: {{preset: 1m, vocab: 400, context: {context}}}, steps: 8, limit: 60}}
  - sft: {{model: pretrain, data: world/demonstrations_held_out.jsonl, steps: 5, limit: 40}}
  - label: {{model: sft, prompts: world/prompts.jsonl, limit: 14, k: 3, max_tokens: 10, max_prompt: 48}}
"""
    return recipe + ("  - reward: {model: sft, data: label/rankings.groups.jsonl, steps: 5}\n" if reward else "")


def tuned(run: Path, folder: Path, method: str, **more: Any) -> tuple[Path, dict[str, Any]]:
    """(folder, result) of a short stage that learns online from the stages of a finished run; None: left out."""
    usual = {
        "model": str(run / "sft"),
        "prompts": str(run / "world" / "prompts.jsonl"),
        "reward": str(run / "reward"),
        "monitors": ["gold"],
        "limit": 12,
        "lr": 1e-3,
        "max_tokens": 8,
        "max_prompt": 48,
        "device": "cpu",
    }
    settings = {key: value for key, value in (usual | more).items() if value is not None}
    outcome = run_stage(method, settings, runs_root=folder, console=Console(file=io.StringIO()))
    return folder / method / method, outcome["stages"][method]["result"]


def write(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(run: Path) -> dict[str, Any]:
    """All that a run found out, without times: weights as bytes, metrics and groups row by row."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        folder = run / stage
        for path in (
            sorted(folder.glob("*.jsonl")) + sorted(folder.glob("*/*.safetensors")) + sorted(folder.glob("*.md"))
        ):
            if path.name == "judgements.jsonl":  # says when each judgement was made
                found[f"{stage}/{path.name}"] = [{k: v for k, v in r.items() if k != "when"} for r in rows(path)]
            elif path.name == "metrics.jsonl":
                found[f"{stage}/{path.name}"] = [
                    {k: v for k, v in r.items() if not k.startswith("time/")} for r in rows(path)
                ]
            else:
                found[f"{stage}/{path.relative_to(folder)}"] = path.read_bytes()
        found[f"{stage}/result"] = json.loads((folder / "done.json").read_text())["result"]
    found["evaluate/result"].pop("summary")
    summary = json.loads((run / "summary.json").read_text())
    for facts in summary["models"].values():
        facts.pop("seconds")
    found["summary"] = {k: v for k, v in summary.items() if k != "seconds"}
    return found
