"""Rows that end leave no trace: the ones that go on keep their keys, values and lengths."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import tiny
from tiltyard.models.forest import plant
from tiltyard.sampling.cache import SlotCache
from tiltyard.sampling.native import _closed_up
from tiltyard.types import Group


@settings(max_examples=60, deadline=None)
@given(left=st.lists(st.booleans(), min_size=1, max_size=12))
def test_closing_up_keeps_each_row_once_and_moves_few(left: list[bool]) -> None:
    rows = _closed_up(torch.tensor(left)).tolist()
    assert sorted(rows) == [i for i, go in enumerate(left) if go]
    stay = [i for i, go in enumerate(left) if go and i < len(rows)]
    assert all(rows[i] == i for i in stay)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cache_equals_concatenation(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    copies = data.draw(st.integers(1, 2))
    forest = plant([Group(tiny.group(n, seed=i).prompt, ()) for i, n in enumerate(lengths)])
    cache = SlotCache(forest, copies, max(lengths) + 6)
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 3, forest.T, 4, generator=generator)
    for layer in range(2):
        cache.prefill(layer, packed[layer], -packed[layer])
    rows = [
        [packed[layer][:, s : s + n] for layer in range(2)] for s, n in zip(forest.tree_start, lengths, strict=True)
    ]
    held = [[x.clone() for x in row] for row in rows for _ in range(copies)]
    for _ in range(6):
        new = torch.randn(2, len(held), 3, 1, 4, generator=generator)
        for layer in range(2):
            keys, values, mask = cache.append(layer, new[layer], -new[layer], window=3)
            for r, row in enumerate(held):
                row[layer] = torch.cat([row[layer], new[layer][r]], 1)
                assert torch.equal(keys[r, :, : row[layer].shape[1]], row[layer])
                assert torch.equal(values[r, :, : row[layer].shape[1]], -row[layer])
                seen = torch.nonzero(mask[r, 0, 0]).flatten().tolist()
                assert seen == list(range(row[layer].shape[1]))[-3:]
        cache.advance()
        left = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(held), max_size=len(held))))
        if not left.any():
            return
        kept = _closed_up(left)
        if len(kept) < len(held):
            cache.keep(kept)
            held = [held[i] for i in kept.tolist()]
