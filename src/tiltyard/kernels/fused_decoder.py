"""Decoding reduced to its arithmetic, for decoders of the Llama family on float32.

One token of 32 rows is a hundred small products. As transformers' modules they spend more time in Python and in passes
over small tensors than in multiplying. Here the same weights are laid out for that one use (query, key and value
together, all ready for the product), and a layer is some twenty calls. What comes out is the model's own
hidden state to rounding; `lean` compares the two before it lends itself to a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.kernels.family import window_of
from tiltyard.kernels.library import kernels
from tiltyard.kernels.matmul import Ready
from tiltyard.kernels.native_decoder import Compiled, joined


@dataclass(frozen=True)
class _Layer:
    """One block: its norms, and its weights ready for products."""

    norm_in: nn.Module
    qkv: Ready
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    o: Ready
    norm_mid: nn.Module
    gate: Ready
    up: Ready
    down: Ready
    scaling: float
    window: int | None


def _ready(*linears: Any) -> Ready:
    """The weights of linear layers that read the same, side by side."""
    return Ready(*joined(linears))


def _norm(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm in fewer calls than torch's own is on CPUs."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    return (x * scale).mul_(norm.weight)


class Lean:
    """A snapshot of a decoder's weights: make a new one when they have changed.

    Args:
        backbone, head: a model that `fits`, and its output head. longest: tokens of the longest row, prompt and answer.
    """

    def __init__(self, backbone: Any, head: nn.Linear, longest: int):
        config = backbone.config
        self.head = Ready(head.weight, head.bias)
        self.embedding, self.last_norm = backbone.embed_tokens.weight, backbone.norm
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers = [self._layer(block) for block in backbone.layers]
        self.cos, self.sin = _rotary(backbone, longest)

    def _layer(self, block: Any) -> _Layer:
        attention, mlp = block.self_attn, block.mlp
        return _Layer(
            norm_in=block.input_layernorm,
            qkv=_ready(attention.q_proj, attention.k_proj, attention.v_proj),
            q_norm=getattr(attention, "q_norm", None),
            k_norm=getattr(attention, "k_norm", None),
            o=_ready(attention.o_proj),
            norm_mid=block.post_attention_layernorm,
            gate=_ready(mlp.gate_proj),
            up=_ready(mlp.up_proj),
            down=_ready(mlp.down_proj),
            scaling=attention.scaling,
            window=window_of(attention),
        )

    def step(self, ids_S: Tensor, cache: Any) -> Tensor:
        """Last hidden states [rows, d] after one more token of each row; the cache is not moved on."""
        x = functional.embedding(ids_S, self.embedding)
        cos, sin = self.cos[cache.length_S][:, None], self.sin[cache.length_S][:, None]
        for place, layer in enumerate(self.layers):
            x = self._block(x, place, layer, cos, sin, cache)
        return _norm(x, self.last_norm)

    def _block(self, x: Tensor, place: int, layer: _Layer, cos: Tensor, sin: Tensor, cache: Any) -> Tensor:
        rows, width = len(x), cos.shape[-1]
        qkv = layer.qkv(_norm(x, layer.norm_in)).view(rows, -1, width)
        turning, value = qkv[:, : self.heads + self.kv_heads], qkv[:, self.heads + self.kv_heads :]
        if layer.q_norm is not None:
            q, k = turning[:, : self.heads], turning[:, self.heads :]
            turning = torch.cat([_norm(q, layer.q_norm), _norm(k, layer.k_norm)], 1)
        turned = torch.addcmul(turning * cos, turning.roll(width // 2, -1), sin)
        q, k = turned[:, : self.heads], turned[:, self.heads :]
        mixed = cache.attend(place, q, k, value, layer.scaling, layer.window).view(rows, -1)
        x = layer.o.plus(mixed, x)
        seen = _norm(x, layer.norm_mid)
        return layer.down.plus(layer.up.times(seen, layer.gate(seen, "swish")), x)


def _rotary(backbone: Any, longest: int) -> tuple[Tensor, Tensor]:
    """cos, sin [longest, D]: x rotated = x cos + (second half, first half of x) sin, sin's first half negative."""
    weight = backbone.embed_tokens.weight
    cos, sin = backbone.rotary_emb(weight, torch.arange(longest, device=weight.device)[None])
    half = cos.shape[-1] // 2
    return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)


def lean(backbone: Any, head: nn.Linear, longest: int) -> Lean | Compiled:
    """The fastest road of a decoder that `fits` here: decode.c on CPUs that have a compiler, else torch."""
    library = kernels().library if head.weight.device.type == "cpu" else None
    if library is None:
        return Lean(backbone, head, longest)
    return Compiled(library, backbone, head, *_rotary(backbone, longest))
