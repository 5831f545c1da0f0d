"""Decoders of the Llama family in transformers, whose blocks the kernels compute: which models are supported."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from tiltyard.kernels.matmul import Linear

FAMILIES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
ROTARY = ("default", "linear", "llama3", "yarn")  # others depend on the length of the sequence
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class Adapter(NamedTuple):
    """One LoRA adapter of a linear layer: it adds `scaling * x @ down_RI.t() @ up_OR.t()` to the layer's result."""

    down_RI: Tensor
    up_OR: Tensor
    scaling: float


def is_supported(backbone: Any, *, adapted: bool = False) -> bool:
    """Returns True if a backbone is a float32 decoder of the Llama family with plain linear layers and no hooks.

    `adapted`: the linear layers may also have LoRA adapters.
    """
    if type(backbone).__name__ not in FAMILIES or any(p.dtype != torch.float32 for p in backbone.parameters()):
        return False
    if any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in backbone.modules()):
        return False
    config = backbone.config
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in ROTARY:
        return False
    return all(_is_plain(block, adapted) for block in backbone.layers)


def _is_plain(block: Any, adapted: bool) -> bool:
    layers = linears_of(block)
    if adapted:
        if not all(_is_foldable(layer) for layer in layers if is_adapted(layer)):
            return False
        layers = [base_of(layer) for layer in layers]
    plain = all(type(layer) in (nn.Linear, Linear) for layer in layers)
    return plain and isinstance(block.mlp.act_fn, (nn.SiLU, SiLUActivation))


def is_adapted(layer: Any) -> bool:
    """Returns True for PEFT's LoRA layer around a linear one."""
    return hasattr(layer, "base_layer") and hasattr(layer, "lora_A")


def base_of(layer: Any) -> Any:
    """Returns the linear layer itself, without adapters."""
    return layer.base_layer if is_adapted(layer) else layer


def _is_foldable(layer: Any) -> bool:
    """Returns True if a LoRA layer computes the same as `Adapter`: no dropout, DoRA, bias or merged weights."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or type(layer).__name__ != "Linear":
        return False
    drops = any(getattr(part := layer.lora_dropout[name], "p", 0) and part.training for name in names)
    variants = any(name in (getattr(layer, "lora_variant", None) or {}) for name in names)
    return not (drops or variants or any(layer.lora_B[name].bias is not None for name in names))


def adapters_of(layer: Any) -> dict[str, Adapter]:
    """Returns the active adapters of a linear layer by name, in the order in which they are added."""
    if not is_adapted(layer):
        return {}
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return {n: Adapter(layer.lora_A[n].weight, layer.lora_B[n].weight, float(layer.scaling[n])) for n in names}


def linears_of(block: Any) -> list[Any]:
    """Returns a block's linear layers: query, key, value, out, gate, up, down; None for one that it lacks."""
    attention = [getattr(block.self_attn, name, None) for name in ATTENTION]
    return attention + [getattr(block.mlp, name, None) for name in MLP]


def window_of(attention: Any) -> int | None:
    """Returns a layer's sliding window in tokens, or None (Qwen sets it per layer, Mistral in the config)."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window
