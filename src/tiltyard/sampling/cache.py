"""Keys and values of running answers, preallocated: no concatenation, one row an answer.

    key_l, value_l  [rows, kv heads, capacity, D]    one pair a layer
    length_N        [rows]                           tokens a row holds; row r's next token is written at length_N[r]

A prompt is prefilled once and copied to each of its n rows. Positions at or beyond a row's length hold rubbish that the
mask hides and that later tokens overwrite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tiltyard.models.forest import Forest


class SlotCache:
    """Args: forest of the prompts alone; `copies` answers of each; `capacity` tokens a row at most."""

    def __init__(self, forest: Forest, copies: int, capacity: int):
        starts = torch.tensor(forest.tree_start).repeat_interleave(copies)
        lengths = torch.tensor(forest.prompt_length).repeat_interleave(copies)
        longest = int(lengths.max())
        # rows shorter than the longest prompt gather a few tokens too many: rubbish beyond their length
        gather = (starts[:, None] + torch.arange(longest)).clamp_max(forest.T - 1)
        self.gather_NP = gather.to(forest.device)
        self.length_N = lengths.to(forest.device)
        self.capacity, self.longest = capacity, longest
        self.masks: dict[int | None, Tensor] = {}  # of the token being computed, by window: layers share them
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def prefill(self, layer: int, key_HTD: Tensor, value_HTD: Tensor) -> None:
        """Copies packed prompt keys and values [H, T, D] to every row."""
        rows, longest = self.gather_NP.shape
        for store, source in ((self.keys, key_HTD), (self.values, value_HTD)):
            heads, _, width = source.shape
            slots = source.new_zeros(rows, heads, self.capacity, width)
            slots[:, :, :longest] = source[:, self.gather_NP].transpose(0, 1)
            store[layer] = slots

    def append(self, layer: int, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Writes one token a row ([rows, H, 1, D]); returns keys, values and mask up to the longest row."""
        rows = torch.arange(key.shape[0], device=key.device)
        keys, values = self.keys[layer], self.values[layer]
        keys[rows, :, self.length_N] = key[:, :, 0]
        values[rows, :, self.length_N] = value[:, :, 0]
        upto = self.longest + 1
        if window not in self.masks:
            place = torch.arange(upto, device=key.device)
            mask = place <= self.length_N[:, None]
            if window is not None:
                mask &= place > self.length_N[:, None] - window
            self.masks[window] = mask[:, None, None]
        return keys[:, :, :upto], values[:, :, :upto], self.masks[window]

    def advance(self) -> None:
        """After all layers have written their token."""
        self.length_N = self.length_N + 1
        self.longest += 1
        self.masks = {}

    def keep(self, rows: Tensor) -> None:
        """Row i is from now on what row `rows[i]` was; the others are dropped. Only rows that move are copied.

        Rows must not be read after they were overwritten: a row that moves comes from beyond the last one kept.
        """
        moved = torch.nonzero(rows != torch.arange(len(rows), device=rows.device)).flatten()
        source = rows[moved]
        for store in (self.keys, self.values):
            for layer, slots in store.items():
                slots[moved, :, : self.longest] = slots[source, :, : self.longest]
                store[layer] = slots[: len(rows)]
        self.length_N = self.length_N[rows]
        self.longest = int(self.length_N.max()) if len(rows) else 0
        self.masks = {}
