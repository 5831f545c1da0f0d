"""Attention over a forest in C (tree_attention.c): no tiles, no padding, no mask, fewer activations kept."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tiltyard.kernels.library import Work, kernels

if TYPE_CHECKING:
    from tiltyard.batch.forest import Forest

POINTER, LONG, FLOAT, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
WIDEST = 256  # numbers of a head: more are not expected, and the copies grow with them


class Pieces(NamedTuple):
    """A forest as the C code reads it: `trees` [G + 1] into `pieces` [n, 2] = (first token, tokens), trunks first."""

    trees: Tensor
    pieces: Tensor


class _Trees(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("trees", "pieces")),
        *((name, LONG) for name in ("count", "heads", "kv_heads", "width")),
        ("scaling", FLOAT),
    )


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, POINTER) for name in ("dq", "dk", "dv", "dout", "out", "lse", "q", "k", "v"))


def pieces_of(forest: Forest) -> Pieces:
    """Each tree's prompt and branches; a tree that does not branch is one piece."""
    branches: list[list[tuple[int, int]]] = [[] for _ in range(forest.G)]
    for g, start, length in zip(*(x.tolist() for x in (forest.group_B, forest.start_B, forest.length_B)), strict=True):
        branches[g].append((start, length))
    trees, pieces = [0], []
    for own, start, length, prompt in zip(
        branches, forest.tree_start, forest.tree_length, forest.prompt_length, strict=True
    ):
        pieces += [(start, prompt), *own] if len(own) > 1 else [(start, length)]
        trees.append(len(pieces))
    return Pieces(torch.tensor(trees), torch.tensor(pieces, dtype=torch.long).reshape(-1, 2))


def suits(q: Tensor, v: Tensor) -> bool:
    """Whether queries [T, H, D] and values are such as the kernel takes."""
    plain = q.dtype == v.dtype == torch.float32 and q.device.type == "cpu" and q.shape[-1] == v.shape[-1] <= WIDEST
    return plain and kernels().library is not None


def attention(q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scaling: float) -> Tensor:
    """softmax(scaling q k') v over the trees: [T, H, D]; 0 for tokens of no tree, which stand at the end.

    Args:
        q: [T, H, D]. k, v: [T, kv heads, D].
    """
    out: Tensor = _Attention.apply(q, k, v, pieces, scaling)
    return out


def _described(q: Tensor, k: Tensor, pieces: Pieces, scaling: float) -> _Trees:
    (_, heads, width), kv_heads = q.shape, k.shape[1]
    where = pieces.trees.data_ptr(), pieces.pieces.data_ptr()
    return _Trees(*where, len(pieces.trees) - 1, heads, kv_heads, width, scaling)


def _like(x: Tensor, tokens: int) -> Tensor:
    """Room for a result that is written for the first `tokens`; 0 for the others."""
    made = torch.empty_like(x, memory_format=torch.contiguous_format)
    made[tokens:] = 0
    return made


def _tokens(pieces: Pieces) -> int:
    return int(pieces.pieces[-1].sum()) if len(pieces.pieces) else 0


def _products(pieces: Pieces) -> int:
    """Pairs of a query and a key that it sees."""
    length = pieces.pieces[:, 1]
    trunk = pieces.trees[:-1].repeat_interleave(pieces.trees.diff())
    branch = trunk != torch.arange(len(length))
    return int((length * (length + 1) // 2).sum() + (length * length[trunk])[branch].sum())


def forward(q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scaling: float) -> tuple[Tensor, Tensor]:
    """The attention of contiguous q, k, v, and the log of each query's sum of exponentials [T, H]."""
    out, lse = _like(q, _tokens(pieces)), q.new_empty(q.shape[:2])
    if Work.on:
        Work.add(4 * _products(pieces) * q.shape[1] * q.shape[2])
    described = _described(q, k, pieces, scaling)
    step = kernels().library.trees_forward  # type: ignore[union-attr] # `suits` has asked
    step.argtypes, step.restype = [POINTER] * 6 + [INT], None
    where = (one.data_ptr() for one in (out, lse, q, k, v))
    step(*where, ctypes.addressof(described), torch.get_num_threads())
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pieces: Pieces, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of q, k, v from the slope of `forward`'s first result. All contiguous."""
    dq, dk, dv = (_like(x, _tokens(pieces)) for x in (q, k, v))
    if Work.on:  # five products for the forward pass's two: the weights are computed again
        Work.add(10 * _products(pieces) * q.shape[1] * q.shape[2])
    gradients = _Gradients(*(one.data_ptr() for one in (dq, dk, dv, grad, out, lse, q, k, v)))
    described = _described(q, k, pieces, scaling)
    step = kernels().library.trees_backward  # type: ignore[union-attr]
    step.argtypes, step.restype = [POINTER, POINTER, INT], None
    step(ctypes.addressof(gradients), ctypes.addressof(described), torch.get_num_threads())
    return dq, dk, dv


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: Pieces, scaling: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse = forward(q, k, v, pieces, scaling)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = pieces, scaling
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(grad.contiguous(), *ctx.saved_tensors, *ctx.rest), None, None
