"""Decoding steps of the Llama family in C (decode.c): one call a step instead of hundreds.

The same snapshot as `FusedDecoder` makes, with the weights in the panels that decode.c multiplies by.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.kernels import abi
from tiltyard.kernels.family import window_of
from tiltyard.kernels.library import KernelFlop, call
from tiltyard.kernels.matmul import PackedLinear

if TYPE_CHECKING:
    from tiltyard.kernels.base import Backend

PANEL = 32  # as in decode.c


def panels(weights: Sequence[Tensor]) -> Tensor:
    """Returns [out, in] as [out / 32, in, 32], zero-padded; several weights share each panel evenly."""
    share = PANEL // len(weights)
    parts = [functional.pad(w, (0, 0, 0, -len(w) % share)).unflatten(0, (-1, share)) for w in weights]
    return torch.cat(parts, 1).transpose(1, 2).contiguous()


def concatenated(linears: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of linear layers with the same input, one after the other."""
    weight = torch.cat([layer.weight for layer in linears]) if len(linears) > 1 else linears[0].weight
    if all(layer.bias is None for layer in linears):
        return weight, None
    return weight, torch.cat(
        [weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in linears]
    )


class NativeDecoder:
    """Decoding steps in C on a snapshot of a decoder's weights: to be made anew when they change.

    Args:
        backbone, head: a decoder of a supported family (`family.is_supported`) and its output head.
        cos, sin: [positions, D], sin's first half negated. backend: the model's.
    """

    def __init__(self, backbone: Any, head: nn.Linear, cos: Tensor, sin: Tensor, backend: Backend):
        config = backbone.config
        self.head, self.embedding = PackedLinear(head.weight, head.bias, backend), backbone.embed_tokens.weight
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._alive: list[Tensor] = []  # the tensors that the structures point to
        self.layers = (abi.Layer * len(backbone.layers))()
        for layer, block in zip(self.layers, backbone.layers, strict=True):
            self._fill(layer, block)
        inner = max(block.mlp.down_proj.in_features for block in backbone.layers)
        self.scratch_floats = (
            len(self.embedding[0]) + (2 * self.heads + 2 * self.kv_heads) * cos.shape[1] + inner
        )  # a row
        self.scratch = self.embedding.new_empty(0)
        self.model = abi.Model(
            ctypes.cast(self.layers, abi.POINTER),
            self._keep(backbone.norm.weight),
            self._keep(cos),
            self._keep(sin),
            *(len(self.layers), len(self.embedding[0]), self.heads, self.kv_heads, cos.shape[1]),
            backbone.norm.variance_epsilon,
        )

    def _keep(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._alive.append(tensor.detach().contiguous())
        return self._alive[-1].data_ptr()

    def _linear(self, *linears: Any, swiglu: bool = False) -> abi.Linear:
        if swiglu:
            gate, up = (concatenated([layer]) for layer in linears)
            weights: list[Tensor] = [gate[0], up[0]]
            zeros = [w.new_zeros(len(w)) for w in weights]
            biases = [zeros[0] if gate[1] is None else gate[1], zeros[1] if up[1] is None else up[1]]
            has_bias = gate[1] is not None or up[1] is not None
        else:
            weight, bias = concatenated(linears)
            weights, biases, has_bias = [weight], [] if bias is None else [bias], bias is not None
        packed_bias = self._keep(panels([b[:, None] for b in biases])) if has_bias else None
        return abi.Linear(self._keep(panels(weights)), packed_bias, weights[0].shape[1], sum(len(w) for w in weights))

    def _fill(self, layer: abi.Layer, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        layer.norm_in = self._keep(block.input_layernorm.weight)
        layer.norm_mid = self._keep(block.post_attention_layernorm.weight)
        for name in ("q_norm", "k_norm"):
            setattr(layer, name, self._keep(getattr(getattr(attention, name, None), "weight", None)))
        layer.qkv = self._linear(attention.q_proj, attention.k_proj, attention.v_proj)
        layer.o = self._linear(attention.o_proj)
        layer.gate_up = self._linear(mlp.gate_proj, mlp.up_proj, swiglu=True)
        layer.down = self._linear(mlp.down_proj)
        layer.scaling = attention.scaling
        layer.window = window_of(attention) or 0

    @staticmethod
    def _flop(layer: abi.Layer) -> int:
        linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
        return sum(2 * getattr(linear, "in") * linear.out for linear in linears)

    def step(self, ids_S: Tensor, cache: Any) -> Tensor:
        """Computes the last hidden states [rows, d] after one more token of each row; does not advance the cache."""
        x = functional.embedding(ids_S, self.embedding)
        rows = len(x)
        if len(self.scratch) < rows * self.scratch_floats:
            self.scratch = x.new_empty(rows * self.scratch_floats)
        for index, layer in enumerate(self.layers):
            layer.keys, layer.values = cache.keys[index].data_ptr(), cache.values[index].data_ptr()
        if KernelFlop.on:
            attention = 4 * self.heads * self.model.width * int(cache.length_S.sum())
            KernelFlop.add(rows * sum(self._flop(layer) for layer in self.layers) + attention * len(self.layers))
        out = torch.empty_like(x)
        position = (rows, cache.capacity, cache.now % cache.capacity)
        call("decode_step", out, x, self.scratch, ctypes.addressof(self.model), cache.length_S, *position)
        return out
