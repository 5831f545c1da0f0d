"""What PPO's four models cost in memory: four models, LoRA with three more, and all of them on one backbone.

    python benchmarks/backbones.py [--preset 60m] [--rank 16] [--steps 2]

Each way is a process of its own that loads its models from the same files and takes the same steps: 8 prompts, answers
of 64 tokens, two epochs. Two numbers: bytes of the models as they stand in memory (weights, and with gradients and
moments what training adds), and the most memory that the process ever held, less what it held before it loaded any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WAYS = {
    "four models": "policy, reference, reward and value, each with all its weights; policy and value trained whole",
    "LoRA + three": "an adapted policy; reference, reward and value with backbones of their own, value trained whole",
    "one backbone": "all four on one frozen backbone; an adapter each for policy, reward and value",
    "one backbone, shared head": "the same, the value being a head on the policy's states",
}


def mib(value: float) -> float:
    return round(value / 2**20, 1)


def memory(key: str) -> float:
    """A line of the process's status (VmRSS, VmHWM) in MiB; Linux tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def prepare(folder: Path, preset: str, rank: int) -> None:
    """A policy, and a reward model that was trained on it with adapters (here: drawn), both as stages write them."""
    import torch

    from tiltyard import from_scratch, load_scalar_model, save_model, train_tokenizer
    from tiltyard.models.adapters import adapt, save_adapter
    from tiltyard.models.lora import Lora, adapter_tensors

    tokenizer = train_tokenizer((f"word{i} and number {i * 7}" for i in range(20_000)), 8192)
    save_model(from_scratch(preset, tokenizer), folder / "policy" / "model")
    reward = adapt(load_scalar_model(folder / "policy" / "model", device="cpu"), Lora(rank=rank), "reward")
    for tensor in [*adapter_tensors(reward.backbone, "reward").values(), reward.head.weight]:
        torch.nn.init.normal_(tensor, std=0.02)
    save_model(reward, folder / "reward" / "model")
    save_adapter(reward, folder / "reward" / "adapter")


def models_of(way: str, folder: Path, rank: int) -> Any:
    from tiltyard import Models, frozen_copy, load_language_model, load_scalar_model, value_from, value_head
    from tiltyard.models.adapters import adapt, reward_adapter, value_adapter, without_adapters
    from tiltyard.models.lora import Lora

    policy = load_language_model(folder / "policy" / "model", device="cpu")
    lora, rewards = Lora(rank=rank), folder / "reward" / "model"
    if way.startswith("one backbone"):
        adapt(policy, lora)
        reward = reward_adapter(policy, rewards)
        assert reward is not None
        value = value_head(policy) if "shared" in way else value_adapter(reward, lora)
        return Models(policy=policy, ref=without_adapters(policy), reward=reward, value=value)
    ref, reward = frozen_copy(policy), load_scalar_model(rewards, device="cpu")
    reward.module.requires_grad_(False)
    if way.startswith("LoRA"):
        adapt(policy, lora)
    return Models(policy=policy, ref=ref, reward=reward, value=value_from(reward))


def measure(way: str, folder: Path, rank: int, steps: int) -> dict[str, Any]:
    import torch

    from tiltyard import NativeSampler, Online, RewardScorer, Run, SampleSettings, fit, ppo
    from tiltyard.types import Prompt

    before = memory("VmRSS")
    models = models_of(way, folder, rank)
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(10, models.policy.vocab_size, (8, 32), generator=stream).tolist()
    prompts = [Prompt(id=str(i), ids=tuple(row)) for i, row in enumerate(ids)]
    scorer, law = RewardScorer(models.reward), SampleSettings(max_tokens=64)
    fit(ppo(Online(prompts, NativeSampler(), scorer, 8, 1, law), ppo_epochs=2), models, Run(steps=steps, lr=1e-5))
    tensors = {p.data_ptr(): p.nbytes for m in models.present().values() for p in m.module.parameters()}
    trained = {p.data_ptr(): p.nbytes for n in ("policy", "value") for p in models.get(n).parameters()}
    return {
        "weights_mib": mib(sum(tensors.values())),
        "with_gradients_and_moments_mib": mib(sum(tensors.values()) + 3 * sum(trained.values())),
        "trained_parameters": sum(trained.values()) // 4,
        "peak_rss_mib": round(memory("VmHWM") - before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="60m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--way", choices=[*WAYS, "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way == "prepare":
        prepare(asked.folder, asked.preset, asked.rank)
        return
    if asked.way:
        print(json.dumps(measure(asked.way, asked.folder, asked.rank, asked.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        again = [sys.executable, __file__, "--preset", asked.preset, "--rank", str(asked.rank)]
        again += ["--steps", str(asked.steps), "--folder", folder, "--way"]
        subprocess.run([*again, "prepare"], check=True)
        rows = {}
        for way, what in WAYS.items():
            done = subprocess.run([*again, way], check=True, capture_output=True, text=True)
            rows[way] = {"what": what, **json.loads(done.stdout.splitlines()[-1])}
    one = rows["four models"]["weights_mib"] / 4
    for way, row in rows.items():
        row["models_worth"] = round(row["weights_mib"] / one, 2)
        print(f"{way}: {json.dumps({k: v for k, v in row.items() if k != 'what'})}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    found = {"work": f"PPO, {asked.preset}, rank {asked.rank}", "ways": rows}
    (results / f"shared-backbone-{asked.preset}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
