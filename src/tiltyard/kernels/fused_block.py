"""Blocks of the Llama family over a forest, each one step forward and one back, in float32 on CPUs.

    x [T, d]  -> norm -> q, k, v [T, H, D] -> turn -> attention over trees -> o -> + x = mid [T, d]
    mid       -> norm -> gate, up [T, i]   -> silu(gate) up                -> down -> + mid = out [T, d]

transformers' own modules say the same in some forty operations a block, each with an array of its own, and autograd
keeps about 21 d numbers a token. Here a block keeps x, q, k, v, the attention's result, mid, gate and up (about 11 d)
and makes its norms and its gate again on the way back: they cost one pass. `Backbone.hidden_T` comes here if `suits`;
everything else (other families, adapters, windows, bfloat16, GPUs) takes transformers' modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tiltyard.kernels import fused_ops, tree_attention
from tiltyard.kernels.family import fits, linears_of, window_of
from tiltyard.kernels.library import kernels
from tiltyard.kernels.matmul import multiply, multiply_onto, weight_slope

if TYPE_CHECKING:
    from tiltyard.batch.forest import Forest
    from tiltyard.models.attention import LayerCache

NORMS = ("norm_in", "norm_mid", "q_norm", "k_norm")
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NAMES = (*NORMS, *LINEARS, *(f"{name}_bias" for name in LINEARS))
Weights = dict[str, Tensor | None]


class Shape(NamedTuple):
    """What a block needs besides its input and its weights."""

    cos_TD: Tensor
    sin_TD: Tensor
    pieces: tree_attention.Pieces
    scaling: float
    eps: float


class Kept(NamedTuple):
    """What the way back needs besides the block's input. `raw`: before the norms of queries and keys, if any."""

    q: Tensor
    k: Tensor
    v: Tensor
    mixed: Tensor
    lse: Tensor
    mid: Tensor
    gate: Tensor
    up: Tensor
    q_raw: Tensor | None
    k_raw: Tensor | None


def suits(backbone: Any, forest: Forest) -> bool:
    """Whether a decoder and its batch can go this way."""
    if forest.device.type != "cpu" or not forest.B or kernels().library is None or not fits(backbone):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return all(_plain(block) for block in backbone.layers)


def _plain(block: Any) -> bool:
    attention = block.self_attn
    recomputes = block.training and getattr(block, "gradient_checkpointing", False)
    drops = attention.training and attention.attention_dropout
    return not (recomputes or drops or window_of(attention)) and attention.head_dim <= tree_attention.WIDEST


def hidden_T(
    backbone: Any, ids_T: Tensor, position_T: Tensor, forest: Forest, cache: LayerCache | None = None
) -> Tensor:
    """Last hidden states [T, d] of a model that `suits`. `cache` collects keys and values for decoding."""
    x = backbone.embed_tokens(ids_T)
    cos, sin = (one[0].contiguous() for one in backbone.rotary_emb(x[None], position_T[None]))
    for place, block in enumerate(backbone.layers):
        weights = weights_of(block)
        eps = block.input_layernorm.variance_epsilon
        shape = Shape(cos, sin, forest.pieces, block.self_attn.scaling, eps)
        if torch.is_grad_enabled() and cache is None:
            x = _Block.apply(x, shape, *weights.values())
            continue
        x, kept = forward(x, weights, shape)
        if cache is not None:
            cache.prefill(place, kept.k.transpose(0, 1), kept.v.transpose(0, 1))
    last: Tensor = _Norm.apply(x, backbone.norm.weight, backbone.norm.variance_epsilon)
    return last


def weights_of(block: Any) -> Weights:
    """A block's weights under NAMES; None for those that it lacks."""
    linears, attention = linears_of(block), block.self_attn
    norms = [block.input_layernorm, block.post_attention_layernorm]
    norms += [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    found = [*(getattr(one, "weight", None) for one in (*norms, *linears)), *(one.bias for one in linears)]
    return dict(zip(NAMES, found, strict=True))


def forward(x: Tensor, w: Weights, shape: Shape) -> tuple[Tensor, Kept]:
    """A block's result [T, d], and what the way back needs."""
    heads = (len(x), -1, shape.cos_TD.shape[1])
    seen = fused_ops.norm(x, _of(w, "norm_in"), shape.eps)
    q, k, v = (multiply(seen, _of(w, name), w[f"{name}_bias"]).view(heads) for name in "qkv")
    q_raw, k_raw = (None, None) if w["q_norm"] is None else (q, k)
    if w["q_norm"] is not None:
        q, k = fused_ops.norm(q, w["q_norm"], shape.eps), fused_ops.norm(k, _of(w, "k_norm"), shape.eps)
    q, k = (fused_ops.turn_(one, shape.cos_TD, shape.sin_TD) for one in (q, k))
    mixed, lse = tree_attention.forward(q, k, v, shape.pieces, shape.scaling)
    mid = multiply_onto(x, mixed.flatten(1), _of(w, "o"), w["o_bias"])
    seen = fused_ops.norm(mid, _of(w, "norm_mid"), shape.eps)
    gate, up = (multiply(seen, _of(w, name), w[f"{name}_bias"]) for name in ("gate", "up"))
    out = multiply_onto(mid, fused_ops.gated(gate, up), _of(w, "down"), w["down_bias"])
    return out, Kept(q, k, v, mixed, lse, mid, gate, up, q_raw, k_raw)


def _of(weights: Weights, name: str) -> Tensor:
    found = weights[name]
    assert found is not None
    return found


class _Back:
    """A block's way back: slopes of its weights under their names, where they are wanted."""

    def __init__(self, weights: Weights, shape: Shape, wanted: set[str]):
        self.w, self.shape, self.wanted = weights, shape, wanted
        self.slopes: dict[str, Tensor] = {}

    def linear(self, name: str, dout: Tensor, x: Tensor) -> None:
        """The slopes of one linear layer, from that of its result and from its input."""
        if name in self.wanted:
            self.slopes[name] = weight_slope(dout, x)
        if f"{name}_bias" in self.wanted:
            self.slopes[f"{name}_bias"] = dout.sum(0)

    def through(self, **douts: Tensor) -> Tensor:
        """The slope of what several linear layers read, from those of their results."""
        total: Tensor | None = None
        for name, dout in douts.items():
            weight = _of(self.w, name).t()
            total = multiply(dout, weight) if total is None else multiply_onto(total, dout, weight)
        assert total is not None
        return total

    def norm_(self, name: str, dx: Tensor, dout: Tensor, x: Tensor) -> Tensor:
        """Adds the slope of a norm's input to `dx`."""
        self.slopes[name] = fused_ops.norm_slope_(dx, dout, x, _of(self.w, name), self.shape.eps)
        return dx

    def mlp(self, dout: Tensor, kept: Kept) -> Tensor:
        """From the slope of the block's result to that of `mid`."""
        opened, dgate, dup = fused_ops.gated_slope(self.through(down=dout), kept.gate, kept.up)
        self.linear("down", dout, opened)
        seen = fused_ops.norm(kept.mid, _of(self.w, "norm_mid"), self.shape.eps)
        self.linear("gate", dgate, seen)
        self.linear("up", dup, seen)
        return self.norm_("norm_mid", dout.clone(), self.through(gate=dgate, up=dup), kept.mid)

    def attention(self, dmid: Tensor, x: Tensor, kept: Kept) -> Tensor:
        """From the slope of `mid` to that of the block's input; overwrites the first."""
        self.linear("o", dmid, kept.mixed.flatten(1))
        dmixed = self.through(o=dmid).view(kept.mixed.shape)
        slopes = tree_attention.backward(dmixed, *kept[:5], self.shape.pieces, self.shape.scaling)
        dq, dk = (fused_ops.turn_(one, self.shape.cos_TD, self.shape.sin_TD, back=True) for one in slopes[:2])
        if kept.q_raw is not None and kept.k_raw is not None:
            dq = self.norm_("q_norm", torch.zeros_like(dq), dq, kept.q_raw)
            dk = self.norm_("k_norm", torch.zeros_like(dk), dk, kept.k_raw)
        flat = {name: one.flatten(1) for name, one in zip("qkv", (dq, dk, slopes[2]), strict=True)}
        seen = fused_ops.norm(x, _of(self.w, "norm_in"), self.shape.eps)
        for name, one in flat.items():
            self.linear(name, one, seen)
        return self.norm_("norm_in", dmid, self.through(**flat), x)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Shape, *weights: Tensor | None) -> Tensor:
        out, kept = forward(x, dict(zip(NAMES, weights, strict=True)), shape)
        ctx.save_for_backward(x, *kept, *weights)
        ctx.shape = shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        kept, weights = Kept(*rest[: len(Kept._fields)]), rest[len(Kept._fields) :]
        wanted = {name for name, asked in zip(NAMES, ctx.needs_input_grad[2:], strict=True) if asked}
        back = _Back(dict(zip(NAMES, weights, strict=True)), ctx.shape, wanted)
        dx = back.attention(back.mlp(grads[0].contiguous(), kept), x, kept)
        return dx, None, *(back.slopes.get(name) if name in wanted else None for name in NAMES)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return fused_ops.norm(x, weight, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dweight = fused_ops.norm_slope_(dx, grads[0].contiguous(), x, weight, ctx.eps)
        return dx, dweight, None
