"""GGUF files as models: read for training, sampling and as a base, converted once; and what cannot be read is named."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from models.gguf_tiny import write_gguf
from tiltyard.cli import main
from tiltyard.errors import ConfigError, MissingDependency, ModelError
from tiltyard.files import cache_home
from tiltyard.models import gguf_files
from tiltyard.models.adapters import adapt, save_adapter
from tiltyard.models.load import load_language_model, load_scalar_model, load_tokenizer, save_model
from tiltyard.models.lora import Lora, adapter_tensors

pytest.importorskip("gguf")
ROWS = [
    {"prompt": "what?", "chosen": "a cat", "rejected": "no"},
    {"prompt": "who?", "chosen": "a dog", "rejected": "yes"},
] * 4


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILTYARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def logits(model: Any) -> torch.Tensor:
    with model.plain(), torch.no_grad():
        return model.module(input_ids=torch.tensor([[5, 6, 11, 3]]), use_cache=False).logits


def load(path: Path) -> Any:
    return load_language_model(path, device="cpu")


def test_a_file_is_a_model(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are transformers' own, its tokenizer, template and end come along; it is converted once."""
    from transformers import AutoModelForCausalLM

    model = load(file)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        assert logits(model).equal(theirs(input_ids=torch.tensor([[5, 6, 11, 3]]), use_cache=False).logits)
    assert "dequantised from tiny.gguf (F32)" in " ".join(model.origin.notes)
    assert model.chat.tokenizer.chat_template
    assert model.chat.eos_id == 1
    save_model(model, tmp_path / "saved")
    assert logits(load(tmp_path / "saved")).equal(logits(model))
    assert not {"quantization_config", "_name_or_path"} & set(json.loads((tmp_path / "saved/config.json").read_text()))

    monkeypatch.setattr(gguf_files, "convert", lambda *_: pytest.fail("converted twice"))
    assert logits(load(file)).equal(logits(model))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "same.gguf").symlink_to(file)
    assert logits(load(tmp_path / "folder")).equal(logits(model))
    assert load_tokenizer(file).get_vocab() == model.chat.tokenizer.get_vocab()
    assert load_scalar_model(file, device="cpu").head.weight.abs().max() == 0


def test_a_changed_file_is_converted_again(file: Path) -> None:
    before = logits(load(file))
    write_gguf(file, kind="Q8_0")
    after = logits(load(file))
    assert not after.equal(before)
    torch.testing.assert_close(after, before, atol=0.2, rtol=0.2)
    assert len(list((cache_home() / "gguf").iterdir())) == 2


def test_an_adapter_over_a_file(file: Path, tmp_path: Path) -> None:
    """It names the file, not the folder of the cache."""
    model = adapt(load(file), Lora(rank=4))
    for name, tensor in adapter_tensors(model.backbone, "policy").items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(tensor, std=0.3)
    save_adapter(model, tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(file)
    shutil.rmtree(cache_home())
    with model.plain():
        expected = logits(model)
    torch.testing.assert_close(logits(load(tmp_path / "adapter")), expected, atol=1e-5, rtol=1e-5)


def test_a_file_trains_and_answers(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["train", "dpo", f"model={file}", f"ref={file}", f"data={data}", "steps=2", "prompts_per_step=2"]
    words += ["device=cpu", "--runs", str(tmp_path / "runs")]
    assert main([*words, "--dry-run"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "parameters: 0.0" in plan, plan  # the shape is known before anything is loaded
    shutil.rmtree(cache_home())
    assert main(words) == 0
    assert "dequantised from tiny.gguf" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "runs/dpo/dpo/model/model.safetensors").exists()
    assert main(["sample", str(file), "-p", "yes", "--max-tokens", "2", "--device", "cpu"]) == 0


def test_the_scaling_of_llama_3_is_read(tmp_path: Path) -> None:
    """Such files hold factors by which frequencies are divided; transformers does not read them."""
    theta, halves, factor = 10000.0, 8, 32.0
    factors = []
    for i in range(halves):
        turns = 8192 * theta ** (-i / halves) / (2 * math.pi)  # in the context of the pretraining
        share = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
        factors.append(1 / ((1 - share) / factor + share))
    assert factors[0] == 1.0
    assert factors[-1] == factor
    assert any(1 < one < factor for one in factors)
    write_gguf(tmp_path / "three.gguf", rope=factors)
    model = load(tmp_path / "three.gguf")
    plain = theta ** -(torch.arange(halves) / halves)
    torch.testing.assert_close(model.module.model.rotary_emb.inv_freq * torch.tensor(factors), plain)
    save_model(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["rope_parameters"]["rope_type"] == "llama3"
    write_gguf(tmp_path / "three.gguf", rope=[1.0] * halves)
    assert load(tmp_path / "three.gguf").module.config.rope_parameters["rope_type"] == "default"


# ----------------------------------------------------------------------------------------------------- what is refused


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"tiny.gguf: [\s\S]*tiltyard\[gguf\]"):
        load(file)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"architecture": "rwkv6"}, r"of this architecture[\s\S]*rwkv6[\s\S]*llama"),
        ({"parts": 3}, r"one part of several[\s\S]*llama-gguf-split --merge"),
        ({"scaling": "yarn"}, r"scales its rotary frequencies[\s\S]*yarn"),
        ({"rope": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}, r"scales its rotary frequencies[\s\S]*3, 4, 5"),
        ({"leave_out": "blk.1.ffn_up.weight"}, r"1 weight of the model is not in[\s\S]*layers.1.mlp.up_proj"),
    ],
)
def test_what_cannot_be_read(how: dict[str, Any], match: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "odd.gguf", **how)
    with pytest.raises(ModelError, match=rf"odd.gguf: [\s\S]*{match}"):
        load(tmp_path / "odd.gguf")
    assert not list(cache_home().rglob("model*"))


def test_a_type_that_cannot_be_read(file: Path) -> None:
    """The type's number stands in the header, behind name and shape."""
    data = bytearray(file.read_bytes())
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    assert int.from_bytes(data[at : at + 4], "little") == 0
    for number, named in ((9, "token_embd.weight of type Q8_1"), (97, "97")):
        data[at : at + 4] = number.to_bytes(4, "little")
        file.write_bytes(data)
        with pytest.raises(ModelError, match=rf"tiny.gguf: the GGUF file holds a type[\s\S]*{named}[\s\S]*Q8_0"):
            load(file)


def test_files_that_are_something_else(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "two.gguf")
    with pytest.raises(ModelError, match=r"several GGUF files[\s\S]*tiny.gguf, two.gguf"):
        load(tmp_path)
    file.write_bytes(b"version https://git-lfs.example/spec/v1\n")
    with pytest.raises(ModelError, match="no GGUF file"):
        load(file)
    with pytest.raises(ConfigError, match="no such stage or path"):
        main_error(["train", "sft", "model=here/no.gguf", "data=x.jsonl"])


def main_error(words: list[str]) -> None:
    from tiltyard.cli.arguments import run_one_stage

    run_one_stage(words[1], words[2:], dry_run=True, json_output=False, runs=Path("runs"))


def test_too_little_memory_or_space_is_told_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: Mock(available=1000))
    with pytest.raises(ModelError, match=r"too little memory[\s\S]*in float32"):
        load(file)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=1000))
    with pytest.raises(ModelError, match=r"too little disk[\s\S]*TILTYARD_CACHE"):
        load(file)
