"""Tiny models of every causal architecture that transformers knows and that can be built from a few sizes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 64
LARGEST = 4_000_000  # parameters of a tiny model
# sizes by the names under which configurations have them; each is set where the configuration has it
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCAB),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "emb_dim", "n_embed", "model_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads",), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"), 8),
    "qk_rope_head_dim": 4,
    "head_dim": 8,
    "rotary_dim": 4,
    "word_embed_proj_dim": 32,
    "lru_width": 32,
    "first_k_dense_replace": 1,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_expand": 2,
    "n_groups": 1,
    "mamba_n_groups": 1,
    "expand": 2,
    "attention_hidden_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "dropout": 0.0,
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id",), 2),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "context_length", "max_seq_len"), 512),
    **dict.fromkeys(("sliding_window", "attention_window_size", "local_attention"), 6),
    "attention_chunk_size": 6,
    "chunk_size": 8,
    "block_size": 8,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "use_cache": True,
    "use_mambapy": False,
    "initializer_range": 0.2,
}
# what a family's configuration needs beside the sizes, or is named otherwise
LATENT = {"num_key_value_heads": 4, "head_dim": 4, "qk_head_dim": 12}
MORE: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "xlm": {"causal": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "nemotron": {"head_dim": 8},
    "dots1": {"n_shared_experts": 1},
    "xlstm": {"num_blocks": 2},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "attention_head_dim": 16},
    **{key: {"head_dim": 8} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
}


def names() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of(name: str, more: dict[str, Any]) -> Any:
    """The configuration of a model type with every size that it has made small."""
    kind: type[PretrainedConfig] = CONFIG_MAPPING[name]
    plain = kind()
    if plain.get_text_config() is not plain:
        raise ValueError("holds more than a language model")

    def settable(key: str) -> bool:
        own = getattr(kind, key, None)
        return not isinstance(own, property) or own.fset is not None

    has = lambda key: key.endswith("_id") or getattr(plain, key, None) is not None  # noqa: E731
    sizes = {key: value for key, value in SIZES.items() if settable(key) and has(key)} | MORE.get(name, {}) | more
    if settable("layer_types") and (kinds := getattr(plain, "layer_types", None)):
        rest = list(dict.fromkeys(kinds))
        sizes["num_hidden_layers"] = layers = max(2, len(rest))
        sizes["layer_types"] = (rest * layers)[:layers]
    return kind(**sizes)


@cache
def build(name: str, seed: int = 0) -> Any:
    """A tiny model with weights drawn wide enough that every part matters.

    Raises:
        Unbuildable: these sizes do not make one that computes anything.
    """
    for more in ({}, LATENT):
        try:
            return _built(name, seed, more)
        except Exception as error:
            last = error
    raise Unbuildable(f"{name}: {type(last).__name__}: {str(last)[:120]}")


class Unbuildable(Exception):
    """No tiny model of this type."""


def _built(name: str, seed: int, more: dict[str, Any]) -> Any:
    config = config_of(name, more)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(config).eval()
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.data += 0.15 * torch.randn_like(parameter)
    with torch.no_grad():
        if not module(input_ids=torch.tensor([[3, 5, 4]])).logits.isfinite().all():
            raise ValueError("its numbers are not finite")
    return module
