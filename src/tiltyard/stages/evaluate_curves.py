"""The picture of the stage `evaluate`: reward against KL over the training of the models that are RL stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tiltyard.report import read_metrics, reward_vs_kl_png
from tiltyard.runs import read_step_groups
from tiltyard.stages.base import StageContext
from tiltyard.world import gold
from tiltyard.world.reward import is_world_prompt


def reward_vs_kl(context: StageContext, models: Mapping[str, str]) -> Path | None:
    """Plots reward against KL over training for every one of the models that is a stage which samples at each step.

    Methods in rounds are omitted: they measure KL only now and then, some of them to a changing reference.
    """
    curves = {}
    for name, value in models.items():
        folder = context.outputs.get(value) or Path(value)
        if not ((folder / "groups.jsonl").exists() and (folder / "metrics.jsonl").exists()):
            continue
        metrics = read_metrics(folder / "metrics.jsonl")
        if None in metrics.get("kl", [None]):
            continue
        golds = gold_by_step(folder / "groups.jsonl")
        curves[name] = {
            "kl": metrics.get("kl_exact", metrics["kl"]),
            "proxy": metrics["score"],
            "step": metrics["step"],
            "gold": [golds.get(int(step)) for step in metrics["step"]] if golds else None,
        }
    return reward_vs_kl_png(context.folder / "reward_vs_kl.png", curves) if curves else None


def gold_by_step(path: Path) -> dict[int, float]:
    """Returns the mean gold score of the responses of each step of an RL stage; empty without the embedded world."""
    sums: dict[int, list[float]] = {}
    for step, group in read_step_groups(path):
        if is_world_prompt(group.prompt):
            sums.setdefault(step, []).extend(gold(group.prompt.meta, r.text).total for r in group.responses)
    return {step: sum(values) / len(values) for step, values in sums.items()}
