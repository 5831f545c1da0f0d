"""Runs under torchrun or alone: trains every method on the same data and leaves its curve and parameters.

`python -m tests.training.ranks FOLDER`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.reference.float64 import exact_norms
from tests.training import tiny

from tiltyard.distributed import processes
from tiltyard.methods import (
    a2c,
    dpg,
    f_dpg,
    gdc,
    grpo,
    kl_dpg,
    ppo,
    reinforce,
    reinforce_pp,
    reward_model,
    rloo,
    sft,
    vbon,
)
from tiltyard.models.heads import value_head
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer, RewardScorer
from tiltyard.training.ahead import ahead
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.source import Offline, Online
from tiltyard.types import Prompt, Response


def online(batch: int) -> tuple[Online, Models]:
    g = torch.Generator().manual_seed(0)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, g)) for i in range(7)]
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar(3), reward=tiny.scalar(3))
    scorer = RewardScorer(models["reward"])
    return Online(prompts, NativeSampler(), scorer, batch, 2, SampleSettings(max_tokens=6), seed=2), models


def coin(prompt: Prompt, response: Response) -> float:
    return float(sum(response.ids) % 2)  # so that many groups score alike and are drawn again


RL: dict[str, Callable[[Online], Algorithm]] = {
    "a2c": lambda source: a2c(source, entropy=0.1),
    "reinforce": lambda source: reinforce(source, mix_kl=True),
    "reinforce_pp": lambda source: reinforce_pp(source, group_baseline=True, ppo_epochs=2, minibatches=2),
    "rloo": rloo,
    "ahead": lambda source: rloo(ahead(source, 2, steps=5)),
    "grpo": lambda source: grpo(source, scale="batch", aggregate="token", overlong=3, ppo_epochs=2, minibatches=2),
    "dynamic": lambda source: grpo(
        replace(source, scorer=FunctionScorer(coin)), dynamic_sampling=3, mask_truncated=True
    ),
    "dpg": lambda source: dpg(source, beta=0.5),
    "kl_dpg": lambda source: kl_dpg(replace(source, sample_from="proposal"), beta=0.5, adapt_every=2),
    "f_dpg": lambda source: f_dpg(source, beta=0.5, divergence="js"),
    "gdc": lambda source: gdc(
        replace(source, scorer=FunctionScorer(coin)), moments={"reward": 0.6}, moment_prompts=5, moment_samples=12
    ),
    "vbon": lambda source: vbon(source, n=4.0, ref_samples=6),
}


def make(name: str) -> tuple[Algorithm, Models]:
    """Odd batches; `lonely` has fewer groups than processes."""
    if name == "sft":
        return sft(Offline(tiny.demonstrations(11), 5)), Models(policy=tiny.policy())
    if name == "reward":
        return reward_model(Offline(tiny.rankings(11, tied=[1, 4, 5]), 3)), Models(reward=tiny.scalar())
    if name in RL:
        source, models = online(5)
        if name == "kl_dpg":
            models["proposal"] = tiny.frozen()
        return RL[name](source), models
    if name == "ptx":
        source, models = online(5)
        return ppo(source, Offline(tiny.demonstrations(9), 3), minibatches=2, ptx=0.4), models
    if name == "shared":
        source, models = online(5)
        models.value = value_head(models["policy"])
        return ppo(source, minibatches=2, ppo_epochs=2), models
    settings: dict[str, Any] = {"ppo_epochs": 2, "kl_target": 0.1, "kl_horizon": 100, "whiten_rewards": True}
    source, models = online(1 if name == "lonely" else 5)
    return ppo(source, minibatches=1 if name == "lonely" else 2, **settings), models


NAMES = ("sft", "reward", "ppo", "lonely", "ptx", "shared", *RL)


def main(folder: Path) -> None:
    processes.start()
    for name in NAMES:
        algorithm, models = make(name)
        keep = {"folder": folder / name, "save_every": 2, "keep_groups": algorithm.trains != ("reward",)}
        tiny.fit(algorithm, models, steps=5, lr=1e-2, schedule="linear", tokens_per_microbatch=60, **keep)
        for key in algorithm.trains:
            save_file(
                dict(models.get(key).trainable.state_dict()),
                folder / f"{name}.{key}.rank{processes.rank()}.safetensors",
            )
    (folder / f"ranks.{processes.rank()}.json").write_text(json.dumps([processes.rank(), processes.world()]))
    processes.barrier()


if __name__ == "__main__":
    with exact_norms():
        main(Path(sys.argv[1]))
