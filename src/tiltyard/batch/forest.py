"""Packed batches: a forest with one tree a group, end to end, without padding.

    tokens T:   | prompt 0 | response 0.0 | response 0.1 | prompt 1 | response 1.0 | ...
    position:    0 1 2 3 4   5 6 7 8        5 6 7          0 1 2      3 4 5 6

A response attends to its prompt and to itself, so the prompt is computed once however many responses it has.
Losses see flat vectors over the R response tokens: the hidden state at `predictor_R[i]` (an index into T) predicts
`target_R[i]`; it belongs to response `response_R[i]`. Tokens outside a response's `loss_spans` are not in R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from tiltyard.errors import DataError
from tiltyard.kernels.tree_attention import Segments, segments_of
from tiltyard.types import Group


@dataclass(frozen=True, eq=False)
class AttentionTile:
    """Strips of similar length laid side by side for one attention call: n strips padded to L tokens.

    A strip is a whole tree, or a prompt with one of its branches (then the prompt's keys are in several strips and
    plain causal attention is enough). Padding and repeated prompts exist in the attention product alone, not in
    projections and feed-forward layers.
    `index` [n*L] picks tokens of T (padding picks token 0), `branch_nL` is -1 at padding, 0 on the prompt, then 1..K.
    """

    n: int
    length: int
    index: Tensor
    branch_nL: Tensor
    position_nL: Tensor
    single_branch: bool
    deepest: int  # the largest position

    def to(self, device: torch.device) -> AttentionTile:
        """Returns the tile with its tensors on another device."""
        named = {name: getattr(self, name).to(device) for name in ("index", "branch_nL", "position_nL")}
        return replace(self, **named)

    def within(self, window: int) -> bool:
        """True if a window of this size hides no token."""
        return self.deepest < window

    def mask(self, window: int | None) -> Tensor | None:
        """Builds the mask [n, 1, L, L] (True = may attend); None where plain causal attention gives the same result.

        Masks are the only large part of a tile, so they are not kept with it (`models.attention`).
        """
        if self.single_branch and window is None:
            return None  # padding lies after every real token, so causal order already hides it
        query, key = self.position_nL[:, :, None], self.position_nL[:, None, :]
        own, other = self.branch_nL[:, :, None], self.branch_nL[:, None, :]
        allowed = ((other == 0) | (other == own)) & (key <= query)
        if window is not None:
            allowed &= query - key < window
        return allowed[:, None]


@dataclass(frozen=True, eq=False)
class Forest:
    """Packed trees and every index that losses need; all tensors on one device. Built by `pack`.

    `host`: the same forest on the CPU, of one on another device: reading it does not wait for that device.
    """

    ids_T: Tensor
    position_T: Tensor
    branch_T: Tensor
    tree_start: tuple[int, ...]
    tree_length: tuple[int, ...]
    prompt_length: tuple[int, ...]
    group_B: Tensor
    start_B: Tensor  # first token of response b in T
    length_B: Tensor  # tokens of response b, those outside loss spans included
    predictor_R: Tensor
    target_R: Tensor
    response_R: Tensor
    offset_B: Tensor  # first loss token of response b in R
    count_B: Tensor  # loss tokens of response b
    host: Forest | None = None

    def to(self, device: torch.device) -> Forest:
        """Returns this forest with its tensors on another device, in one transfer."""
        named = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        parts = torch.cat(list(named.values())).to(device).split([len(x) for x in named.values()])
        # each alone: their own storages start where torch aligns them
        return replace(self, **{name: x.clone() for name, x in zip(named, parts, strict=True)}, host=self)

    @property
    def T(self) -> int:
        return int(self.ids_T.numel())

    @property
    def B(self) -> int:
        return int(self.group_B.numel())

    @property
    def R(self) -> int:
        return int(self.target_R.numel())

    @property
    def G(self) -> int:
        return len(self.tree_start)

    @property
    def device(self) -> torch.device:
        return self.ids_T.device

    @cached_property
    def last_B(self) -> Tensor:
        """Index in T of each response's last token (where a reward model reads its score)."""
        return self.start_B + self.length_B - 1

    @cached_property
    def prompt_last_G(self) -> Tensor:
        starts = torch.tensor(self.tree_start, device=self.device)
        return starts + torch.tensor(self.prompt_length, device=self.device) - 1

    @cached_property
    def tiles(self) -> tuple[AttentionTile, ...]:
        return _tiles(self) if self.host is None else tuple(tile.to(self.device) for tile in self.host.tiles)

    @cached_property
    def branches(self) -> list[list[tuple[int, int]]]:
        """The spans (first token, tokens) of each tree's responses."""
        if self.host is not None:
            return self.host.branches
        spans: list[list[tuple[int, int]]] = [[] for _ in range(self.G)]
        columns = (x.tolist() for x in (self.group_B, self.start_B, self.length_B))
        for group, start, length in zip(*columns, strict=True):
            spans[group].append((start, length))
        return spans

    @cached_property
    def segments(self) -> Segments:
        """Each tree's prompt and branches as the kernels read them; a tree with one branch at most is one segment."""
        trees = zip(self.branches, self.tree_start, self.tree_length, self.prompt_length, strict=True)
        return segments_of(
            [[(start, prompt), *spans] if len(spans) > 1 else [(start, whole)] for spans, start, whole, prompt in trees]
        )

    def padded_to(self, multiple: int) -> tuple[Tensor, Tensor]:
        """Returns ids and positions followed by tokens of no tree, so that their number is a multiple of `multiple`.

        No token attends to them and nothing is read from them. Libraries that compile a kernel for each size of a
        product do not need a new one for every batch.
        """
        more = (0, -self.T % multiple)
        return nn.functional.pad(self.ids_T, more), nn.functional.pad(self.position_T, more)

    def untile(self, flat: Tensor, tokens: int) -> Tensor:
        """Reorders the rows of all tiles to the order of T; a token of no tree gets the row of the first token."""
        place = self.untile_T
        return flat.index_select(0, nn.functional.pad(place, (0, tokens - self.T)))

    @cached_property
    def untile_T(self) -> Tensor:
        """For each token of T, its place (one of its places) in the concatenation of all tiles' rows."""
        if self.host is not None:
            return self.host.untile_T.to(self.device)
        place = torch.empty(self.T, dtype=torch.long)
        done = 0
        for tile in self.tiles:
            real = tile.branch_nL.flatten() >= 0
            place[tile.index[real]] = torch.nonzero(real).flatten() + done
            done += real.numel()
        return place


MAX_WASTE = 1.25  # a tile may hold at most this many slots per real token
MAX_TILE = 8192  # slots in a tile: bounds the attention product's working set


@dataclass(frozen=True)
class _Strip:
    """Spans (start, length) of T that attend to each other, and a flag: True if at most one branch is among them."""

    spans: tuple[tuple[int, int], ...]
    length: int
    single: bool


def _strips(forest: Forest) -> list[_Strip]:
    """Each tree whole under a mask, or cut into its branches: the one with fewer products of a query and a key."""
    strips = []
    for own, start, whole, prompt in zip(
        forest.branches, forest.tree_start, forest.tree_length, forest.prompt_length, strict=True
    ):
        cut = sum((prompt + length) ** 2 for _, length in own) / 2  # causal kernels skip half, masked ones nothing
        if len(own) <= 1 or whole**2 <= cut:
            strips.append(_Strip(((start, whole),), whole, len(own) <= 1))
        else:
            strips += [_Strip(((start, prompt), span), prompt + span[1], True) for span in own]
    return strips


def _tiles(forest: Forest) -> tuple[AttentionTile, ...]:
    tiles: list[list[_Strip]] = []
    real = 0
    for strip in sorted(_strips(forest), key=lambda s: (s.single, s.length)):
        last = tiles[-1] if tiles else []
        slots = (len(last) + 1) * strip.length
        fits = slots <= MAX_WASTE * (real + strip.length) and slots <= MAX_TILE
        if last and last[0].single == strip.single and fits:
            last.append(strip)
            real += strip.length
        else:
            tiles.append([strip])
            real = strip.length
    return tuple(_tile(strips, forest.branch_T, forest.position_T) for strips in tiles)


def _tile(strips: list[_Strip], branch_T: Tensor, position_T: Tensor) -> AttentionTile:
    index = torch.zeros(len(strips), max(strip.length for strip in strips), dtype=torch.long)
    real = torch.zeros_like(index, dtype=torch.bool)
    for row, strip in enumerate(strips):
        index[row, : strip.length] = torch.cat([torch.arange(a, a + n) for a, n in strip.spans])
        real[row, : strip.length] = True
    position = position_T[index].where(real, 0)
    return AttentionTile(
        n=index.shape[0],
        length=index.shape[1],
        index=index.flatten(),
        branch_nL=branch_T[index].where(real, -1),
        position_nL=position,
        single_branch=strips[0].single,
        deepest=int(position.max()),
    )


def pack(groups: Sequence[Group], device: torch.device | str = "cpu") -> Forest:
    """Packs encoded groups into a forest.

    Raises:
        DataError: a prompt without ids (it was not encoded) or a response without tokens.
    """
    ids: list[int] = []
    spans: list[tuple[int, int, int, int]] = []  # group, branch, start in T, length
    tree_start, tree_length, prompt_length = [], [], []
    loss_tokens: list[np.ndarray] = []
    for g, group in enumerate(groups):
        if not group.prompt.ids:
            raise DataError("prompt has no token ids", where=group.origin, fix="encode it with data.Chat first")
        tree_start.append(len(ids))
        prompt_length.append(len(group.prompt.ids))
        ids.extend(group.prompt.ids)
        for branch, response in enumerate(group.responses, 1):
            if not response.ids:
                raise DataError("response has no tokens", where=group.origin, fix="drop it or encode it first")
            spans.append((g, branch, len(ids), len(response.ids)))
            loss_tokens.append(_loss_tokens(response.loss_spans, len(response.ids)))
            ids.extend(response.ids)
        tree_length.append(len(ids) - tree_start[-1])
    forest, device = _index(ids, spans, loss_tokens, tree_start, tree_length, prompt_length), torch.device(device)
    return forest if device.type == "cpu" else forest.to(device)


def _loss_tokens(loss_spans: tuple[tuple[int, int], ...] | None, length: int) -> np.ndarray:
    if loss_spans is None:
        return np.arange(length)
    return np.concatenate([np.arange(a, b) for a, b in loss_spans]) if loss_spans else np.arange(0)


def _index(
    ids: list[int],
    spans: list[tuple[int, int, int, int]],
    loss_tokens: list[np.ndarray],
    tree_start: list[int],
    tree_length: list[int],
    prompt_length: list[int],
) -> Forest:
    ids_T = np.asarray(ids, dtype=np.int64)
    position_T = np.empty(len(ids), dtype=np.int64)
    branch_T = np.zeros(len(ids), dtype=np.int64)
    for start, length in zip(tree_start, prompt_length, strict=True):
        position_T[start : start + length] = np.arange(length)
    predictor, target, response = [], [], []
    for b, (g, branch, start, length) in enumerate(spans):
        position_T[start : start + length] = prompt_length[g] + np.arange(length)
        branch_T[start : start + length] = branch
        taken = loss_tokens[b]
        # the first token of a response is predicted by the last token of its prompt, the others by their neighbour
        predictor.append(np.where(taken == 0, tree_start[g] + prompt_length[g] - 1, start + taken - 1))
        target.append(ids_T[start + taken])
        response.append(np.full(len(taken), b))
    count_B = np.asarray([len(t) for t in loss_tokens], dtype=np.int64)

    def tensor(values: list[np.ndarray] | np.ndarray | list[int]) -> Tensor:
        if isinstance(values, list) and values and isinstance(values[0], np.ndarray):
            values = np.concatenate(values)
        return torch.as_tensor(np.asarray(values, dtype=np.int64))

    return Forest(
        ids_T=tensor(ids_T),
        position_T=tensor(position_T),
        branch_T=tensor(branch_T),
        tree_start=tuple(tree_start),
        tree_length=tuple(tree_length),
        prompt_length=tuple(prompt_length),
        group_B=tensor([s[0] for s in spans]),
        start_B=tensor([s[2] for s in spans]),
        length_B=tensor([s[3] for s in spans]),
        predictor_R=tensor(predictor),
        target_R=tensor(target),
        response_R=tensor(response),
        offset_B=tensor(np.cumsum(count_B) - count_B),
        count_B=tensor(count_B),
    )


def padded_rows(forest: Forest) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """((ids, mask) [rows, L], place of every token of T in the flattened rows); one row a response."""
    forest = forest.host or forest
    start_B, length_B = forest.start_B.tolist(), forest.length_B.tolist()
    spans: list[tuple[int, int, int]] = []  # group, response start, response length
    spans += zip(forest.group_B.tolist(), start_B, length_B, strict=True)
    spans += [(g, 0, 0) for g in sorted(set(range(forest.G)) - {g for g, _, _ in spans})]  # prompts without responses
    longest = max(forest.prompt_length[g] + length for g, _, length in spans)
    ids_T = forest.ids_T
    ids = torch.zeros(len(spans), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    place_T = torch.zeros(forest.T, dtype=torch.long)
    for row, (g, start, length) in enumerate(spans):
        begin, size = forest.tree_start[g], forest.prompt_length[g]
        ids[row, :size] = ids_T[begin : begin + size]
        ids[row, size : size + length] = ids_T[start : start + length]
        mask[row, : size + length] = 1
        slots = row * longest + torch.arange(size + length)
        place_T[begin : begin + size] = slots[:size]  # a shared prompt is read from its last row: all give the same
        place_T[start : start + length] = slots[size:]
    return (ids, mask), place_T
