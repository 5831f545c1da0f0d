"""Steps of DPO, GRPO and PPO on a model of half a billion parameters in bfloat16: speed, share of the peak, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from benchmarks.gpu.report import Bench, Result
from benchmarks.gpu.shapes import HALF, TINY, groups, language, scalar
from benchmarks.speed.floor import Shape, Tokens, flops

from tiltyard import (
    Algorithm,
    FunctionScorer,
    Models,
    NativeSampler,
    Offline,
    Online,
    Prompt,
    Response,
    Run,
    SampleSettings,
    fit,
    frozen_copy,
)
from tiltyard.cli.bench import gemm_gflops
from tiltyard.methods import dpo, grpo, ppo
from tiltyard.models.adapters import adapt, without_adapters
from tiltyard.models.lora import Lora

# dense bfloat16 products in TFLOP/s, from the makers' data sheets; the first name that is part of the device's counts
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 150,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
ROOMY = 60_000  # MiB of a device for micro-batches of 16,384 tokens
SKIP = 2  # first steps: warm-up
PASSES = {  # of one step, see `benchmarks.speed.floor.flops`; sampling counts as one pass
    "dpo": {"train": 1.0, "logp": 1.0},
    "grpo": {"train": 1.0, "logp": 2.0},
    "ppo": {"train": 4.0, "logp": 2.0, "train_score": 4.0, "score": 1.0},
}


class Clock:
    """A sink of the loop that marks when each step's work is done on the device."""

    def __init__(self, bench: Bench):
        self.bench, self.at, self.prepared = bench, [time.perf_counter()], []

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
        self.bench.ready()
        self.at.append(time.perf_counter())
        self.prepared.append(metrics["time/prepare_seconds"])

    def close(self) -> None:
        """Nothing is held."""

    def seconds(self, skip: int) -> float:
        """The median step after the first ones."""
        return statistics.median(b - a for a, b in zip(self.at[skip:-1], self.at[skip + 1 :], strict=True))


def variety(prompt: Prompt, response: Response) -> float:  # noqa: ARG001 - a rule's signature
    """A cheap reward that differs between responses."""
    return len(set(response.ids)) / 50.0


def work_of(bench: Bench, method: str) -> tuple[Callable[[], tuple[Algorithm, Models]], Tokens, int]:
    """A method's models and data when they are asked for; tokens of a mean group, and groups a step."""
    shape, family = (TINY, "Llama") if bench.tiny else (HALF, "Qwen2")
    count, prompt, answer = (4, 9, 12) if bench.tiny else (16, 128, 256 if method == "dpo" else 128)
    n = {"dpo": 2, "grpo": 4 if bench.tiny else 8, "ppo": 1}[method]
    count *= 4 if method == "ppo" and not bench.tiny else 1
    made = groups([(prompt, (answer,) * n)] * count * 4, shape[-1])

    def compose() -> tuple[Algorithm, Models]:
        policy = language(family, shape, bench.device, "bfloat16")
        ref = frozen_copy(policy)
        if method == "dpo":
            return dpo(Offline(made, count), beta=0.1), Models(policy=policy, ref=ref)
        policy.chat.stop_ids = frozenset({-1})  # an id that nobody draws
        settings = SampleSettings(max_tokens=answer, max_concurrent=512)
        source = Online([g.prompt for g in made], NativeSampler(), FunctionScorer(variety), count, n, settings)
        if method == "grpo":
            return grpo(source, beta=0.05), Models(policy=policy, ref=ref)
        value = scalar(family, shape, bench.device, "bfloat16")
        return ppo(source, beta=0.05, missing_eos="none"), Models(policy=policy, ref=ref, value=value)

    return compose, Tokens.of([(prompt, [answer] * n)]), count


def measured(bench: Bench, algorithm: Algorithm, models: Models, steps: int) -> dict[str, Any]:
    """Trains and gives the median step's seconds, those of preparing it (sampling, scoring), and the peak memory."""
    clock = Clock(bench)
    micro = 256 if bench.tiny else 16_384 if bench.memory_mib() > ROOMY else 4_096
    run = Run(steps=steps, lr=1e-6, warmup=0.0, save_every=0, tokens_per_microbatch=micro)
    fit(algorithm, models, run, sinks=[clock])
    skip = min(SKIP, steps - 1)
    prepared = statistics.median(clock.prepared[skip:])
    return {"seconds": clock.seconds(skip), "prepare_seconds": prepared, "peak_mib": bench.peak_mib()}


@cache
def best_gflops(bench: Bench) -> float:
    """GFLOP/s of a square product in bfloat16, measured."""
    return gemm_gflops(bench.device, "bfloat16", times=1 if bench.tiny else 3)


def peak_gflops(bench: Bench) -> tuple[float, str]:
    """The device's dense bfloat16 products in GFLOP/s, and where the number is from."""
    if bench.device.type == "cuda":
        name = torch.cuda.get_device_name(bench.device)
        for known, tflops in PEAKS.items():
            if known in name:
                return tflops * 1e3, f"{known}'s data sheet"
    return best_gflops(bench), "measured"


def training_steps(bench: Bench) -> Iterator[Result]:
    """The check: a line for the peak and one for each method."""
    peak, source = peak_gflops(bench)
    best = best_gflops(bench)
    text = f"{peak / 1e3:,.3g} TFLOP/s in bfloat16 ({source}); a square product reaches {best / 1e3:,.3g}"
    yield Result("steps", "peak", "measured", text, {"peak_gflops": peak, "measured_gflops": best})
    for method in PASSES:
        compose, tokens, count = work_of(bench, method)
        bench.forget_peak()
        algorithm, models = compose()
        yield line(method, measured(bench, algorithm, models, 3 if bench.tiny else 6), (tokens, count), peak, models)


def line(method: str, found: dict[str, Any], work: tuple[Tokens, int], peak: float, models: Models) -> Result:
    """The line of one method."""
    tokens, count = work
    config = models["policy"].module.config.to_dict()
    gflop = flops(Shape.of(config), tokens * count, PASSES[method.partition(" ")[0]]) / 1e9
    numbers = {
        **found,
        "parameters": sum(p.numel() for p in models["policy"].module.parameters()),
        "tokens_per_second": tokens.tree * count / found["seconds"],
        "share_of_peak": gflop / found["seconds"] / peak,
    }
    sampled = ""
    if not method.startswith("dpo"):
        numbers["sampled_per_second"] = tokens.scored * count / found["prepare_seconds"]
        sampled = (
            f", {found['prepare_seconds']:.2f} s of it prepared: {numbers['sampled_per_second']:,.0f} sampled tokens/s"
        )
    memory = "" if found["peak_mib"] is None else f", peak {found['peak_mib']:,.0f} MiB"
    text = (
        f"{found['seconds']:.2f} s a step{sampled}, {numbers['tokens_per_second']:,.0f} tokens/s, "
        f"{numbers['share_of_peak']:.1%} of the peak{memory}"
    )
    return Result("steps", f"{method}, {numbers['parameters'] / 1e6:,.0f}M", "measured", text, numbers)


def adapted(bench: Bench) -> tuple[Algorithm, Models]:
    """DPO with LoRA: the reference is the backbone without adapters."""
    shape, family = (TINY, "Llama") if bench.tiny else (HALF, "Qwen2")
    count = work_of(bench, "dpo")[2]
    sizes = [(9, (12, 12)) if bench.tiny else (128, (256, 256))] * count * 4
    policy = adapt(language(family, shape, bench.device, "bfloat16"), Lora())
    return dpo(Offline(groups(sizes, shape[-1]), count), beta=0.1), Models(policy=policy, ref=without_adapters(policy))
