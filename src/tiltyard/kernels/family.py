"""Decoders of the Llama family in transformers, whose blocks the kernels compute: which models are supported."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from tiltyard.kernels.matmul import Linear

FAMILIES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
ROTARY = ("default", "linear", "llama3", "yarn")  # others depend on the length of the sequence
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def is_supported(backbone: Any) -> bool:
    """Returns True if a backbone is a float32 decoder of the Llama family with plain linear layers and no hooks."""
    if type(backbone).__name__ not in FAMILIES or any(p.dtype != torch.float32 for p in backbone.parameters()):
        return False
    if any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in backbone.modules()):
        return False
    config = backbone.config
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in ROTARY:
        return False
    return all(_is_plain(block) for block in backbone.layers)


def _is_plain(block: Any) -> bool:
    plain = all(type(layer) in (nn.Linear, Linear) for layer in linears_of(block))
    return plain and isinstance(block.mlp.act_fn, (nn.SiLU, SiLUActivation))


def linears_of(block: Any) -> list[Any]:
    """Returns a block's linear layers: query, key, value, out, gate, up, down; None for one that it lacks."""
    attention = [getattr(block.self_attn, name, None) for name in ATTENTION]
    return attention + [getattr(block.mlp, name, None) for name in MLP]


def window_of(attention: Any) -> int | None:
    """Returns a layer's sliding window in tokens, or None (Qwen sets it per layer, Mistral in the config)."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window
