"""The time of a step, from token counts, operations, bandwidths and the bytes of a push. A model of five lines:

train     operations / (devices x speed), gradient checkpointing a forward pass more; AdamW's bytes / bandwidth
gather    bytes of weights twice and of gradients once a micro-batch / link, what of it is longer than the products
sample    tokens of the longest response x the longer of (bytes of weights, keys and values read) / bandwidth and
          operations / speed, for as many waves as the slots make of the responses
push      seconds before the first byte + bytes of the weights / bandwidth of the push
step      train + gather + sample + push, or the longer of (train + gather) and sample, + push, where answers are
          sampled while the weights before are trained (max_staleness)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.scale.shapes import CONFIGS, MIXTURE, shape
from benchmarks.speed.floor import Shape as Arithmetic
from benchmarks.speed.floor import Tokens, flops

PASSES = {  # of a step; what the engine samples is counted apart
    "reference": {"logp": 1.0},
    "dpo": {"train": 1.0},
    "grpo": {"train": 1.0, "logp": 1.0},
    "ppo": {"train": 4.0, "logp": 1.0, "train_score": 4.0, "score": 2.0},
}


class Machine(NamedTuple):
    """A device: products a second, bytes of its memory a second, bytes a second between devices of a node, of several
    nodes and of a push, seconds of a push without bytes. All as reached, not as in a data sheet."""

    speed: float
    bandwidth: float
    inside: float = 1.0
    link: float = 1.0
    push: float = 1.0
    start: float = 0.14


NODE = 8  # devices
# H100: 989 TFLOP/s, 3.35 TB/s, 450 and 50 GB/s a device inside a node and between nodes in the data sheets, of which
# 40% and three times 60% are taken; a push of 8 GB/s, as published for 30 billion parameters
H100 = Machine(0.4 * 989e12, 0.6 * 3.35e12, 0.6 * 450e9, 0.6 * 50e9, 8e9)
PUBLISHED = (  # transport, bytes, seconds, source
    ("0.6B, one trainer to one engine", 2 * shape("0.6B").parameters, (0.18, 0.18), "TRL, pull request 5892"),
    ("32B, 16 to 16 H200", 2 * shape("32B").parameters, (2.0, 2.3), "TRL, pull request 7131"),
    ("30B to 30 rollouts, 32 H100", 2 * MIXTURE, (7.0, 7.0), "verl, checkpoint engine"),
)


class Batch(NamedTuple):
    """Groups of a step: prompts, tokens of each, responses a prompt, tokens of each response."""

    prompts: int
    prompt: int
    responses: int
    answer: int

    @property
    def tokens(self) -> Tokens:
        return Tokens.of([(self.prompt, [self.answer] * self.responses)]) * self.prompts


class Times(NamedTuple):
    """Seconds of one step."""

    train: float
    gather: float
    sample: float
    push: float

    @property
    def together(self) -> float:
        """One after the other."""
        return self.train + self.gather + self.sample + self.push

    @property
    def apart(self) -> float:
        """Sampled while the trainer trains."""
        return max(self.train + self.gather, self.sample) + self.push


def training(model: str, batch: Batch, method: str, machine: Machine, devices: int, *, recomputed: bool) -> float:
    """Seconds of the passes of a step, and of AdamW: seven numbers of each weight read or written."""
    work = Arithmetic.of(CONFIGS[model])
    passes = dict(PASSES[method])
    total = flops(work, batch.tokens, passes)
    if recomputed:
        kinds = (("train", "logp"), ("train_score", "score"))
        total += flops(work, batch.tokens, {once: passes.get(kind, 0.0) for kind, once in kinds})
    trained = sum(kind.startswith("train") for kind in passes) * shape(model).parameters
    return total / (devices * machine.speed) + 7 * 4 * trained / (devices * machine.bandwidth)


def gathering(model: str, machine: Machine, devices: int, micro_batches: int, models: int = 1) -> float:
    """Seconds of a step that sharded numbers travel, in float32: the weights to a device twice a micro-batch and the
    gradients from it once; all `models` once more for what is computed without gradient."""
    if devices == 1:
        return 0.0
    numbers = (3 * micro_batches + models) * shape(model).parameters * (devices - 1) / devices
    return 4 * numbers / (machine.inside if devices <= NODE else machine.link)


def sampling(
    model: str, batch: Batch, machine: Machine, engines: int, *, slots: int = 256, number: int = 2, spread: int = 1
) -> float:
    """Seconds of sampling the responses of a step.

    Args:
        engines: copies of the model. slots: responses that one decodes at once. spread: devices of a copy.
    """
    if not engines:
        return 0.0
    own, work = shape(model), Arithmetic.of(CONFIGS[model])
    responses = math.ceil(batch.prompts * batch.responses / engines)
    waves, rows = math.ceil(responses / slots), min(slots, responses)
    length = batch.prompt + batch.answer / 2
    read = number * (own.parameters + rows * length * 2 * own.keys * own.layers)
    products = rows * (work.trunk + work.head + work.pair * length)
    step = max(read / machine.bandwidth, products / machine.speed) / spread
    prompts = batch.prompts / engines * batch.prompt * work.trunk / machine.speed / spread
    return waves * batch.answer * step + prompts


def pushing(size: float, machine: Machine) -> float:
    """Seconds of a push of so many bytes."""
    return machine.start + size / machine.push


def step(
    model: str,
    batch: Batch,
    method: str,
    *,
    trainers: int,
    engines: int,
    spread: int = 1,
    machine: Machine = H100,
    micro: int = 8192,
) -> Times:
    """Seconds of a step: `trainers` devices train, `engines` copies on `spread` devices each sample."""
    train = training(model, batch, method, machine, trainers, recomputed=True)
    micro_batches = math.ceil(batch.tokens.tree / trainers / micro)
    travel = gathering(model, machine, trainers, micro_batches, models=1 if method == "dpo" else 2)
    sample = sampling(model, batch, machine, engines, spread=spread) if method != "dpo" else 0.0
    push = pushing(2.0 * shape(model).parameters, machine) if method != "dpo" else 0.0
    return Times(train, max(0.0, travel - train), sample, push)


PLACES = (  # model, devices that train, copies that sample, devices a copy, where
    ("0.5B", 1, 1, 1, "2 GPUs"),
    ("0.5B", 4, 4, 1, "8 GPUs"),
    ("8B", 4, 4, 1, "8 GPUs"),
    ("8B", 32, 32, 1, "8 x 8"),
    ("70B", 32, 8, 4, "8 x 8"),
)


def table() -> list[str]:
    """Seconds of a step of GRPO: 64 prompts of 256 tokens, 8 responses of 1,024 each."""
    batch = Batch(64, 256, 8, 1024)
    lines = [
        "| | trains + samples | train | gather | sample | push | step | apart | tokens a second, apart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, trainers, engines, spread, where in PLACES:
        one = step(model, batch, "grpo", trainers=trainers, engines=engines, spread=spread)
        seconds = " | ".join(f"{value:.1f}" for value in (*one, one.together, one.apart))
        tokens = batch.tokens.tree / one.apart
        lines.append(f"| {model}, {where} | {trainers} + {engines * spread} | {seconds} | {tokens:,.0f} |")
    return lines


def published() -> list[str]:
    """What bandwidth each published push implies, and what the model gives: by the first two, and by the machine's."""
    (_, small, (quick, _), _), (_, large, (low, high), _), _ = PUBLISHED
    slope = (large - small) / ((low + high) / 2 - quick)
    start = quick - small / slope
    fitted = H100._replace(push=slope, start=start)
    lines = [
        "| push | bytes | published | implied | model, fitted to the first two | model, 8 GB/s |",
        "|---|---|---|---|---|---|",
    ]
    for what, size, (least, most), source in PUBLISHED:
        seconds = f"{least:g} s" if least == most else f"{least:g}-{most:g} s"
        lines.append(
            f"| {what} ({source}) | {size / 1e9:.1f} GB | {seconds} | {size / (least + most) * 2 / 1e9:.1f} GB/s "
            f"| {pushing(size, fitted):.2f} s | {pushing(size, H100):.1f} s |"
        )
    return [*lines, "", f"Fitted: {start:.2f} s and {slope / 1e9:.0f} GB/s."]
