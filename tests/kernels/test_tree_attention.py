"""tree_attention.c against the tiles of torch and against attention as it is defined, forward and backward."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import tiny
from tiltyard.batch.forest import Forest, pack
from tiltyard.kernels import fused_block, library, tree_attention
from tiltyard.models import attention

needed = pytest.mark.skipif(
    library.load().handle is None, reason=f"tree_attention.c is not compiled: {library.load().why}"
)


def forest_of(shape: list[list[int]]) -> Forest:
    """[[prompt, answer, answer, ...], ...] as numbers of tokens."""
    return pack([tiny.group(prompt, *answers, seed=i) for i, (prompt, *answers) in enumerate(shape)])


def defined(forest: Forest, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Every token against every token, in float64."""
    tree_T = torch.zeros(forest.T, dtype=torch.long)
    for g, (start, length) in enumerate(zip(forest.tree_start, forest.tree_length, strict=True)):
        tree_T[start : start + length] = g
    same = tree_T[:, None] == tree_T[None]
    branch, position = forest.branch_T, forest.position_T
    seen = same & ((branch[None] == 0) | (branch[None] == branch[:, None])) & (position[None] <= position[:, None])
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * scaling
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(~seen, -math.inf).softmax(-1), v)


def tensors(forest: Forest, heads: int, kv_heads: int, width: int, more: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(heads * 100 + width)
    q, k, v = (torch.randn(forest.T + more, n, width, generator=generator) for n in (heads, kv_heads, kv_heads))
    return q * 2, k * 2, v


SHAPES = st.lists(
    st.tuples(st.integers(1, 70), st.lists(st.integers(1, 60), max_size=4)).map(lambda x: [x[0], *x[1]]),
    min_size=1,
    max_size=3,
)


@needed
@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]),
    width=st.sampled_from([4, 16, 24, 32, 40, 64]),
    more=st.integers(0, 5),
)
def test_it_is_attention_over_trees(shape: list[list[int]], heads: tuple[int, int], width: int, more: int) -> None:
    forest = forest_of(shape)
    mine = [x.requires_grad_() for x in tensors(forest, *heads, width, more)]
    out = tree_attention.attention(*mine, forest.segments, 0.3)
    assert not out[forest.T :].any()
    real = [x.detach()[: forest.T].double().requires_grad_() for x in mine]
    expected = defined(forest, *real, 0.3)
    torch.testing.assert_close(out[: forest.T].double(), expected, atol=5e-5, rtol=5e-5)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    out.backward(slope)
    expected.backward(slope[: forest.T].double())
    for x, other in zip(mine, real, strict=True):
        assert x.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(x.grad[: forest.T].double(), other.grad, atol=2e-4, rtol=2e-4)
        assert not x.grad[forest.T :].any()


@needed
def test_a_long_tree_and_large_logits() -> None:
    forest = forest_of([[300, 257, 31, 200], [500]])
    q, k, v = tensors(forest, 2, 1, 32)
    for size, near in ((1.0, 2e-5), (40.0, 5e-4)):  # logits of some hundreds are known to 1e-4 in float32
        out = tree_attention.attention(q * size, k, v, forest.segments, 0.2)
        torch.testing.assert_close(out.double(), defined(forest, q * size, k, v, 0.2), atol=near, rtol=near)


@needed
def test_the_work_is_counted_while_somebody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four operations for each number of a head and each pair of a query and a key that it sees; ten backwards."""
    forest = forest_of([[3, 2, 4], [5], [2, 3]])
    pairs = (6 + 2 * 3 + 3 + 4 * 3 + 10) + 15 + (5 * 6 // 2)
    mine = [x.requires_grad_() for x in tensors(forest, 4, 2, 16)]
    monkeypatch.setattr(tree_attention.KernelFlop, "flop", 0)
    tree_attention.attention(*mine, forest.segments, 0.3).sum().backward()
    assert tree_attention.KernelFlop.flop == 0
    monkeypatch.setattr(tree_attention.KernelFlop, "on", True)
    out = tree_attention.attention(*mine, forest.segments, 0.3)
    assert tree_attention.KernelFlop.flop == 4 * pairs * 4 * 16
    out.sum().backward()
    assert tree_attention.KernelFlop.flop == 14 * pairs * 4 * 16


@needed
def test_threads_change_no_bit() -> None:
    forest, before = forest_of([[20, 30, 40], [9, 7], [50]]), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            mine = [x.requires_grad_() for x in tensors(forest, 4, 2, 32)]
            out = tree_attention.attention(*mine, forest.segments, 0.3)
            out.square().sum().backward()
            found.append([out, *(x.grad for x in mine)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needed
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "llama_tied"])
def test_models_take_it_and_say_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_block, "is_supported", lambda *_: False)  # transformers' modules ask for it too
    calls = []
    real = tree_attention.attention
    monkeypatch.setattr(attention.tree_attention, "attention", lambda *args: (calls.append(1), real(*args))[1])
    forest = forest_of([[5, 7, 3], [9, 4], [2, 6, 6, 1]])
    grads = []
    for compiled in (True, False):
        model = tiny.language(family, "float32")
        if not compiled:
            model.backend = replace(model.backend, ops="torch")
        logp_R = model.logp_R(forest)[0]
        logp_R.sum().backward()
        grads.append([logp_R.detach(), *(p.grad for p in model.module.parameters() if p.grad is not None)])
    assert calls
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, atol=3e-5, rtol=3e-5)
