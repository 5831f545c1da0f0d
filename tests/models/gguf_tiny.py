"""A small random GGUF file: a Llama with a byte-level vocabulary, as the package `gguf` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, LAYERS, HEADS, INNER = 32, 2, 2, 64
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    kind: str = "F32",
    leave_out: str = "",
    parts: int = 1,
    rope: Sequence[float] = (),
    scaling: str = "",
) -> None:
    """Writes the file.

    Args:
        kind: type of its matrices, e.g. Q8_0; vectors are F32. leave_out: a tensor. parts: as many as its header says.
        rope: factors that divide its rotary frequencies. scaling: another kind of scaling, by its name.
    """
    import gguf

    tokens = ["<s>", "</s>", *sorted(ByteLevel.alphabet()), "Ġa"]
    random = np.random.default_rng(0)
    writer: Any = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    if scaling:
        writer.add_string(f"{architecture}.rope.scaling.type", scaling)
    if len(rope):
        writer.add_tensor("rope_freqs.weight", np.array(rope, dtype=np.float32))
    if parts > 1:
        writer.add_uint16("split.count", parts)

    def put(name: str, *shape: int) -> None:
        values = (random.standard_normal(shape) * 0.2).astype(np.float32)
        if name == leave_out:
            return
        if kind == "F32" or len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            to = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, to), raw_dtype=to)

    put("token_embd.weight", len(tokens), WIDTH)
    put("output.weight", len(tokens), WIDTH)
    put("output_norm.weight", WIDTH)
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            put(f"blk.{i}.{name}.weight", WIDTH, WIDTH)
        put(f"blk.{i}.ffn_gate.weight", INNER, WIDTH)
        put(f"blk.{i}.ffn_up.weight", INNER, WIDTH)
        put(f"blk.{i}.ffn_down.weight", WIDTH, INNER)
        put(f"blk.{i}.attn_norm.weight", WIDTH)
        put(f"blk.{i}.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
