"""Blocks of the Llama family over a forest, each one autograd function, on CPUs.

    x [T, d]  -> norm -> q, k, v [T, H, D] -> RoPE -> attention over trees -> o -> + x = mid [T, d]
    mid       -> norm -> gate, up [T, i]   -> silu(gate) up                -> down -> + mid = out [T, d]

transformers' modules compute the same in some forty operations a block, each with an array of its own, and autograd
stores about 21 d numbers a token. Here a block stores x, q, k, v, the attention's result, mid, gate and up (about 11 d)
and recomputes its norms and its gate in the backward pass: they cost one pass. LoRA adapters are part of their linear
layer. Activations are float32; the products' factors are bfloat16 where the backend says so. `Backbone.hidden_T` calls
`hidden_T` if `is_supported`; everything else (other families, windows, GPUs) goes through transformers' modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tiltyard.kernels import family, fused_ops, tree_attention
from tiltyard.kernels.family import adapters_of, base_of, linears_of, window_of
from tiltyard.kernels.matmul import add_low_rank_, linear, linear_add, operand, weight_grad

if TYPE_CHECKING:
    from tiltyard.kernels.base import Backend
    from tiltyard.kernels.layer_cache import LayerCache

NORMS = ("norm_in", "norm_mid", "q_norm", "k_norm")
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NAMES = (*NORMS, *LINEARS, *(f"{name}_bias" for name in LINEARS))  # and of each adapter `LINEAR.ADAPTER.down`, `.up`
Weights = dict[str, Tensor | None]


class Constants(NamedTuple):
    """Inputs of a block besides activations and weights."""

    cos_TD: Tensor
    sin_TD: Tensor
    segments: tree_attention.Segments
    scaling: float
    eps: float
    backend: Backend
    scalings: dict[str, dict[str, float]]  # of the adapters: linear layer -> `LINEAR.ADAPTER` -> its factor


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
    if device.type != "cpu" or backend.ops != "cpu_c" or not family.is_supported(backbone, adapted=True):
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
    scalings = {
        name: {f"{name}.{adapter}": one.scaling for adapter, one in adapters_of(layer).items()}
        for name, layer in zip(LINEARS, linears_of(block), strict=True)
    }
    return Constants(cos, sin, segments, block.self_attn.scaling, eps, backend, scalings)


def weights_of(block: Any) -> Weights:
    """Returns a block's weights under NAMES, None for those that it lacks, and those of its active adapters."""
    layers, attention = linears_of(block), block.self_attn
    linears = [base_of(layer) for layer in layers]
    norms = [block.input_layernorm, block.post_attention_layernorm]
    norms += [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    weights = [*(getattr(layer, "weight", None) for layer in (*norms, *linears)), *(layer.bias for layer in linears)]
    result = dict(zip(NAMES, weights, strict=True))
    for name, layer in zip(LINEARS, layers, strict=True):
        for adapter, one in adapters_of(layer).items():
            result |= {f"{name}.{adapter}.down": one.down_RI, f"{name}.{adapter}.up": one.up_OR}
    return result


def apply_block(x: Tensor, constants: Constants, weights: Weights) -> Tensor:
    """Returns a block's result [T, d], differentiable in its input and its weights."""
    out: Tensor = _Block.apply(x, constants, tuple(weights), *weights.values())
    return out


def apply_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns the RMSNorm of x, differentiable in both."""
    out: Tensor = _Norm.apply(x, weight, eps)
    return out


def forward(x: Tensor, w: Weights, constants: Constants) -> tuple[Tensor, Saved]:
    """Computes a block's result [T, d] and the activations that its backward pass needs."""
    cos, sin, segments, scaling, eps, backend, _ = constants
    heads = (len(x), -1, cos.shape[1])
    normed = operand(fused_ops.rms_norm(x, _get(w, "norm_in"), eps), backend)
    q, k, v = (_linear(w, constants, n, normed).view(heads) for n in "qkv")
    q_raw, k_raw = (None, None) if w["q_norm"] is None else (q, k)
    if w["q_norm"] is not None:
        q, k = fused_ops.rms_norm(q, w["q_norm"], eps), fused_ops.rms_norm(k, _get(w, "k_norm"), eps)
    q, k = (fused_ops.apply_rope_(part, cos, sin) for part in (q, k))
    attended, lse = tree_attention.forward(q, k, v, segments, scaling)
    mid = _linear(w, constants, "o", operand(attended.flatten(1), backend), x)
    normed = operand(fused_ops.rms_norm(mid, _get(w, "norm_mid"), eps), backend)
    gate, up = (_linear(w, constants, n, normed) for n in ("gate", "up"))
    out = _linear(w, constants, "down", operand(fused_ops.swiglu(gate, up), backend), mid)
    return out, Saved(q, k, v, attended, lse, mid, gate, up, q_raw, k_raw)


def _linear(w: Weights, constants: Constants, name: str, x: Tensor, other: Tensor | None = None) -> Tensor:
    """Computes a linear layer with its adapters, plus `other` if given."""
    weight, bias, backend = _get(w, name), w[f"{name}_bias"], constants.backend
    if other is None:
        out = linear(x, weight, bias, backend=backend)
    else:
        out = linear_add(other, x, weight, bias, backend=backend)
    for key, scaling in constants.scalings[name].items():
        add_low_rank_(out, x, _get(w, f"{key}.down"), _get(w, f"{key}.up"), scaling)
    return out


def _get(weights: Weights, name: str) -> Tensor:
    weight = weights[name]
    assert weight is not None
    return weight


class _Backward:
    """A block's backward pass: `grads` of its weights by name, of those that need one."""

    def __init__(self, weights: Weights, constants: Constants, needed: set[str]):
        self.w, self.constants, self.needed = weights, constants, needed
        self.grads: dict[str, Tensor] = {}
        self.dlow: dict[str, Tensor] = {}  # by adapter, for its own matrices and for the layer's input

    def linear_weights(self, name: str, dout: Tensor, x: Tensor) -> None:
        """Stores the gradients of one linear layer's weight and bias, from its input and its result's gradient."""
        if name in self.needed:
            self.grads[name] = weight_grad(dout, x, backend=self.constants.backend)
        if f"{name}_bias" in self.needed:
            self.grads[f"{name}_bias"] = dout.sum(0)
        for key, scaling in self.constants.scalings[name].items():
            down, up = _get(self.w, f"{key}.down"), _get(self.w, f"{key}.up")
            if f"{key}.up" in self.needed:
                low = functional.linear(x, down.to(x.dtype))
                self.grads[f"{key}.up"] = torch.mm(dout.t().to(low.dtype), low).float().mul_(scaling)
            if f"{key}.down" in self.needed:
                self.grads[f"{key}.down"] = torch.mm(self._dlow(key, dout, up).t(), x).float().mul_(scaling)

    def _dlow(self, key: str, dout: Tensor, up: Tensor) -> Tensor:
        """Returns the gradient [T, R] of what an adapter's first matrix gives, before its scaling."""
        if key not in self.dlow:
            self.dlow[key] = torch.mm(dout, up.to(dout.dtype))
        return self.dlow[key]

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
            for key, scaling in self.constants.scalings[name].items():
                dlow = self._dlow(key, dout, _get(self.w, f"{key}.up"))
                down = _get(self.w, f"{key}.down")
                if dlow.dtype == total.dtype:
                    total.addmm_(dlow, down, alpha=scaling)
                else:
                    total.add_(torch.mm(dlow, down.to(dlow.dtype)), alpha=scaling)
        assert total is not None
        return total

    def norm_(self, name: str, dx: Tensor, dout: Tensor, x: Tensor) -> Tensor:
        """Adds the gradient of a norm's input to `dx`; stores that of its weight."""
        self.grads[name] = fused_ops.rms_norm_backward_(dx, dout, x, _get(self.w, name), self.constants.eps)
        return dx

    def mlp(self, dout: Tensor, saved: Saved) -> Tensor:
        """Returns the gradient of `mid` from that of the block's result."""
        backend, factor = self.constants.backend, operand(dout, self.constants.backend)
        parts = fused_ops.swiglu_backward_(self.linear_input(down=factor), saved.gate, saved.up)
        activated, dgate, dup = (operand(part, backend) for part in parts)
        self.linear_weights("down", factor, activated)
        normed = operand(fused_ops.rms_norm(saved.mid, _get(self.w, "norm_mid"), self.constants.eps), backend)
        self.linear_weights("gate", dgate, normed)
        self.linear_weights("up", dup, normed)
        return self.norm_("norm_mid", dout.clone(), self.linear_input(gate=dgate, up=dup), saved.mid)

    def attention(self, dmid: Tensor, x: Tensor, saved: Saved) -> Tensor:
        """Returns the gradient of the block's input from that of `mid`, which it overwrites."""
        cos, sin, segments, scaling, eps, backend, _ = self.constants
        factor = operand(dmid, backend)
        self.linear_weights("o", factor, operand(saved.attended.flatten(1), backend))
        dattended = self.linear_input(o=factor).view(saved.attended.shape)
        dq, dk, dv = tree_attention.backward(dattended, *saved[:5], segments, scaling)
        dq, dk = (fused_ops.apply_rope_(part, cos, sin, inverse=True) for part in (dq, dk))
        if saved.q_raw is not None and saved.k_raw is not None:
            dq = self.norm_("q_norm", torch.zeros_like(dq), dq, saved.q_raw)
            dk = self.norm_("k_norm", torch.zeros_like(dk), dk, saved.k_raw)
        flat = {name: operand(part.flatten(1), backend) for name, part in zip("qkv", (dq, dk, dv), strict=True)}
        normed = operand(fused_ops.rms_norm(x, _get(self.w, "norm_in"), eps), backend)
        for name, part in flat.items():
            self.linear_weights(name, part, normed)
        return self.norm_("norm_in", dmid, self.linear_input(**flat), x)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, constants: Constants, names: tuple[str, ...], *weights: Tensor | None) -> Tensor:
        out, saved = forward(x, dict(zip(names, weights, strict=True)), constants)
        ctx.save_for_backward(x, *saved, *weights)
        ctx.constants, ctx.names = constants, names
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        saved, weights = Saved(*tensors[: len(Saved._fields)]), tensors[len(Saved._fields) :]
        needed = {name for name, needs in zip(ctx.names, ctx.needs_input_grad[3:], strict=True) if needs}
        backward = _Backward(dict(zip(ctx.names, weights, strict=True)), ctx.constants, needed)
        dx = backward.attention(backward.mlp(grads[0].contiguous(), saved), x, saved)
        return dx, None, None, *(backward.grads.get(name) if name in needed else None for name in ctx.names)


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
