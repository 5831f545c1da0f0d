"""Sampling ahead on the embedded world: seconds a step, and the price in gold reward.

    python benchmarks/staleness.py time grpo --staleness 0 1 2 4            # after `tiltyard run demo`
    python benchmarks/staleness.py reward ppo --staleness 0 1 2 4 --seeds 0 1 2

GRPO learns from gold itself, PPO from the demo's reward model. `time` alternates the settings and prints the median
step of each, and the processor seconds of the trainer's thread and of the sampler's. `reward` trains and scores
held-out prompts. One JSON line a setting, on standard output.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tiltyard.data import load_prompts
from tiltyard.methods import grpo, ppo
from tiltyard.models.load import frozen_copy, load_language_model, load_scalar_model, value_from
from tiltyard.sampling import NativeSampler, SampleSettings, sample
from tiltyard.scoring import FunctionScorer, RewardScorer
from tiltyard.scoring.registry import load_function
from tiltyard.training.ahead import ahead
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.fit import fit
from tiltyard.training.run import Run
from tiltyard.training.source import Online

LAW = SampleSettings(max_tokens=48)
SIZES = {"grpo": (16, 8), "ppo": (64, 1)}  # prompts a step, responses a prompt


class Rows:
    """A sink that keeps every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append({"step": step, "processor": time.thread_time(), **metrics})

    def close(self) -> None: ...


class Measured(NativeSampler):
    """Counts its processor seconds; with `pin` on the second core, where it samples in a thread of its own."""

    def __init__(self, pin: bool):
        super().__init__()
        self.pin, self.spent = pin, list[float]()

    def generate(self, *request: Any) -> Any:
        if self.pin and threading.current_thread() is not threading.main_thread():
            os.sched_setaffinity(threading.get_native_id(), {1})
        start = time.thread_time()
        groups = super().generate(*request)
        self.spent.append(time.thread_time() - start)
        return groups


def made(demo: Path, method: str, age: int, seed: int, steps: int, sampler: Measured) -> tuple[Algorithm, Models]:
    policy = load_language_model(str(demo / "sft/model"))
    models = Models(policy=policy, ref=frozen_copy(policy))
    prompts = load_prompts(demo / "world/prompts.jsonl", policy.chat)[0]
    count, each = SIZES[method]
    source = Online(prompts, sampler, FunctionScorer(load_function("gold")), count, each, LAW, seed=seed)
    if method == "ppo":  # as in the demo
        reward = load_scalar_model(str(demo / "reward/model"))
        reward.module.requires_grad_(False)
        source, models.value = replace(source, scorer=RewardScorer(reward, policy.chat)), value_from(reward)
    source = ahead(source, age, steps) if age else source
    return (grpo(source) if method == "grpo" else ppo(source, beta=0.15)), models


def timed(args: argparse.Namespace) -> None:
    found: dict[int, dict[str, list[float]]] = {
        age: {"seconds": [], "waited": [], "trainer": [], "sampler": []} for age in args.staleness
    }
    for _ in range(args.repeats):
        for age in args.staleness:
            sampler, rows = Measured(args.pin), Rows()
            algorithm, models = made(args.demo, args.method, age, 0, args.steps, sampler)
            fit(algorithm, models, Run(steps=args.steps, lr=args.lr, schedule="constant"), sinks=[rows])
            late = rows.rows[1 : len(rows.rows) - age]  # the last steps sample nothing any more
            one = found[age]
            one["seconds"] += [row["time/seconds"] for row in late[1:]]
            one["waited"] += [row.get("time/waited", 0.0) for row in late[1:]]
            one["trainer"] += [b["processor"] - a["processor"] for a, b in itertools.pairwise(late)]
            one["sampler"] += sampler.spent[2:]
    for age, one in found.items():
        middle = {name: statistics.median(values) for name, values in one.items()}
        # with a core each: the trainer's thread samples itself at staleness 0
        middle["alone"] = max(middle["trainer"], middle["sampler"] if age else 0.0)
        found[age]["middle"] = [middle["seconds"], middle["alone"]]
        first = found[args.staleness[0]]["middle"]
        ratios = {"speed_up": first[0] / middle["seconds"], "speed_up_processor": first[1] / middle["alone"]}
        row = {"method": args.method, "staleness": age, "n": len(one["seconds"]), **middle, **ratios}
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def gold(policy: Any, prompts: list[Any]) -> np.ndarray:
    scorer = FunctionScorer(load_function("gold"))
    groups = scorer.score(sample(policy, prompts, 2, LAW, seed=11))
    return np.array([np.mean(g.scores or (0.0,)) for g in groups])


def rewards(args: argparse.Namespace) -> None:
    for seed in args.seeds:
        for age in args.staleness:
            start, cpu = time.perf_counter(), time.process_time()
            algorithm, models = made(args.demo, args.method, age, seed, args.steps, Measured(args.pin))
            rows = Rows()
            fit(algorithm, models, Run(steps=args.steps, lr=args.lr, schedule="constant", seed=seed), sinks=[rows])
            policy = models["policy"]
            held_out = load_prompts(args.demo / "world/held_out.jsonl", policy.chat, limit=args.held_out)[0]
            last = rows.rows[-1]
            row = {
                "method": args.method,
                "staleness": age,
                "seed": seed,
                "gold": float(gold(policy, held_out).mean()),
            }
            keep = {
                k: last[k]
                for k in ("score", "kl_exact", "sampler_gap", "mismatch/weight", "mismatch/truncated", "clipped")
                if k in last
            }
            spent = {"seconds": time.perf_counter() - start, "processor": time.process_time() - cpu}
            print(json.dumps(row | keep | spent), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["time", "reward"])
    parser.add_argument("method", choices=list(SIZES))
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--pin", action="store_true", help="a core each for trainer and sampler")
    args = parser.parse_args()
    if args.pin:
        os.sched_setaffinity(0, {0})
    {"time": timed, "reward": rewards}[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
