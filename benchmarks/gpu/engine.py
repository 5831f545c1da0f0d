"""A vLLM engine beside the trainer: how long a push takes, how far the two are apart, how fast each samples."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.report import Bench, Result
from benchmarks.gpu.shapes import HALF, TINY, groups, language

from tiltyard import LanguageModel, NativeSampler, SampleSettings
from tiltyard.batch.forest import pack
from tiltyard.sampling.vllm.launch import EngineSettings
from tiltyard.sampling.vllm.sampler import VllmSampler
from tiltyard.types import Group

EDGES = (0.001, 0.01, 0.1, 1.0)  # nats a token
LATER = (
    ("push by NCCL or IPC", "weights go through a folder; nothing else is built"),
    ("TRL with vLLM in its process", "no machine to write it on had both"),
)


def engine_beside(bench: Bench) -> Iterator[Result]:
    """The check: needs VLLM_PYTHON, the interpreter of an environment with vLLM."""
    python = os.environ.get("VLLM_PYTHON", "")
    for what, why in LATER:
        yield Result("engine", what, "not run", why)
    if not Path(python).is_file():
        yield Result("engine", "vLLM", "not run", f"VLLM_PYTHON={python or 'nothing'} is no interpreter with vLLM")
        return
    shape, family = (TINY, "Llama") if bench.tiny else (HALF, "Qwen2")
    model = language(family, shape, bench.device, "bfloat16")
    model.chat.stop_ids = frozenset({-1})
    settings = EngineSettings(Path(python), dtype="bfloat16", memory=2**30 if bench.tiny else 20 * 2**30)
    sampler = VllmSampler(bench.folder, settings)
    try:
        yield from measured(bench, model, sampler, shape[-1])
    finally:
        sampler.close()


def measured(bench: Bench, model: LanguageModel, sampler: Any, vocab: int) -> Iterator[Result]:
    """Pushes, mismatch and speed of any sampler with `sync` and `generate`."""
    began = time.perf_counter()
    sampler.sync(model, 0)
    start, pushes = time.perf_counter() - began, []
    for version in range(1, 4):
        with torch.no_grad():
            model.module.base_model.norm.weight.mul_(1.01)
        began = time.perf_counter()
        sampler.sync(model, version)
        pushes.append(time.perf_counter() - began)
    size = sum(p.nbytes for p in model.module.parameters())
    push = statistics.median(pushes)
    numbers = {"start": start, "pushes": pushes, "bytes": size, "probe": getattr(sampler, "gap", 0.0)}
    text = f"{push:.2f} s a push of {size / 1e9:.2f} GB: {size / push / 1e9:.2f} GB/s; started in {start:.0f} s"
    yield Result("engine", "push through a folder", "measured", text, numbers)
    count, tokens = (4, 8) if bench.tiny else (64, 256)
    prompts = [g.prompt for g in groups([(16, (1,))] * count, vocab)]
    asked, seeds = SampleSettings(max_tokens=tokens), list(range(2 * count))
    speeds, found = [], []
    for one in (sampler, NativeSampler(model)):
        one.generate(prompts[:1], 1, SampleSettings(max_tokens=2), [0])
        bench.ready()
        began = time.perf_counter()
        found.append(one.generate(prompts, 2, asked, seeds))
        bench.ready()
        speeds.append(2 * count * tokens / (time.perf_counter() - began))
    text = f"{speeds[0]:,.0f} tokens/s by the engine, {speeds[1]:,.0f} by the toolkit's sampler"
    yield Result("engine", "sampling", "measured", text, {"engine": speeds[0], "ours": speeds[1]})
    for name, sampled in zip(("engine", "toolkit's sampler"), found, strict=True):
        yield Result("engine", f"mismatch, {name}", "measured", *histogram(model, sampled))


@torch.no_grad()
def histogram(model: LanguageModel, sampled: list[Group]) -> tuple[str, dict[str, float]]:
    """How far the sampler's log-probs are from the trainer's pass: in words and in numbers."""
    own = torch.cat([model.logp_R(pack([group]))[0].float().cpu() for group in sampled])
    theirs = torch.tensor([logp for group in sampled for one in group.responses for logp in one.logps or ()])
    gap = (own - theirs).abs()
    ratio = (own - theirs).exp()
    numbers = {f"above_{edge:g}": float((gap > edge).float().mean()) for edge in EDGES}
    numbers |= {"mean": float(gap.mean()), "off": float(((ratio < 0.9) | (ratio > 1.1)).float().mean())}
    shares = ", ".join(f"{numbers[f'above_{edge:g}']:.1%} above {edge:g}" for edge in EDGES)
    return f"{numbers['mean']:.1e} nats a token, {shares}; ratio off by a tenth: {numbers['off']:.1%}", numbers
