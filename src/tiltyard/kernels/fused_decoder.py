"""Decoding steps with fewer operations, for decoders of the Llama family.

One token of 32 rows is a hundred small products. In transformers' modules they spend more time in Python and in passes
over small tensors than in multiplying. `FusedDecoder` packs the same weights for this use (query, key and value
together), so that a layer is some twenty calls; `NativeDecoder` computes the whole step in C. The result is the model's
own hidden state up to rounding; the sampler compares both before it uses one (`sampling.engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.kernels.family import window_of
from tiltyard.kernels.matmul import PackedLinear, operand
from tiltyard.kernels.native_decoder import NativeDecoder, concatenated

if TYPE_CHECKING:
    from tiltyard.kernels.base import Backend


@dataclass(frozen=True)
class _Layer:
    """One block: its norms and its packed weights."""

    norm_in: nn.Module
    qkv: PackedLinear
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    o: PackedLinear
    norm_mid: nn.Module
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear
    scaling: float
    window: int | None


def _rms_norm(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm in fewer calls than torch's own on CPUs."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    return (x * scale).mul_(norm.weight)


class FusedDecoder:
    """Decoding steps in torch on a snapshot of a decoder's weights: to be made anew when they change.

    Args:
        backbone, head: a decoder of a supported family (`family.is_supported`) and its output head.
        max_length: tokens of the longest row, prompt and response together.
        backend: the model's.
    """

    def __init__(self, backbone: Any, head: nn.Linear, max_length: int, backend: Backend):
        config = backbone.config
        self.head, self.backend = PackedLinear(head.weight, head.bias, backend), backend
        self.embedding, self.last_norm = backbone.embed_tokens.weight, backbone.norm
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers = [self._layer(block, backend) for block in backbone.layers]
        self.cos, self.sin = rope_tables(backbone, max_length)

    def _layer(self, block: Any, backend: Backend) -> _Layer:
        attention, mlp = block.self_attn, block.mlp

        def packed(*linears: Any) -> PackedLinear:
            return PackedLinear(*concatenated(linears), backend)

        return _Layer(
            norm_in=block.input_layernorm,
            qkv=packed(attention.q_proj, attention.k_proj, attention.v_proj),
            q_norm=getattr(attention, "q_norm", None),
            k_norm=getattr(attention, "k_norm", None),
            o=packed(attention.o_proj),
            norm_mid=block.post_attention_layernorm,
            gate=packed(mlp.gate_proj),
            up=packed(mlp.up_proj),
            down=packed(mlp.down_proj),
            scaling=attention.scaling,
            window=window_of(attention),
        )

    def step(self, ids_S: Tensor, cache: Any) -> Tensor:
        """Computes the last hidden states [rows, d] after one more token of each row; does not advance the cache."""
        x = functional.embedding(ids_S, self.embedding)
        cos, sin = self.cos[cache.length_S][:, None], self.sin[cache.length_S][:, None]
        for index, layer in enumerate(self.layers):
            x = self._block(x, index, layer, cos, sin, cache)
        return _rms_norm(x, self.last_norm)

    def _block(self, x: Tensor, index: int, layer: _Layer, cos: Tensor, sin: Tensor, cache: Any) -> Tensor:
        rows, width = len(x), cos.shape[-1]
        qkv = layer.qkv(_rms_norm(x, layer.norm_in)).view(rows, -1, width)
        qk, value = qkv[:, : self.heads + self.kv_heads], qkv[:, self.heads + self.kv_heads :]
        if layer.q_norm is not None:
            q, k = qk[:, : self.heads], qk[:, self.heads :]
            qk = torch.cat([_rms_norm(q, layer.q_norm), _rms_norm(k, layer.k_norm)], 1)
        rotated = torch.addcmul(qk * cos, qk.roll(width // 2, -1), sin)
        q, k = rotated[:, : self.heads], rotated[:, self.heads :]
        attended = cache.attend(index, q, k, value, layer.scaling, layer.window).view(rows, -1)
        x = layer.o.add(attended, x)
        normed = operand(_rms_norm(x, layer.norm_mid), self.backend)
        return layer.down.add(layer.up.mul(normed, layer.gate(normed, "swish")), x)


def rope_tables(backbone: Any, max_length: int) -> tuple[Tensor, Tensor]:
    """Returns cos, sin [max_length, D]: x rotated = x cos + (second half, first half of x) sin.

    The first half of sin is negated.
    """
    weight = backbone.embed_tokens.weight
    cos, sin = backbone.rotary_emb(weight, torch.arange(max_length, device=weight.device)[None])
    half = cos.shape[-1] // 2
    return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)


def make_decoder(backbone: Any, head: nn.Linear, max_length: int, backend: Backend) -> FusedDecoder | NativeDecoder:
    """Returns the decoder that the backend allows for a supported backbone: decode.c on CPUs, else torch."""
    if backend.decoder == "native":
        return NativeDecoder(backbone, head, *rope_tables(backbone, max_length), backend)
    return FusedDecoder(backbone, head, max_length, backend)
