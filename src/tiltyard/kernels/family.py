"""What Tiltyard knows by heart of transformers' decoders of the Llama family, and whether a model is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from tiltyard.kernels.matmul import Linear

FAMILIES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
ROTARY = ("default", "linear", "llama3", "yarn")  # others depend on how long the sequence is
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def fits(backbone: Any) -> bool:
    """Whether a decoder has the very pieces that are known here, in float32, and nobody listens to them."""
    if type(backbone).__name__ not in FAMILIES or any(p.dtype != torch.float32 for p in backbone.parameters()):
        return False
    if any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in backbone.modules()):
        return False  # somebody listens or interferes
    config = backbone.config
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in ROTARY:
        return False
    return all(_known(block) for block in backbone.layers)


def _known(block: Any) -> bool:
    plain = all(type(one) in (nn.Linear, Linear) for one in linears_of(block))
    return plain and isinstance(block.mlp.act_fn, (nn.SiLU, SiLUActivation))


def linears_of(block: Any) -> list[Any]:
    """A block's linear layers: query, key, value, out, gate, up, down. None for one that it lacks."""
    attention = [getattr(block.self_attn, name, None) for name in ATTENTION]
    return attention + [getattr(block.mlp, name, None) for name in MLP]


def window_of(attention: Any) -> int | None:
    """Tokens a layer may look back: Qwen says it layer by layer, Mistral once for all; Llama has none."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window
