"""Blocks of the Llama family over a forest, each one autograd function, in float32 on CPUs.

    x [T, d]  -> norm -> q, k, v [T, H, D] -> RoPE -> attention over trees -> o -> + x = mid [T, d]
    mid       -> norm -> gate, up [T, i]   -> silu(gate) up                -> down -> + mid = out [T, d]

transformers' modules compute the same in some forty operations a block, each with an array of its own, and autograd
stores about 21 d numbers a token. Here a block stores x, q, k, v, the attention's result, mid, gate and up (about 11 d)
and recomputes its norms and its gate in the backward pass: they cost one pass. `Backbone.hidden_T` calls `hidden_T` if
`is_supported`; everything else (other families, adapters, windows, bfloat16, GPUs) goes through transformers' modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tiltyard.kernels import family, fused_ops, tree_attention
from tiltyard.kernels.family import linears_of, window_of
from tiltyard.kernels.matmul import linear, linear_add, weight_grad

if TYPE_CHECKING:
    from tiltyard.kernels.base import Backend
    from tiltyard.kernels.layer_cache import LayerCache

NORMS = ("norm_in", "norm_mid", "q_norm", "k_norm")
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NAMES = (*NORMS, *LINEARS, *(f"{name}_bias" for name in LINEARS))
Weights = dict[str, Tensor | None]


class Constants(NamedTuple):
    """Inputs of a block besides activations and weights."""

    cos_TD: Tensor
    sin_TD: Tensor
    segments: tree_attention.Segments
    scaling: float
    eps: float
    backend: Backend


class Saved(NamedTuple):
    """Activations stored for the backward pass. `q_raw`, `k_raw`: before the norms of queries and keys (Qwen 3)."""

    q: Tensor
    k: Tensor
    v: Tensor
    attended: Tensor
    lse: Tensor
    mid: Tensor
    gate: Tensor
    up: Tensor
    q_raw: Tensor | None
    k_raw: Tensor | None


def is_supported(backbone: Any, device: torch.device, backend: Backend) -> bool:
    """Returns True if these blocks compute this backbone on this device."""
    if device.type != "cpu" or backend.ops != "cpu_c" or not family.is_supported(backbone):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return all(_is_supported(block) for block in backbone.layers)


def _is_supported(block: Any) -> bool:
    """Returns True if a block has no window, no active dropout and no gradient checkpointing."""
    attention = block.self_attn
    recomputes = block.training and getattr(block, "gradient_checkpointing", False)
    drops = attention.training and attention.attention_dropout
    return not (recomputes or drops or window_of(attention)) and attention.head_dim <= tree_attention.MAX_HEAD_DIM


def hidden_T(
    backbone: Any,
    ids_T: Tensor,
    position_T: Tensor,
    segments: tree_attention.Segments,
    backend: Backend,
    cache: LayerCache | None = None,
) -> Tensor:
    """Computes the last hidden states [T, d]. `cache` stores keys and values for decoding."""
    x = backbone.embed_tokens(ids_T)
    cos, sin = (part[0].contiguous() for part in backbone.rotary_emb(x[None], position_T[None]))
    for index, block in enumerate(backbone.layers):
        weights, constants = weights_of(block), constants_of(block, cos, sin, segments, backend)
        if torch.is_grad_enabled() and cache is None:
            x = apply_block(x, constants, weights)
            continue
        x, saved = forward(x, weights, constants)
        if cache is not None:
            cache.prefill(index, saved.k.transpose(0, 1), saved.v.transpose(0, 1))
    return apply_norm(x, backbone.norm.weight, backbone.norm.variance_epsilon)


def constants_of(
    block: Any, cos: Tensor, sin: Tensor, segments: tree_attention.Segments, backend: Backend
) -> Constants:
    """Returns a block's constants for a batch with these angles and segments."""
    eps = block.input_layernorm.variance_epsilon
    return Constants(cos, sin, segments, block.self_attn.scaling, eps, backend)


def weights_of(block: Any) -> Weights:
    """Returns a block's weights under NAMES; None for those that it lacks."""
    linears, attention = linears_of(block), block.self_attn
    norms = [block.input_layernorm, block.post_attention_layernorm]
    norms += [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    weights = [*(getattr(layer, "weight", None) for layer in (*norms, *linears)), *(layer.bias for layer in linears)]
    return dict(zip(NAMES, weights, strict=True))


def apply_block(x: Tensor, constants: Constants, weights: Weights) -> Tensor:
    """Returns a block's result [T, d], differentiable in its input and its weights."""
    out: Tensor = _Block.apply(x, constants, *weights.values())
    return out


def apply_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns the RMSNorm of x, differentiable in both."""
    out: Tensor = _Norm.apply(x, weight, eps)
    return out


def forward(x: Tensor, w: Weights, constants: Constants) -> tuple[Tensor, Saved]:
    """Computes a block's result [T, d] and the activations that its backward pass needs."""
    cos, sin, segments, scaling, eps, backend = constants
    heads = (len(x), -1, cos.shape[1])
    normed = fused_ops.rms_norm(x, _get(w, "norm_in"), eps)
    q, k, v = (linear(normed, _get(w, n), w[f"{n}_bias"], backend=backend).view(heads) for n in "qkv")
    q_raw, k_raw = (None, None) if w["q_norm"] is None else (q, k)
    if w["q_norm"] is not None:
        q, k = fused_ops.rms_norm(q, w["q_norm"], eps), fused_ops.rms_norm(k, _get(w, "k_norm"), eps)
    q, k = (fused_ops.apply_rope_(part, cos, sin) for part in (q, k))
    attended, lse = tree_attention.forward(q, k, v, segments, scaling)
    mid = linear_add(x, attended.flatten(1), _get(w, "o"), w["o_bias"], backend=backend)
    normed = fused_ops.rms_norm(mid, _get(w, "norm_mid"), eps)
    gate, up = (linear(normed, _get(w, n), w[f"{n}_bias"], backend=backend) for n in ("gate", "up"))
    out = linear_add(mid, fused_ops.swiglu(gate, up), _get(w, "down"), w["down_bias"], backend=backend)
    return out, Saved(q, k, v, attended, lse, mid, gate, up, q_raw, k_raw)


def _get(weights: Weights, name: str) -> Tensor:
    weight = weights[name]
    assert weight is not None
    return weight


class _Backward:
    """A block's backward pass: `grads` of its weights by name, of those that need one."""

    def __init__(self, weights: Weights, constants: Constants, needed: set[str]):
        self.w, self.constants, self.needed = weights, constants, needed
        self.grads: dict[str, Tensor] = {}

    def linear_weights(self, name: str, dout: Tensor, x: Tensor) -> None:
        """Stores the gradients of one linear layer's weight and bias, from its input and its result's gradient."""
        if name in self.needed:
            self.grads[name] = weight_grad(dout, x, backend=self.constants.backend)
        if f"{name}_bias" in self.needed:
            self.grads[f"{name}_bias"] = dout.sum(0)

    def linear_input(self, **douts: Tensor) -> Tensor:
        """Returns the gradient of an input that several linear layers share, from those of their results."""
        total: Tensor | None = None
        backend = self.constants.backend
        for name, dout in douts.items():
            weight = _get(self.w, name).t()
            if total is None:
                total = linear(dout, weight, backend=backend)
            else:
                total = linear_add(total, dout, weight, backend=backend)
        assert total is not None
        return total

    def norm_(self, name: str, dx: Tensor, dout: Tensor, x: Tensor) -> Tensor:
        """Adds the gradient of a norm's input to `dx`; stores that of its weight."""
        self.grads[name] = fused_ops.rms_norm_backward_(dx, dout, x, _get(self.w, name), self.constants.eps)
        return dx

    def mlp(self, dout: Tensor, saved: Saved) -> Tensor:
        """Returns the gradient of `mid` from that of the block's result."""
        activated, dgate, dup = fused_ops.swiglu_backward_(self.linear_input(down=dout), saved.gate, saved.up)
        self.linear_weights("down", dout, activated)
        normed = fused_ops.rms_norm(saved.mid, _get(self.w, "norm_mid"), self.constants.eps)
        self.linear_weights("gate", dgate, normed)
        self.linear_weights("up", dup, normed)
        return self.norm_("norm_mid", dout.clone(), self.linear_input(gate=dgate, up=dup), saved.mid)

    def attention(self, dmid: Tensor, x: Tensor, saved: Saved) -> Tensor:
        """Returns the gradient of the block's input from that of `mid`, which it overwrites."""
        cos, sin, segments, scaling, eps, _ = self.constants
        self.linear_weights("o", dmid, saved.attended.flatten(1))
        dattended = self.linear_input(o=dmid).view(saved.attended.shape)
        dq, dk, dv = tree_attention.backward(dattended, *saved[:5], segments, scaling)
        dq, dk = (fused_ops.apply_rope_(part, cos, sin, inverse=True) for part in (dq, dk))
        if saved.q_raw is not None and saved.k_raw is not None:
            dq = self.norm_("q_norm", torch.zeros_like(dq), dq, saved.q_raw)
            dk = self.norm_("k_norm", torch.zeros_like(dk), dk, saved.k_raw)
        flat = {name: part.flatten(1) for name, part in zip("qkv", (dq, dk, dv), strict=True)}
        normed = fused_ops.rms_norm(x, _get(self.w, "norm_in"), eps)
        for name, part in flat.items():
            self.linear_weights(name, part, normed)
        return self.norm_("norm_in", dmid, self.linear_input(**flat), x)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, constants: Constants, *weights: Tensor | None) -> Tensor:
        out, saved = forward(x, dict(zip(NAMES, weights, strict=True)), constants)
        ctx.save_for_backward(x, *saved, *weights)
        ctx.constants = constants
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        saved, weights = Saved(*tensors[: len(Saved._fields)]), tensors[len(Saved._fields) :]
        needed = {name for name, needs in zip(NAMES, ctx.needs_input_grad[2:], strict=True) if needs}
        backward = _Backward(dict(zip(NAMES, weights, strict=True)), ctx.constants, needed)
        dx = backward.attention(backward.mlp(grads[0].contiguous(), saved), x, saved)
        return dx, None, *(backward.grads.get(name) if name in needed else None for name in NAMES)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return fused_ops.rms_norm(x, weight, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dweight = fused_ops.rms_norm_backward_(dx, grads[0].contiguous(), x, weight, ctx.eps)
        return dx, dweight, None
