"""The simulation against this machine's processor: its products and memory are measured, a step and decoding predicted.

Processor seconds of one thread, so that other programs on the machine count as little as they can.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.scale.shapes import CONFIGS
from benchmarks.scale.simulate import Batch, Machine, sampling, training

from tiltyard import (
    Group,
    LanguageModel,
    Models,
    Offline,
    Prompt,
    Response,
    Run,
    SampleSettings,
    fit,
    frozen_copy,
)
from tiltyard.kernels.base import Backend
from tiltyard.kernels.matmul import linear
from tiltyard.methods import dpo
from tiltyard.sampling.native import sample
from tiltyard.types import Preference

ROUNDS = 3


class Measured(NamedTuple):
    """A prediction beside what was measured, in seconds."""

    what: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted in measured."""
        return self.predicted / self.measured


def seconds(do: Callable[[], object]) -> float:
    """Processor seconds."""
    began = time.process_time()
    do()
    return time.process_time() - began


def speed(size: int = 1024) -> float:
    """Operations a second of a square product in float32, by the faster library."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    ways = [partial(torch.mm, left, right), partial(linear, left, right, backend=Backend(linear="onednn"))]
    best = min(min(seconds(way) for _ in range(ROUNDS + 1)) for way in ways)
    return 2.0 * size**3 / best


def bandwidth(numbers: int = 1 << 26) -> float:
    """Bytes a second that a sum reads, which is how decoding reads weights."""
    whole = torch.ones(numbers)
    whole.sum()
    return whole.nbytes / min(seconds(whole.sum) for _ in range(ROUNDS))


def run(model: LanguageModel, config: dict[str, Any], *, pairs: int, length: int, rows: int, tokens: int) -> list[str]:
    """A step of DPO with its reference in memory, and decoding, on one model; a table in Markdown."""
    torch.set_num_threads(1)
    CONFIGS["here"] = config
    first = Machine(speed(), bandwidth())
    found = [dpo_step(model, pairs, length, first), decoding(model, rows, tokens, first)]
    second = Machine(speed(), bandwidth())
    here = f"{first.speed / 1e9:.0f} and {second.speed / 1e9:.0f} GFLOP/s, "
    here += f"{first.bandwidth / 1e9:.1f} and {second.bandwidth / 1e9:.1f} GB/s before and after"
    lines = ["| one thread | predicted, s | measured, s | ratio |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.predicted:.2f} | {one.measured:.2f} | {one.ratio:.2f} |" for one in found]
    return [*lines, "", f"Measured: {here}."]


def dpo_step(model: LanguageModel, pairs: int, length: int, machine: Machine) -> Measured:
    """The median of the later steps."""
    vocab = int(model.module.config.vocab_size)
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, vocab, (count,), generator=generator).tolist())

    made = []
    for _ in range(pairs * 2):
        answers = tuple(Response(ids=ids(length)) for _ in range(2))
        made.append(Group(Prompt(ids=ids(length)), answers, preference=Preference(ranks=(1, 2))))
    at: list[float] = []

    class Clock:
        def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
            at.append(time.process_time())

        def close(self) -> None:
            """Nothing is held."""

    policy = model
    models = Models(policy=policy, ref=frozen_copy(policy))
    fit(dpo(Offline(made, pairs), beta=0.1), models, Run(steps=3, lr=1e-9, warmup=0.0, save_every=0), sinks=[Clock()])
    batch = Batch(pairs, length, 2, length)
    predicted = sum(training("here", batch, kind, machine, 1, recomputed=False) for kind in ("dpo", "reference"))
    return Measured(f"DPO, {pairs} pairs of 3 x {length} tokens", predicted, min(at[1] - at[0], at[2] - at[1]))


def decoding(model: LanguageModel, rows: int, tokens: int, machine: Machine) -> Measured:
    """Decoding of responses that are all as long as they may be."""
    model.chat.stop_ids = frozenset({-1})
    prompts = [Prompt(ids=tuple(range(5 + i, 37 + i))) for i in range(rows)]
    settings = SampleSettings(max_tokens=tokens)
    sample(model, prompts, 1, settings)
    took = seconds(lambda: sample(model, prompts, 1, settings))
    predicted = sampling("here", Batch(rows, 32, 1, tokens), machine, 1, number=4)
    return Measured(f"{rows} rows x {tokens} tokens decoded", predicted, took)


def of_folder(folder: Path) -> list[str]:
    """The table of a chat model's folder."""
    import json

    from tiltyard import load_language_model

    config = json.loads((folder / "config.json").read_text())
    return run(load_language_model(str(folder)), config, pairs=2, length=48, rows=8, tokens=24)
