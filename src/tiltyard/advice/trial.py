"""A trial of the model on this machine: seconds of training, of a forward pass and of decoding, measured.

A few passes over real rows in each arithmetic that the machine may be fast in. Times are those of this process's
processor (on a GPU: of the clock), divided by its threads, so that other work on the machine is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from tiltyard.advice.machine import Machine
from tiltyard.batch.batch import Batch
from tiltyard.data import Chat
from tiltyard.models.adapters import adapt
from tiltyard.models.backbone import DType
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.models.lora import Lora
from tiltyard.sampling import SampleSettings, sample
from tiltyard.types import Group, Response

TOKENS = 768  # of the batch that is timed
DECODED = (2, 12)  # tokens of two calls; their difference is the time of steps alone
ROWS = 16  # decoded at once
DTYPES: tuple[DType, ...] = ("float32", "bfloat16")


class Speed(NamedTuple):
    """Seconds on a machine that does nothing else.

    Args:
        train, forward: of one packed token: forward and backward pass, forward pass alone.
        update: of one step of the optimiser.
        decode: of one decoding step of `ROWS` rows.
        load: of loading the model.
        busy: share of the clock's time that other work took while this was measured.
    """

    dtype: DType
    train: float
    forward: float
    update: float
    decode: float
    load: float
    busy: float

    def decoding(self, rows: int, tokens: int) -> float:
        """Seconds of decoding `rows` answers of `tokens` tokens, up to 256 at once.

        A step of 32 rows took 1.18 times as long as one of 16 (docs/lab.md), hence the share that grows with the rows.
        """
        steps = -(-rows // 256) * tokens
        return steps * self.decode * (0.85 + 0.15 * min(rows, 256) / ROWS)


class Watch:
    """A clock of the processor time of this process, or of the wall where a GPU works."""

    def __init__(self, machine: Machine):
        self.machine, self.wall, self.own = machine, 0.0, 0.0

    @contextmanager
    def timed(self, into: list[float]) -> Iterator[None]:
        """Context: appends the seconds that its body would take on a machine that does nothing else."""
        self._wait()
        wall, own = time.perf_counter(), time.process_time()
        yield
        self._wait()
        wall, own = time.perf_counter() - wall, (time.process_time() - own) / self.machine.threads
        self.wall, self.own = self.wall + wall, self.own + own
        into.append(wall if self.machine.device != "cpu" else min(wall, max(own, 1e-6)))

    def _wait(self) -> None:
        if self.machine.device == "cuda":
            torch.cuda.synchronize()

    @property
    def busy(self) -> float:
        """Share of the clock's time in which the processors did other work."""
        if self.machine.device != "cpu" or not self.wall:
            return 0.0
        return max(0.0, 1 - self.own / self.wall)


def measure(
    source: str,
    groups: Sequence[Group],
    machine: Machine,
    *,
    lora: bool,
    decodes: bool,
    progress: Callable[[str], None],
) -> list[Speed]:
    """Times the model in each arithmetic that may be the fastest, the fastest first.

    Args:
        groups: rows without token ids; as many are used as a batch of `TOKENS` tokens holds.
        lora: whether adapters are trained, or all weights.
        decodes: whether the method samples; what measures does so in float32.
    """
    found: list[Speed] = []
    for dtype in DTYPES if machine.bfloat16 else DTYPES[:1]:
        progress(f"timing the model in {dtype}")
        found.append(_speed(source, groups, machine, dtype, lora=lora, decodes=decodes or dtype == "float32"))
    return sorted(found, key=lambda speed: speed.train)


def _speed(source: str, groups: Sequence[Group], machine: Machine, dtype: DType, *, lora: bool, decodes: bool) -> Speed:
    watch, load = Watch(machine), [0.0]
    began = time.process_time()
    model = load_language_model(source, dtype=dtype, device=machine.device)
    load[0] = time.process_time() - began
    if lora:
        model = adapt(model, Lora(targets=[]), "policy", 0)
    batch = _batch(model.chat, groups, model)
    tokens = batch.forest.T
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    train: list[float] = []
    update: list[float] = []
    forward: list[float] = []
    decode: list[list[float]] = [[], []]
    for _ in range(2):  # the first one warms up
        with watch.timed(train):
            model.logp_R(batch.forest)[0].mean().backward()
        with watch.timed(update):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    with torch.no_grad(), watch.timed(forward):
        model.logp_R(batch.forest)
    if decodes:
        model.module.eval()
        prompt = batch.groups[0].prompt
        sample(model, [prompt], 1, SampleSettings(max_tokens=1), seed=0)  # warms up, and finds the way of sampling
        for number, length in enumerate(DECODED):
            with watch.timed(decode[number]):
                sample(model, [prompt] * ROWS, 1, SampleSettings(max_tokens=length), seed=0)
    a_step = (min(decode[1]) - min(decode[0])) / (DECODED[1] - DECODED[0]) if decodes else 0.0
    return Speed(
        dtype,
        min(train) / tokens,
        min(forward) / tokens,
        min(update),
        max(a_step, 0.0),
        load[0],
        watch.busy,
    )


def _batch(chat: Chat, groups: Sequence[Group], model: LanguageModel) -> Batch:
    """A batch of about `TOKENS` tokens of real rows; a row that is longer is cut."""
    chosen: list[Group] = []
    size = 0
    limit = min(TOKENS, chat.max_length or TOKENS)
    for group in groups[:200]:
        encoded = chat.encode_group(group)
        encoded = _cut(encoded, limit)
        if chosen and size + encoded.tokens > TOKENS:
            continue
        chosen.append(encoded)
        size += encoded.tokens
        if size > 0.9 * TOKENS:
            break
    return Batch.of(chosen, range(len(chosen)), len(chosen), model.device)


def _cut(group: Group, limit: int) -> Group:
    prompt = replace(group.prompt, ids=group.prompt.ids[-limit // 2 :])
    end: Any = prompt.ids[-1:]
    answers = group.responses or (Response(ids=(prompt.ids * limit)[: limit // 4]),)
    room = max(1, (limit - len(prompt.ids)) // len(answers))
    return replace(
        group, prompt=prompt, responses=tuple(replace(r, ids=r.ids[:room] or end, loss_spans=None) for r in answers)
    )
