"""Slots on a ring against attention by concatenation: rows that end, are taken over or move leave no trace."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.sampling.native import _compacted
from tiltyard.sampling.slots import Slots
from tiltyard.types import Group

HEADS, KV_HEADS, WIDTH, VALUE, LAYERS = 4, 2, 3, 5, 2
CAPACITY = 9


@settings(max_examples=60, deadline=None)
@given(left=st.lists(st.booleans(), min_size=1, max_size=12))
def test_closing_up_keeps_each_row_once_and_moves_few(left: list[bool]) -> None:
    rows = _compacted(torch.tensor(left)).tolist()
    assert sorted(rows) == [i for i, go in enumerate(left) if go]
    stay = [i for i, go in enumerate(left) if go and i < len(rows)]
    assert all(rows[i] == i for i in stay)


def _plain(q: Tensor, keys: Tensor, values: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """One row's attention from its definition: q [H, D], keys [kv, L, D], values [kv, L, V]."""
    keys, values = (x[:, -window:] if window else x for x in (keys, values))
    out = []
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        logits = keys[shared] @ q[head] * 0.7
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        out.append(logits.softmax(-1) @ values[shared])
    return torch.stack(out)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_slots_equal_concatenation(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    window = data.draw(st.sampled_from([None, 3, 20]))
    softcap = data.draw(st.sampled_from([None, 2.0]))
    slots = Slots(4, CAPACITY, torch.device("cpu"))
    held: list[list[tuple[Tensor, Tensor]]] = []  # by slot and layer: keys, values
    for _ in range(data.draw(st.integers(5, 30))):
        full = [s for s, row in enumerate(held) if row[0][0].shape[1] == CAPACITY]
        gaps = sorted({*full, *(s for s in range(len(held)) if data.draw(st.integers(0, 3)) == 0)})
        free = [*gaps, *range(len(held), 4)]
        if (new := data.draw(st.integers(0 if len(held) > len(gaps) else 1, len(free)))) > 0:
            lengths = data.draw(st.lists(st.integers(1, CAPACITY - 1), min_size=1, max_size=3))
            forest = pack([Group(tiny.group(n, seed=i).prompt, ()) for i, n in enumerate(lengths)])
            packed = [(random(KV_HEADS, forest.T, WIDTH), random(KV_HEADS, forest.T, VALUE)) for _ in range(LAYERS)]
            for layer in range(LAYERS):
                slots.prefill(layer, *packed[layer])
            places = [data.draw(st.integers(0, len(lengths) - 1)) for _ in range(new)]
            slots.admit(forest, places, free[:new])
            for place, slot in zip(places, free, strict=False):
                span = slice(forest.tree_start[place], forest.tree_start[place] + lengths[place])
                row = [(k[:, span], v[:, span]) for k, v in packed]
                held[slot : slot + 1] = [row]
            gaps = gaps[new:]
        if gaps:
            rows = _compacted(torch.tensor([s not in gaps for s in range(len(held))]))
            slots.keep(rows)
            held = [held[i] for i in rows.tolist()]
        assert slots.length_S.tolist() == [row[0][0].shape[1] for row in held]
        for layer in range(LAYERS):
            q, k, v = random(len(held), HEADS, WIDTH), random(len(held), KV_HEADS, WIDTH), random(len(held), 2, VALUE)
            found = slots.attend(layer, q, k, v, 0.7, window if layer else None, softcap)
            for s, row in enumerate(held):
                row[layer] = (
                    torch.cat([row[layer][0], k[s, :, None]], 1),
                    torch.cat([row[layer][1], v[s, :, None]], 1),
                )
                expected = _plain(q[s], *row[layer], window if layer else None, softcap)
                torch.testing.assert_close(found[s], expected, atol=1e-12, rtol=1e-10)
        slots.advance()
