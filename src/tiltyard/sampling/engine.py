"""Engines: compute the logits of the next token of every running row.

`Packed`: prompts computed packed, responses in slots; a slot whose response has ended is reused at once. The engines of
models that cannot be packed are in `padded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.kernels import family
from tiltyard.kernels.fused_decoder import FusedDecoder, make_decoder
from tiltyard.kernels.matmul import PackedLinear
from tiltyard.kernels.native_decoder import NativeDecoder
from tiltyard.models.backbone import Backbone
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import merged_adapters
from tiltyard.sampling.slots import Slots
from tiltyard.types import Group, Prompt

PREFILL = 8192  # prompt tokens computed together at most: bounds memory
AHEAD = 1024  # and at least, while prompts are left: a prompt alone is too small a product


class NextToken(NamedTuple):
    """Logits [n, V] of the next token of some rows and, where the engine has them, last hidden states [n, d]."""

    logits: Tensor
    hidden: Tensor | None


class Engine(Protocol):
    def free_slots(self, running: int, ended: int) -> int:
        """Number of rows that can start now, while slots `0..running` are in use and `ended` of those have ended."""

    def start(self, rows: Sequence[int], slots: Sequence[int]) -> NextToken:
        """Starts the first of these rows in the first of these slots: as many as it chooses, at least one."""

    def step(self, ids: Tensor) -> NextToken:
        """Adds one token a row [rows]."""

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was; a row may be kept several times, as far as there are slots."""


class Packed:
    """Args: row r is a response to prompt r // n; `slots` rows at a time; `capacity` tokens in the longest; with the
    backend's decoder or with the modules."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Prompt], n: int, slots: int, capacity: int, fast: bool):
        self.model, self.prompts, self.n = model, prompts, n
        self.slots = Slots(slots, capacity, model.device)
        self.decoder: FusedDecoder | NativeDecoder | None = None
        if fast:
            with merged_adapters(model.backbone, model.adapters):  # a snapshot of the weights with the adapters merged
                self.decoder = make_decoder(model.backbone, model.head, capacity, model.backend)
        self.first, self.forest = 0, pack([], model.device)  # prompts from `first` on are computed and wait for slots
        self.hidden: Tensor | None = None

    def free_slots(self, running: int, ended: int) -> int:
        return self.slots.slots - running + ended

    def start(self, rows: Sequence[int], slots: Sequence[int]) -> NextToken:
        if rows[0] // self.n >= self.first + self.forest.G:
            self._prefill(rows[0] // self.n, rows[-1] // self.n)
        places = [place for row in rows if (place := row // self.n - self.first) < self.forest.G]
        self.slots.admit(self.forest, places, slots[: len(places)])
        hidden = self.hidden[torch.tensor(places, device=self.model.device)]  # type: ignore[index]
        return self._read(hidden)

    def _read(self, hidden: Tensor, head: PackedLinear | None = None) -> NextToken:
        """Logits of last hidden states; `head`: the output head's product, made ready for few rows."""
        return NextToken(self.model.logits(hidden, head), hidden)

    def _prefill(self, first: int, last: int) -> None:
        """Computes the prompts from `first` on: up to `last` if they fit, and a few beyond it if they are few."""
        end, tokens = first, 0
        while end < len(self.prompts) and (end <= last or tokens < AHEAD):
            tokens += len(self.prompts[end].ids)
            if tokens > PREFILL and end > first:
                break
            end += 1
        self.first = first
        self.forest = pack([Group(p, ()) for p in self.prompts[first:end]], self.model.device)
        self.hidden = self.model.hidden_T(self.forest, cache=self.slots)[self.forest.prompt_last_G]

    def step(self, ids: Tensor) -> NextToken:
        if self.decoder is not None:
            hidden = self.decoder.step(ids, self.slots)
        else:
            with self.model.autocast():
                out = self.model.backbone(
                    input_ids=ids[:, None],
                    position_ids=self.slots.length_S[:, None],
                    use_cache=False,
                    backend=self.model.backend,
                    cache=self.slots,
                )
            hidden = out.last_hidden_state[:, 0]
        self.slots.advance()
        return self._read(hidden, self.decoder.head if self.decoder else None)

    def reorder(self, rows: Tensor) -> None:
        self.slots.keep(rows)


class PackedValues(Packed):
    """Reads the same tokens with a value model: `NextToken.logits` are its values [n, 1] after the last token.

    Args: as for `Packed`, and a scalar model in place of a language model.
    """

    model: Any

    def _read(self, hidden: Tensor, head: PackedLinear | None = None) -> NextToken:  # noqa: ARG002 - one number a row
        number = self.model.head(hidden.to(self.model.head.weight.dtype))
        return NextToken(self.model.normalised(number).to(torch.promote_types(number.dtype, torch.float32)), hidden)


def can_use_decoder(model: Backbone, engine: type[Packed] = Packed) -> bool:
    """True if the backend's decoder computes this model; compares it with the modules over two steps, once a model.

    Where they disagree the model's backend becomes one that decodes by the modules.
    """
    if not model.packed or model.dtype == "float64" or model.backend.decoder == "modules":
        return False
    with merged_adapters(model.backbone, model.adapters):
        if not family.is_supported(model.backbone):
            return False
    if model.decoder_agrees is None:
        ids = torch.arange(2, device=model.device)
        results = []
        with model.in_float32():  # the same steps, whose differences no rounding hides
            for fast in (True, False):
                rows = engine(model, [Prompt(ids=(0, 1, 2))], 2, 2, 5, fast)  # type: ignore[arg-type]
                rows.start([0, 1], [0, 1])
                results.append(torch.stack([rows.step(ids).logits.detach() for _ in range(2)]))
            near = 1e-4 if model.dtype == "float32" else 5e-2
        gap = float((results[0] - results[1]).abs().max() / results[1].abs().max().clamp_min(1e-6))
        model.decoder_agrees = gap < near
        if not model.decoder_agrees:
            why = f"{model.backend.why_ops}; the {model.backend.decoder} decoder differs by {gap:.2g} of the logits"
            model.backend = replace(model.backend, decoder="modules", why_ops=why)
    return model.decoder_agrees
