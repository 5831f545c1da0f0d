"""Shapes of public models, as their config.json has them; nothing is downloaded."""

from __future__ import annotations

from typing import Any

from tiltyard.stages.memory import Shape


def _config(width: int, layers: int, heads: int, kv_heads: int, inner: int, vocab: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "head_dim": 128 if width > 1000 else 64,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "135M": _config(576, 30, 9, 3, 1536, 49152, True),  # SmolLM2-135M
    "0.5B": _config(896, 24, 14, 2, 4864, 151936, True),  # Qwen2.5-0.5B
    "0.6B": _config(1024, 28, 16, 8, 3072, 151936, True),  # Qwen3-0.6B
    "8B": _config(4096, 32, 32, 8, 14336, 128256, False),  # Llama 3.1 8B
    "32B": _config(5120, 64, 64, 8, 25600, 151936, False),  # Qwen3-32B
    "70B": _config(8192, 80, 64, 8, 28672, 128256, False),  # Llama 3.1 70B
}
MIXTURE = 30.5e9  # parameters of Qwen3-30B-A3B, all of which a push moves


def shape(name: str) -> Shape:
    """The shape of one of them."""
    return Shape.read(CONFIGS[name])
