"""Engines for models that cannot be packed: with transformers' cache and left padding, or without a cache.

Which of them a model is sampled with is found by trial, see `ways`.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tiltyard.models.language import LanguageModel
from tiltyard.sampling.engine import NextToken
from tiltyard.types import Prompt

CACHES = ("past_key_values", "cache_params", "state")  # names of the cache, as argument and in the output
NUMBERS = 1 << 26  # logits computed at once without a cache: bounds memory


class Padded:
    """Decodes with transformers' own cache.

    Args: as for `Packed`; `at_once` rows at most. unequal: prompts of different length share a batch, padded on the
    left.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Prompt], n: int, at_once: int, *, unequal: bool = True):
        self.model, self.prompts, self.n, self.at_once, self.unequal = model, prompts, n, at_once, unequal
        self.mask = torch.zeros(0, 0, dtype=torch.long)  # [rows, tokens so far]
        self.past: Any = None  # the cache, which the model makes
        known = signature(model.module.forward).parameters
        self.positioned = "position_ids" in known
        self.cache = next((name for name in CACHES if name in known), CACHES[0])

    def free_slots(self, running: int, ended: int) -> int:
        return self.at_once if running == ended else 0

    def start(self, rows: Sequence[int], slots: Sequence[int]) -> NextToken:  # noqa: ARG002 - they are all free
        prompts = [self.prompts[row // self.n].ids for row in rows]
        if not self.unequal:
            other = next((i for i, ids in enumerate(prompts) if len(ids) != len(prompts[0])), len(prompts))
            prompts = prompts[:other]
        longest = max(len(ids) for ids in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self.mask, self.past = mask.to(self.model.device), None
        return self._next_token(ids.to(self.model.device))

    def step(self, ids: Tensor) -> NextToken:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        return self._next_token(ids[:, None])

    def _next_token(self, ids: Tensor) -> NextToken:
        position = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        extra: dict[str, Any] = {"position_ids": position} if self.positioned else {}
        with self.model.plain(), self.model.autocast():
            out = self.model.module(
                input_ids=ids, attention_mask=self.mask, use_cache=True, **{self.cache: self.past}, **extra
            )
        self.past = getattr(out, self.cache)
        return NextToken(wide(out.logits[:, -1]), None)

    def reorder(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        if len(rows):
            self.past.reorder_cache(rows)


class Recomputed:
    """Decodes without a cache, for architectures whose cache is not understood here. Args: as for `Padded`."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Prompt], n: int, at_once: int):
        self.model, self.prompts, self.n, self.at_once = model, prompts, n, at_once
        self.rows: list[list[int]] = []  # ids of every slot's row so far

    def free_slots(self, running: int, ended: int) -> int:
        return self.at_once - running + ended

    def start(self, rows: Sequence[int], slots: Sequence[int]) -> NextToken:
        self.rows += [[] for _ in range(max(slots) + 1 - len(self.rows))]
        for row, slot in zip(rows, slots, strict=False):  # the sampler offers more slots than rows are left
            self.rows[slot] = list(self.prompts[row // self.n].ids)
        return self._next_token([self.rows[slot] for slot in slots[: len(rows)]])

    def step(self, ids: Tensor) -> NextToken:
        for row, token in zip(self.rows, ids.tolist(), strict=True):
            row.append(token)
        return self._next_token(self.rows)

    def reorder(self, rows: Tensor) -> None:
        self.rows = [list(self.rows[row]) for row in rows.tolist()]

    def _next_token(self, rows: Sequence[Sequence[int]]) -> NextToken:
        longest = max(map(len, rows))
        size = max(1, NUMBERS // (longest * self.model.vocab_size))
        found = []
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            lengths = [len(row) for row in part]
            ids = torch.stack([functional.pad(torch.tensor(row), (0, max(lengths) - len(row))) for row in part])
            logits = self.model.run_rows(
                ids.to(self.model.device), lengths, lambda **kw: self.model.module(**kw).logits
            )
            found.append(logits[torch.arange(len(part)), torch.tensor(lengths) - 1])
        return NextToken(wide(torch.cat(found)), None)


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
