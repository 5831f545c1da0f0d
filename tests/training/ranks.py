"""Runs under torchrun or alone: trains every method on the same data and leaves its curve and parameters.

`python -m tests.training.ranks FOLDER`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.reference.float64 import exact_norms
from tests.training import tiny

from tiltyard.algorithms import ppo, reward_model, sft
from tiltyard.models import parallel
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import RewardScorer
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.fit import Run, fit
from tiltyard.training.source import Offline, Online
from tiltyard.types import Prompt


def online(batch: int) -> tuple[Online, Models]:
    g = torch.Generator().manual_seed(0)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, g)) for i in range(7)]
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar(3), reward=tiny.scalar(3))
    scorer = RewardScorer(models.get("reward"))
    return Online(prompts, sample, scorer, batch, 2, SampleSettings(max_tokens=6), seed=2), models


def make(name: str) -> tuple[Algorithm, Models]:
    """Odd batches; `lonely` has fewer groups than processes."""
    if name == "sft":
        return sft(Offline(tiny.demonstrations(11), 5)), Models(policy=tiny.policy())
    if name == "reward":
        return reward_model(Offline(tiny.rankings(11, tied=[1, 4, 5]), 3)), Models(reward=tiny.scalar())
    settings: dict[str, Any] = {"ppo_epochs": 2, "kl_target": 0.1, "kl_horizon": 100, "whiten_rewards": True}
    source, models = online(1 if name == "lonely" else 5)
    return ppo(source, minibatches=1 if name == "lonely" else 2, **settings), models


NAMES = ("sft", "reward", "ppo", "lonely")


def main(folder: Path) -> None:
    parallel.start()
    for name in NAMES:
        algorithm, models = make(name)
        keep = {"folder": folder / name, "save_every": 2, "keep_groups": algorithm.trains != ("reward",)}
        fit(algorithm, models, Run(steps=5, lr=1e-2, schedule="linear", micro_tokens=60, **keep))
        for key in algorithm.trains:
            save_file(tiny.parameters(models.get(key)), folder / f"{name}.{key}.rank{parallel.rank()}.safetensors")
    (folder / f"ranks.{parallel.rank()}.json").write_text(json.dumps([parallel.rank(), parallel.world()]))
    parallel.barrier()


if __name__ == "__main__":
    with exact_norms():
        main(Path(sys.argv[1]))
