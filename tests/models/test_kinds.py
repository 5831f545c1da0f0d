"""Folders of every kind through the command line: each trains, samples, and is saved as what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import tiny
from models.gguf_tiny import write_gguf
from tiltyard.cli import main

V = 512
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
TURNS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DROPS_THINKING = TURNS.replace(
    "m.content", "(m.content.split('</think>')[-1] if '</think>' in m.content and not loop.last else m.content)"
)


def plain(folder: Path, **changes: Any) -> Path:
    words = tiny.chat().tokenizer
    tiny.causal("llama", vocab_size=V, **changes).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def sharded(folder: Path) -> Path:
    plain(folder)
    (folder / "model.safetensors").unlink()
    tiny.causal("llama", vocab_size=V).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def tied(folder: Path) -> Path:
    return plain(folder, tie_word_embeddings=True)


def adapter(folder: Path) -> Path:
    module = AutoModelForCausalLM.from_pretrained(plain(folder.parent / "base"))
    torch.manual_seed(0)
    get_peft_model(module, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def gguf(folder: Path) -> Path:
    folder.mkdir()
    write_gguf(folder / "tiny.gguf")
    return folder


def tokenizer_with(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        words = AutoTokenizer.from_pretrained(plain(folder))
        for key, value in changes.items():
            setattr(words, key, words.eos_token if value == "eos" else value)
        words.save_pretrained(folder)
        return folder

    return make


KINDS: dict[str, Callable[[Path], Path]] = {
    "safetensors": plain,
    "sharded": sharded,
    "tied": tied,
    "adapter": adapter,
    "gguf": gguf,
    "no pad": tokenizer_with(pad_token=None),
    "pad is eos": tokenizer_with(pad_token="eos"),
    "no system": tokenizer_with(chat_template=NO_SYSTEM + TURNS),
    "alternates": tokenizer_with(chat_template=ALTERNATE + TURNS),
    "drops thinking": tokenizer_with(chat_template=DROPS_THINKING),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_trains_and_samples(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_CACHE", str(tmp_path / "cache"))
    folder = KINDS[kind](tmp_path / "model")
    rows = [{"prompt": "what is it?", "chosen": "the cat", "rejected": "yes"}] * 4
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "dpo", f"model={folder}", f"data={tmp_path / 'pairs.jsonl'}", "steps=1", "prompts_per_step=2"]
    assert main([*words, "device=cpu", "name=one", "--runs", str(tmp_path / "runs")]) == 0, capsys.readouterr().err
    saved = tmp_path / "runs/one/dpo/model"
    for path in (folder, saved):
        capsys.readouterr()
        assert main(["sample", str(path), "-p", "what is it?", "--max-tokens", "3", "--device", "cpu", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
    source = next(p for p in (folder, tmp_path / "base", *(tmp_path / "cache/gguf").glob("*")) if _has_words(p))
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(saved)
    assert after.chat_template == before.chat_template
    assert (after.pad_token, after.eos_token) == (before.pad_token, before.eos_token)
    config = json.loads((saved / "config.json").read_text())
    assert config["tie_word_embeddings"] is (kind == "tied")
    assert AutoModelForCausalLM.from_pretrained(saved).generation_config.eos_token_id is not None


def _has_words(path: Path) -> bool:
    return (path / "tokenizer.json").exists()


@pytest.mark.parametrize(("kind", "told"), [("no system", "no system message"), ("alternates", "must alternate")])
def test_what_a_template_refuses_is_named(
    kind: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the row, and status 2, before anything is trained."""
    folder = KINDS[kind](tmp_path / "model")
    turns = [{"role": "system", "content": "be brief"}] if kind == "no system" else [{"role": "user", "content": "a"}]
    turns += [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "the cat"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    words = ["train", "sft", f"model={folder}", f"data={tmp_path / 'rows.jsonl'}", "steps=1", "device=cpu"]
    assert main([*words, "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert "rows.jsonl:1" in error
    assert told in error
