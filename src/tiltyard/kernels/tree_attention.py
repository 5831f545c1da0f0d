"""Attention over packed trees in C (tree_attention.c): no tiles, no padding, no mask, fewer stored activations."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tiltyard.kernels import abi
from tiltyard.kernels.library import KernelFlop, call

if TYPE_CHECKING:
    from tiltyard.kernels.base import Backend

MAX_HEAD_DIM = 256  # the packed copies of keys and values grow with it


class Segments(NamedTuple):
    """A forest as the C code reads it: `trees` [G + 1] are offsets into `segments` [n, 2] = (first token, tokens).

    The first segment of a tree is its prompt, the others are its branches.
    """

    trees: Tensor
    segments: Tensor


def segments_of(trees: Sequence[Sequence[tuple[int, int]]]) -> Segments:
    """Returns the segments of packed trees.

    Args:
        trees: the spans (first token, tokens) of each tree: its prompt and its branches, or one span of all.
    """
    ends = list(itertools.accumulate((len(spans) for spans in trees), initial=0))
    spans = [span for tree in trees for span in tree]
    return Segments(torch.tensor(ends), torch.tensor(spans, dtype=torch.long).reshape(-1, 2))


def is_supported(q: Tensor, v: Tensor, backend: Backend) -> bool:
    """Returns True if the kernel takes these queries [T, H, D] and values."""
    return backend.native(q, v) and q.shape[-1] == v.shape[-1] <= MAX_HEAD_DIM


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> Tensor:
    """Computes softmax(scaling q k') v over the trees: [T, H, D]; 0 for tokens of no tree, which stand at the end.

    Args:
        q: [T, H, D]. k, v: [T, kv heads, D].
    """
    out: Tensor = _Attention.apply(q, k, v, segments, scaling)
    return out


def _forest(q: Tensor, k: Tensor, segments: Segments, scaling: float) -> abi.Forest:
    (_, heads, width), kv_heads = q.shape, k.shape[1]
    addresses = segments.trees.data_ptr(), segments.segments.data_ptr()
    return abi.Forest(*addresses, len(segments.trees) - 1, heads, kv_heads, width, scaling)


def _empty_like(x: Tensor, tokens: int) -> Tensor:
    """A contiguous array for results of the first `tokens`; 0 for the others."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[tokens:] = 0
    return out


def _tokens(segments: Segments) -> int:
    return int(segments.segments[-1].sum()) if len(segments.segments) else 0


def _pairs(segments: Segments) -> int:
    """Number of pairs of a query and a key that it attends to."""
    length = segments.segments[:, 1]
    prompt = segments.trees[:-1].repeat_interleave(segments.trees.diff())
    branch = prompt != torch.arange(len(length))
    return int((length * (length + 1) // 2).sum() + (length * length[prompt])[branch].sum())


def forward(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> tuple[Tensor, Tensor]:
    """Computes the attention of contiguous q, k, v, and the log-sum-exp of each query's scores [T, H]."""
    out, lse = _empty_like(q, _tokens(segments)), q.new_empty(q.shape[:2])
    if KernelFlop.on:
        KernelFlop.add(4 * _pairs(segments) * q.shape[1] * q.shape[2])
    forest = _forest(q, k, segments, scaling)
    call("tree_attention_forward", out, lse, q, k, v, ctypes.addressof(forest))
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Segments, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of q, k, v from that of `forward`'s first result. All contiguous."""
    dq, dk, dv = (_empty_like(x, _tokens(segments)) for x in (q, k, v))
    if KernelFlop.on:  # five products for the forward pass's two: the weights are recomputed
        KernelFlop.add(10 * _pairs(segments) * q.shape[1] * q.shape[2])
    gradients = abi.Gradients(*(x.data_ptr() for x in (dq, dk, dv, dout, out, lse, q, k, v)))
    forest = _forest(q, k, segments, scaling)
    call("tree_attention_backward", ctypes.addressof(gradients), ctypes.addressof(forest))
    return dq, dk, dv


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse = forward(q, k, v, segments, scaling)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.constants = segments, scaling
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(dout.contiguous(), *ctx.saved_tensors, *ctx.constants), None, None
