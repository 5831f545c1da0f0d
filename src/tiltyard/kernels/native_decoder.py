"""A decoder of the Llama family laid out for decode.c: one call a step instead of hundreds.

The same snapshot as `lean.Lean` makes, with the weights in the panels that the products of decode.c read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.kernels.family import window_of
from tiltyard.kernels.library import Work
from tiltyard.kernels.matmul import Ready

PANEL = 32  # as in decode.c
POINTER, LONG, FLOAT, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int


class _Product(ctypes.Structure):
    _fields_ = (("weight", POINTER), ("bias", POINTER), ("in", LONG), ("out", LONG))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("norm_in", "norm_mid", "q_norm", "k_norm")),
        *((name, _Product) for name in ("qkv", "o", "gate_up", "down")),
        *((name, POINTER) for name in ("keys", "values")),
        ("window", LONG),
        ("scaling", FLOAT),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("layers", "last_norm", "cosines", "sines")),
        *((name, LONG) for name in ("depth", "d", "heads", "kv_heads", "width")),
        ("eps", FLOAT),
    )


def panels(weights: Sequence[Tensor]) -> Tensor:
    """[out, in] -> [out / 32, in, 32], padded with zeros; several weights share each panel evenly."""
    share = PANEL // len(weights)
    parts = [functional.pad(w, (0, 0, 0, -len(w) % share)).unflatten(0, (-1, share)) for w in weights]
    return torch.cat(parts, 1).transpose(1, 2).contiguous()


def joined(linears: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of linear layers that read the same, one after the other."""
    weight = torch.cat([one.weight for one in linears]) if len(linears) > 1 else linears[0].weight
    if all(one.bias is None for one in linears):
        return weight, None
    return weight, torch.cat([weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in linears])


def drawn(library: ctypes.CDLL, logits_NV: Tensor, temperature: float, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row from softmax(logits / temperature), by inverse CDF: (token [N], log-probability [N]).

    Args:
        logits_NV: float32, contiguous, on the CPU. uniform_N: in [0, 1).
    """
    rows, vocabulary = logits_NV.shape
    tokens, logps = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    library.draw.argtypes = [POINTER, POINTER, POINTER, POINTER, FLOAT, LONG, LONG, INT]
    library.draw.restype = None
    uniform = uniform_N.to(torch.float64).contiguous()
    data = (one.data_ptr() for one in (tokens, logps, logits_NV, uniform))
    library.draw(*data, temperature, rows, vocabulary, torch.get_num_threads())
    return tokens, logps


class Compiled:
    """A snapshot of a decoder's weights: make a new one when they have changed.

    Args:
        library: `kernels.kernels()`. backbone, head: a model that `family.fits`, and its output head.
        cos, sin: [positions, D], sin's first half negative.
    """

    def __init__(self, library: ctypes.CDLL, backbone: Any, head: nn.Linear, cos: Tensor, sin: Tensor):
        self._step = library.step
        self._step.argtypes = [POINTER, POINTER, POINTER, POINTER, POINTER, LONG, LONG, LONG, INT]
        self._step.restype = None
        config = backbone.config
        self.head, self.embedding = Ready(head.weight, head.bias), backbone.embed_tokens.weight
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._alive: list[Tensor] = []  # what the structures point to
        self.layers = (_Layer * len(backbone.layers))()
        for layer, block in zip(self.layers, backbone.layers, strict=True):
            self._fill(layer, block)
        inner = max(block.mlp.down_proj.in_features for block in backbone.layers)
        self.numbers = len(self.embedding[0]) + (2 * self.heads + 2 * self.kv_heads) * cos.shape[1] + inner  # a row's
        self.scratch = self.embedding.new_empty(0)
        self.model = _Model(
            ctypes.cast(self.layers, POINTER),
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

    def _product(self, *linears: Any, gated: bool = False) -> _Product:
        if gated:
            gate, up = (joined([one]) for one in linears)
            weights: list[Tensor] = [gate[0], up[0]]
            zeros = [w.new_zeros(len(w)) for w in weights]
            biases = [zeros[0] if gate[1] is None else gate[1], zeros[1] if up[1] is None else up[1]]
            some = gate[1] is not None or up[1] is not None
        else:
            weight, bias = joined(linears)
            weights, biases, some = [weight], [] if bias is None else [bias], bias is not None
        bias_ready = self._keep(panels([b[:, None] for b in biases])) if some else None
        return _Product(self._keep(panels(weights)), bias_ready, weights[0].shape[1], sum(len(w) for w in weights))

    def _fill(self, layer: _Layer, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        layer.norm_in = self._keep(block.input_layernorm.weight)
        layer.norm_mid = self._keep(block.post_attention_layernorm.weight)
        for name in ("q_norm", "k_norm"):
            setattr(layer, name, self._keep(getattr(getattr(attention, name, None), "weight", None)))
        layer.qkv = self._product(attention.q_proj, attention.k_proj, attention.v_proj)
        layer.o = self._product(attention.o_proj)
        layer.gate_up = self._product(mlp.gate_proj, mlp.up_proj, gated=True)
        layer.down = self._product(mlp.down_proj)
        layer.scaling = attention.scaling
        layer.window = window_of(attention) or 0

    @staticmethod
    def _flops(layer: _Layer) -> int:
        products = (layer.qkv, layer.o, layer.gate_up, layer.down)
        return sum(2 * getattr(one, "in") * one.out for one in products)

    def step(self, ids_S: Tensor, cache: Any) -> Tensor:
        """Last hidden states [rows, d] after one more token of each row; the cache is not moved on."""
        x = functional.embedding(ids_S, self.embedding)
        rows = len(x)
        if len(self.scratch) < rows * self.numbers:
            self.scratch = x.new_empty(rows * self.numbers)
        for place, layer in enumerate(self.layers):
            layer.keys, layer.values = cache.keys[place].data_ptr(), cache.values[place].data_ptr()
        if Work.on:
            seen = 4 * self.heads * self.model.width * int(cache.length_S.sum())
            Work.add(rows * sum(self._flops(layer) for layer in self.layers) + seen * len(self.layers))
        out = torch.empty_like(x)
        self._step(
            *(one.data_ptr() for one in (out, x, self.scratch)),
            ctypes.addressof(self.model),
            cache.length_S.data_ptr(),
            *(rows, cache.capacity, cache.now % cache.capacity),
            torch.get_num_threads(),
        )
        return out
