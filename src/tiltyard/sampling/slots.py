"""Keys and values of running responses: preallocated slots on a ring, so that every row writes the same column.

    key_l, value_l [slots, kv heads, C, D]     one pair a layer
    length_S       [slots]                     tokens a slot holds

    column   0  .  .  .  .  .  .  .  .  .  now .  .  C-1
    slot 0         p  p  p  p  a  a  a  a   *              p prompt, a response so far, * the token being computed
    slot 1                        p  p  p   *              (taken over later: its prompt ends just before `now`)
    slot 2      p  p  p  p  p  p  a  a  a   *

A step writes column `now` of all slots in one copy and moves `now` on, around the ring. The columns of a slot hold
consecutive tokens, so column c holds the token that is (now - c) mod C back, and a slot may look at it if that is at
most `length_S`; anything else there is left from responses that ended. Prompts are computed once each, packed, and
copied to the slots of their responses.

Decoding reads far more keys and values than it has arithmetic to do with them, so columns that no row needs must not be
read: slots are attended to in bands of neighbours, each over the columns that its longest row needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tiltyard.batch.forest import Forest

BAND = 8  # slots in a band at least
WORTH = 1 << 16  # numbers that a band must save from being read: what its own calls cost


class Slots:
    """Args: `slots` rows of `capacity` columns: what the longest row needs, prompt and response."""

    def __init__(self, slots: int, capacity: int, device: torch.device):
        self.slots, self.capacity, self.device = slots, capacity, device
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.length_S = torch.zeros(0, dtype=torch.long, device=device)
        self.now = 0
        self.lengths: list[int] = []  # the same lengths, at the time when `now` was `_since`
        self._since = 0
        self._bands: list[tuple[int, int, int]] = []  # (first slot, end, tokens of the longest) at that time
        self._read: dict[tuple[int, int | None], Tensor] = {}  # biases of the token being computed: layers share them
        self._packed: dict[int, tuple[Tensor, Tensor]] = {}
        self._columns = torch.arange(capacity, device=device)

    # ------------------------------------------------------------------------------------------------ prompts

    def prefill(self, layer: int, key_HTD: Tensor, value_HTD: Tensor) -> None:
        """Keeps the packed prompts' keys and values of one layer until `admit` gives them slots."""
        self._packed[layer] = (key_HTD, value_HTD)

    def admit(self, forest: Forest, prompts: Sequence[int], slots: Sequence[int]) -> None:
        """Prompt `prompts[i]` of the prefilled forest takes slot `slots[i]`; slots beyond those in use are added."""
        lengths = torch.tensor([forest.prompt_length[p] for p in prompts])
        starts = torch.tensor([forest.tree_start[p] for p in prompts])
        longest = int(lengths.max())
        if not len(self.length_S):
            self.now = longest
        # right-aligned: a shorter prompt's row begins with tokens of its neighbours, which its length hides
        gather = (starts + lengths - longest)[:, None] + torch.arange(longest)
        gather = gather.clamp_(0, forest.T - 1).to(self.device)
        first = (self.now - longest) % self.capacity
        cut = min(longest, self.capacity - first)  # what lies before the ring's end
        at = torch.tensor(slots, device=self.device)
        for layer, (key_HTD, value_HTD) in self._packed.items():
            for store, packed in zip(self._rows(layer, key_HTD, value_HTD), (key_HTD, value_HTD), strict=True):
                block = packed[:, gather].transpose(0, 1)
                store[at, :, first : first + cut] = block[:, :, :cut]
                if cut < longest:
                    store[at, :, : longest - cut] = block[:, :, cut:]
        held = [n + self.now - self._since for n in self.lengths]
        held += [0] * (max(slots) + 1 - len(held))
        for slot, length in zip(slots, lengths.tolist(), strict=True):
            held[slot] = length
        self._holds(held)

    def _rows(self, layer: int, key_HTD: Tensor, value_HTD: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's store. It starts as zeros: what is hidden is multiplied by 0, which must not meet a NaN."""
        if layer not in self.keys:
            (heads, _, width), value_width = key_HTD.shape, value_HTD.shape[-1]
            self.keys[layer] = key_HTD.new_zeros(self.slots, heads, self.capacity, width)
            self.values[layer] = value_HTD.new_zeros(self.slots, heads, self.capacity, value_width)
        return self.keys[layer], self.values[layer]

    # -------------------------------------------------------------------------------------------------- steps

    def attend(
        self,
        layer: int,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Attention of one new token a row, whose key and value are written first.

        Args:
            q: [rows, H, D]. key, value: [rows, kv heads, D]. scaling: of the logits.
            window: tokens a layer may look back, itself included. softcap: Gemma 2's cap of the logits.

        Returns:
            [rows, H, D of the values].
        """
        rows, heads, width = q.shape
        keys, values = self.keys[layer][:rows], self.values[layer][:rows]
        column = self.now % self.capacity
        keys[:, :, column], values[:, :, column] = key, value
        kv_heads = keys.shape[1]
        # query heads that share a key head lie side by side: no key is repeated
        shared = (q * scaling).to(keys.dtype).reshape(rows, kv_heads, heads // kv_heads, width)
        outs = [self._band(band, shared, keys, values, window, softcap) for band in range(len(self._bands))]
        return (outs[0] if len(outs) == 1 else torch.cat(outs)).to(q.dtype).view(rows, heads, -1)

    def _band(
        self, band: int, q: Tensor, keys: Tensor, values: Tensor, window: int | None, softcap: float | None
    ) -> Tensor:
        """The attention of one band's slots: [slots * kv heads, heads that share, D]."""
        first, end, _ = self._bands[band]
        low, high = self._span(band, window)
        logits = torch.bmm(q[first:end].flatten(0, 1), keys[first:end, :, low:high].flatten(0, 1).mT)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits.view(end - first, -1, high - low).add_(self._bias(band, window, low, high, logits.dtype))
        return torch.bmm(logits.softmax(-1).to(values.dtype), values[first:end, :, low:high].flatten(0, 1))

    def _span(self, band: int, window: int | None) -> tuple[int, int]:
        """Columns that some row of a band may look at; all of them where they lie across the ring's end."""
        longest = self._bands[band][2] + self.now - self._since
        reach = min(longest + 1, window or self.capacity, self.capacity)
        high = self.now % self.capacity + 1
        return (high - reach, high) if reach <= high else (0, self.capacity)

    def _bias(self, band: int, window: int | None, low: int, high: int, dtype: torch.dtype) -> Tensor:
        """[slots, 1, columns]: 0 where a row may look, -inf elsewhere."""
        if (band, window) not in self._read:
            first, end, _ = self._bands[band]
            back = (self.now - self._columns[low:high]) % self.capacity
            hidden = back > self.length_S[first:end, None]
            if window is not None:
                hidden |= back >= window
            bias = torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(hidden, -torch.inf)
            self._read[band, window] = bias[:, None]
        return self._read[band, window]

    def advance(self) -> None:
        """After all layers have written their token."""
        self.length_S += 1
        self.now += 1
        self._read = {}

    def keep(self, rows: Tensor) -> None:
        """Row i is from now on what row `rows[i]` was; the others are dropped. Only rows that move are copied.

        A row may be kept several times (particles), up to the number of slots: all are read before one is written.
        """
        moved = torch.nonzero(rows != torch.arange(len(rows), device=rows.device)).flatten()
        source = rows[moved]
        if len(moved):
            for store in (*self.keys.values(), *self.values.values()):
                store[moved] = store[source]
        self._holds([self.lengths[row] + self.now - self._since for row in rows.tolist()])

    def _holds(self, lengths: list[int]) -> None:
        """Sets the tokens that each slot holds and cuts the slots into the bands that are worth their calls."""
        self.lengths, self._since, self._read = lengths, self.now, {}
        self.length_S = torch.tensor(lengths, dtype=torch.long, device=self.device)
        numbers = sum(store.shape[1] * store.shape[3] for store in self._first_layer())
        size = max(BAND, -(-len(lengths) // 8))
        self._bands = []
        for first in range(0, len(lengths), size):
            end = min(first + size, len(lengths))
            longest = max(lengths[first:end])
            if self._bands:
                before, middle, reach = self._bands[-1]
                both = max(reach, longest)
                extra = (middle - before) * (both - reach) + (end - first) * (both - longest)
                if extra * numbers < WORTH:
                    self._bands[-1] = (before, end, both)
                    continue
            self._bands.append((first, end, longest))

    def _first_layer(self) -> list[Tensor]:
        layer = next(iter(self.keys), None)
        return [] if layer is None else [self.keys[layer], self.values[layer]]
