"""`merge`: an adapter becomes an ordinary folder that computes what the adapted model did; a missing base is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import encoders, tiny
from tiltyard.batch.forest import pack
from tiltyard.cli import main
from tiltyard.errors import ConfigError, ModelError
from tiltyard.models.adapters import adapt, save_adapter
from tiltyard.models.load import load_language_model, load_scalar_model, save_model
from tiltyard.models.lora import Lora, adapter_tensors
from tiltyard.models.merging import merge
from tiltyard.types import Group, Message, Prompt, Response

V = 512
IDS = torch.tensor([[5, 6, 11, 3]])


def base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder whose padding token closes turns, as in most chat models."""
    tokenizer = tiny.chat().tokenizer
    tiny.causal("llama", vocab_size=V, dtype=dtype, pad_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learnt(model: Any) -> Any:
    """The model with an adapter that has moved."""
    adapt(model, Lora(rank=4))
    torch.manual_seed(0)
    for name, tensor in adapter_tensors(model.backbone, "policy").items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(tensor, std=0.1)
    return model


def forest(chat: Any) -> Any:
    prompt = Prompt(messages=(Message("user", "what is it?"),))
    return pack(chat.encode_groups([Group(prompt, (Response(text="the cat"), Response(text="yes it is so")))]))


def test_a_language_model_is_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = learnt(load_language_model(base(tmp_path / "base"), device="cpu"))
    batch = forest(model.chat)
    save_adapter(model, tmp_path / "run" / "dpo" / "adapter")
    assert main(["merge", str(tmp_path / "run"), "--into", str(tmp_path / "out"), "--device", "cpu", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["kind"], outcome["base"]) == ("language", str(tmp_path / "base"))
    merged = load_language_model(tmp_path / "out", device="cpu")
    torch.testing.assert_close(merged.logp_R(batch)[0], model.logp_R(batch)[0], atol=1e-5, rtol=1e-5)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with model.plain(), torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=IDS).logits, model.module(input_ids=IDS).logits, atol=1e-5, rtol=1e-5
        )
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == model.chat.tokenizer.chat_template
    assert not list((tmp_path / "out").glob("adapter*"))
    assert main(["merge", str(tmp_path / "run/dpo"), "--dtype", "bfloat16", "--device", "cpu"]) == 0
    assert "the merged model is in" in capsys.readouterr().out
    folder = tmp_path / "run" / "dpo" / "adapter-merged"
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_the_width_of_the_base_is_kept(tmp_path: Path) -> None:
    save_adapter(learnt(load_language_model(base(tmp_path / "base", torch.bfloat16), device="cpu")), tmp_path / "a")
    out = Path(merge(tmp_path / "a", device="cpu")["model"])
    assert out == tmp_path / "a-merged"
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["decoder", "bert"])
def test_a_reward_model_is_merged_with_its_scale(kind: str, tmp_path: Path) -> None:
    """Its scores are those of the adapted model: head, shift, and where they are read, though padding ends turns."""
    if kind == "bert":
        save_model(encoders.masked("bert", "float32"), tmp_path / "base")
        batch = pack(encoders.comparisons())
    else:
        base(tmp_path / "base")
    model = learnt(load_scalar_model(tmp_path / "base", device="cpu"))
    batch = batch if kind == "bert" else forest(model.chat)
    torch.nn.init.normal_(model.head.weight)
    model.bias, model.gain = 0.5, 3.0
    expected = model.score_B(batch).detach()
    model.fold()
    save_adapter(model, tmp_path / "adapter")
    outcome = merge(tmp_path / "adapter", tmp_path / "merged", device="cpu")
    assert outcome["kind"] == "reward"
    for folder in ("adapter", "merged"):
        again = load_scalar_model(tmp_path / folder, device="cpu")
        torch.testing.assert_close(again.score_B(batch), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    with pytest.raises(ModelError, match=r"no adapter to merge[\s\S]*config.json[\s\S]*adapter_config.json"):
        merge(folder)
    with pytest.raises(ModelError, match=r"no adapter to merge[\s\S]*no such folder"):
        merge(tmp_path / "nowhere")
    model = learnt(load_language_model(folder, device="cpu"))
    for stage in ("one", "two"):
        save_adapter(model, tmp_path / "run" / stage / "adapter")
    with pytest.raises(ModelError, match=r"several stages of the run have an adapter[\s\S]*one, two"):
        merge(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"there is something where[\s\S]*config.json"):
        merge(tmp_path / "run/one", folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"the model that it was trained on is not there[\s\S]*{folder}"):
        merge(tmp_path / "run/one")
    assert main(["merge", str(tmp_path / "run/one")]) == 2
    assert main(["merge", str(tmp_path / "run/one"), "--dtype", "bfloat"]) == 2
    assert not (tmp_path / "run/one/adapter-merged").exists()
