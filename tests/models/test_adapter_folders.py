"""The folder of an adapter is taken as a model: its base with the adapter merged, by PEFT's files or ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.errors import ConfigError, ModelError
from tiltyard.models.adapters import adapt, save_adapter
from tiltyard.models.load import load_language_model, load_scalar_model, save_model
from tiltyard.models.lora import Lora, adapter_tensors
from tiltyard.types import Group, Message, Prompt, Response

V = 512


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny.causal("llama", vocab_size=V).save_pretrained(folder)
    tiny.chat().tokenizer.save_pretrained(folder)
    return folder


def forest() -> Any:
    prompt = Prompt(messages=(Message("user", "what is it?"),))
    return pack(tiny.chat().encode_groups([Group(prompt, (Response(text="the cat"), Response(text="yes it is")))]))


def by_peft(base: Path, folder: Path, **settings: Any) -> torch.Tensor:
    """An adapter as PEFT saves it; returns its merged model's logits."""
    auto = AutoModelForSequenceClassification if settings.get("task_type") == "SEQ_CLS" else AutoModelForCausalLM
    more = {"num_labels": 1} if settings.get("task_type") == "SEQ_CLS" else {}
    torch.manual_seed(0)
    model = get_peft_model(auto.from_pretrained(base, **more), LoraConfig(r=4, lora_alpha=8, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(input_ids=forest().ids_T[None, :9]).logits


def test_a_language_models_adapter(base: Path, tmp_path: Path) -> None:
    expected = by_peft(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = load_language_model(tmp_path / "adapter", device="cpu")
    with model.plain(), torch.no_grad():
        torch.testing.assert_close(model.module(input_ids=forest().ids_T[None, :9]).logits, expected)
    assert any("merged into its model" in line for line in model.origin.notes)
    bare = load_language_model(base, device="cpu")
    assert not bare.logp_R(forest())[0].allclose(model.logp_R(forest())[0])
    save_model(model, tmp_path / "whole")
    assert not list((tmp_path / "whole").glob("adapter*"))
    whole = load_language_model(tmp_path / "whole", device="cpu")
    assert whole.logp_R(forest())[0].equal(model.logp_R(forest())[0])
    adapted = adapt(model, Lora(rank=2))  # and it is trained on as any model
    assert adapted.logp_R(forest())[0].allclose(whole.logp_R(forest())[0])


def test_a_reward_models_adapter_with_its_head(base: Path, tmp_path: Path) -> None:
    """PEFT's, with `score` among its tensors; transformers reads the same scores."""
    by_peft(base, tmp_path / "adapter", task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    model = load_scalar_model(tmp_path / "adapter", device="cpu")
    assert model.head.weight.abs().max() > 0
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1)
    ids = forest().ids_T[None, :9]
    with model.plain(), torch.no_grad():
        torch.testing.assert_close(model.module(input_ids=ids).logits, saved(input_ids=ids).logits)


def test_our_own_adapter_folder(base: Path, tmp_path: Path) -> None:
    model = adapt(load_language_model(base, device="cpu"), Lora(rank=4))
    for name, tensor in adapter_tensors(model.backbone, "policy").items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(tensor, std=0.3)
    save_adapter(model, tmp_path / "stage" / "adapter")
    again = load_language_model(tmp_path / "stage" / "adapter", device="cpu")
    torch.testing.assert_close(again.logp_R(forest())[0], model.logp_R(forest())[0], atol=1e-5, rtol=1e-5)


def test_an_adapter_beside_its_model(base: Path, tmp_path: Path) -> None:
    """A folder with both: the adapter goes onto the weights that lie beside it, as in transformers."""
    expected = by_peft(base, tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    for file in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(file, base)
    model = load_language_model(base, device="cpu")
    with model.plain(), torch.no_grad():
        torch.testing.assert_close(model.module(input_ids=forest().ids_T[None, :9]).logits, expected)


@pytest.mark.parametrize("named", ["nowhere/at/all", "../gone", "", None])
def test_an_adapter_without_its_model(named: str | None, base: Path, tmp_path: Path) -> None:
    by_peft(base, tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    with pytest.raises(ModelError, match="an adapter, and the model that it was trained on is not there"):
        load_language_model(tmp_path / "adapter", device="cpu")


def test_an_adapter_of_another_model(base: Path, tmp_path: Path) -> None:
    tiny.causal("llama", vocab_size=V, hidden_size=48).save_pretrained(tmp_path / "other")
    by_peft(tmp_path / "other", tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    with pytest.raises(ModelError, match="cannot be merged into its model"):
        load_language_model(tmp_path / "adapter", device="cpu")


def test_an_adapter_in_four_bits_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_peft(base, tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    monkeypatch.setattr("tiltyard.models.pretrained.in_four_bits", lambda *_: None)
    with pytest.raises(ConfigError, match="cannot be merged into weights of 4 bits"):
        load_language_model(tmp_path / "adapter", device="cpu", quantize="4bit")
