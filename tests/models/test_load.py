"""What is saved loads in transformers unchanged; what cannot be loaded says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.data.chat import Chat
from tiltyard.errors import ConfigError, ModelError
from tiltyard.models import load
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.types import Group, Message, Prompt, Response

V = 512


def _groups(chat: Chat) -> list[Group]:
    prompt = Prompt(messages=(Message("user", "what is the capital?"),))
    answers = (Response(text="the cat sat on the mat"), Response(text="yes"))
    return chat.encode_groups([Group(prompt, answers), Group(prompt, answers[1:])])


def _language(family: str = "llama", **changes) -> LanguageModel:
    return LanguageModel(tiny.causal(family, vocab_size=V, **changes), tiny.chat())


def _scalar(family: str = "llama", **changes) -> ScalarModel:
    return ScalarModel(tiny.classifier(family, vocab_size=V, **changes), tiny.chat())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "bloom"])
def test_language_model_round_trip(family: str, tmp_path: Path) -> None:
    model = _language(family)
    groups = _groups(model.chat)
    before = model.logp_R(pack(groups))[0]
    load.save_model(model, tmp_path)
    assert model.logp_R(pack(groups))[0].equal(before)  # saving leaves the model as it was
    assert "tiltyard" not in (tmp_path / "config.json").read_text()
    module = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(before.double(), tiny.plain_logp(module, groups)[0], atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is the capital?"}], add_generation_prompt=True
    )
    assert tuple(getattr(ids, "input_ids", ids)) == groups[0].prompt.ids
    assert set(module.generation_config.eos_token_id) == model.chat.stop_ids
    again = load.load_language_model(tmp_path, device="cpu")
    assert again.logp_R(pack(groups))[0].equal(before)
    assert again.chat.max_length == (None if family == "bloom" else 64)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_reward_model_round_trip(family: str, tmp_path: Path) -> None:
    model = _scalar(family)
    groups = _groups(model.chat)
    model.bias = 0.75
    before = model.score_B(pack(groups))
    load.save_model(model, tmp_path)
    again = load.load_scalar_model(tmp_path, device="cpu")
    assert again.bias == 0.75
    assert again.score_B(pack(groups)).equal(before)
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert module.config.reward_bias == 0.75
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [list(ids) for ids, _, _ in tiny.rows(groups)]
    batch = tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt", padding_side="right")
    with torch.no_grad():
        raw = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(raw - 0.75, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_scalar_from_language_model_starts_at_zero(family: str, tmp_path: Path) -> None:
    load.save_model(_language(family), tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = load.load_scalar_model(tmp_path, device="cpu")
    assert torch.rand(1).equal(expected)  # the caller's random state is untouched
    forest = pack(_groups(model.chat))
    assert not model.score_B(forest).any()
    hidden = _language(family).hidden_T(forest)
    torch.testing.assert_close(model.hidden_T(forest), hidden, atol=1e-6, rtol=1e-5)


def test_value_says_what_the_reward_says() -> None:
    reward = _scalar()
    reward.bias = 0.5
    reward.module.requires_grad_(False)
    value = load.value_from(reward)
    assert all(p.requires_grad for p in value.module.parameters())
    forest = pack(_groups(reward.chat))
    assert value.at(forest, forest.last_B).equal(reward.score_B(forest))
    value.head.weight.data += 1
    assert not value.at(forest, forest.last_B).equal(reward.score_B(forest))
    assert reward.packed
    assert value.packed


def test_frozen_copy_is_apart() -> None:
    model = _language()
    ref = load.frozen_copy(model)
    forest = pack(_groups(model.chat))
    before = ref.logp_R(forest)[0]
    assert before.equal(model.logp_R(forest)[0].detach())
    assert not before.requires_grad
    assert not ref.parameters()
    model.module.get_input_embeddings().weight.data += 1
    assert ref.logp_R(forest)[0].equal(before)
    assert model.module.config is not ref.module.config


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gpt_neox", "opt", "bloom", "gemma3"])
def test_freeze_bottom(family: str) -> None:
    model = _language(family)
    count = load.freeze_bottom(model, 1)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    assert count == sum(p.numel() for p in model.module.parameters() if not p.requires_grad) > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model.module.train()
    model.logp_R(pack(_groups(model.chat)))[0].sum().backward()
    optimizer.step()
    for name, parameter in model.module.named_parameters():
        bottom = any(f".{part}.0." in name for part in ("layers", "h"))
        embeds = any(part in name for part in ("wte", "wpe", "embed_tokens", "embed_positions", "embed_in")) or (
            "word_embeddings.weight" in name
        )
        assert parameter.requires_grad != (bottom or embeds), name
        assert (parameter.grad is None) == (bottom or embeds), name
        assert parameter.equal(before[name]) == (bottom or embeds), name
    with pytest.raises(ConfigError, match="0 to 2"):
        load.freeze_bottom(model, 3)
    assert load.freeze_bottom(_language("llama"), 0) == 0


def test_from_scratch(tmp_path: Path) -> None:
    tokenizer = tiny.chat().tokenizer
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (load.from_scratch("1m", tokenizer, seed=s, context=64) for s in (0, 0, 1))
    assert torch.rand(1).equal(expected)
    weights = [m.module.get_input_embeddings().weight for m in (one, same, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    assert one.packed
    assert one.chat.max_length == 64
    load.save_model(one, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).get_input_embeddings().weight.equal(weights[0])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] == tokenizer.pad_token_id


@pytest.mark.parametrize(("preset", "low", "high"), [("1m", 0.8e6, 1.5e6), ("12m", 6e6, 13e6), ("60m", 30e6, 65e6)])
def test_preset_sizes(preset: str, low: float, high: float) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, kv, inner = load.PRESETS[preset]
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size={"1m": 2048, "12m": 16384, "60m": 32768}[preset],
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv,
                intermediate_size=inner,
                tie_word_embeddings=True,
            )
        )
    assert low < sum(p.numel() for p in model.parameters()) < high


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "gpt_neox", "phi3"])
def test_set_dropout_zero_makes_training_deterministic(family: str) -> None:
    changes = {
        "gpt2": {"resid_pdrop": 0.5},
        "opt": {"layerdrop": 0.5, "dropout": 0.5, "attention_dropout": 0.5},
        "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
        "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
        "phi3": {"resid_pdrop": 0.5, "attention_dropout": 0.5},
    }.get(family, {"attention_dropout": 0.5})
    model = _language(family, **changes)
    forest = pack(_groups(model.chat))
    evaluated = model.logp_R(forest)[0]
    model.module.train()
    load.set_dropout(model.module, "model")
    assert not model.logp_R(forest)[0].equal(evaluated)
    load.set_dropout(model.module, 0.0)
    torch.testing.assert_close(model.logp_R(forest)[0], evaluated)


def test_float64_and_bfloat16_policies(tmp_path: Path) -> None:
    load.save_model(_language(), tmp_path)
    exact = load.load_language_model(tmp_path, device="cpu", dtype="float64")
    half = load.load_language_model(tmp_path, device="cpu", dtype="bfloat16")
    forest = pack(_groups(exact.chat))
    assert exact.logp_R(forest)[0].dtype == torch.float64
    assert half.module.dtype == torch.float32
    assert half.logp_R(forest)[0].dtype == torch.float32


# ---------------------------------------------------------------------------------------------------- errors


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean '12m'"):
        load.from_scratch("12mm", tiny.chat().tokenizer)


@pytest.mark.parametrize("name", ["./no/such", "/no/such/model", "runs/no-such/sft/model", "a/b/c"])
def test_wrong_path(name: str) -> None:
    for loader in (load.load_language_model, load.load_scalar_model, load.load_tokenizer):
        with pytest.raises(ModelError, match="no such model folder"):
            loader(name)


def test_wrong_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        load.load_language_model(tmp_path)
    good = tmp_path / "model"
    load.save_model(_language(), good)
    assert load.load_language_model(tmp_path, device="cpu").packed  # the stage's folder, which holds `model/`

    def broken(name: str) -> Path:
        shutil.copytree(good, tmp_path / name)
        return tmp_path / name

    folder = broken("no weights")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="could not be loaded"):
        load.load_language_model(folder)
    folder = broken("cut weights")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="could not be loaded"):
        load.load_language_model(folder)
    folder = broken("lost weight")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weight of .*\n.*model\.norm\.weight"):
        load.load_language_model(folder)
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load.load_scalar_model(folder)
    folder = broken("bad config")
    (folder / "config.json").write_text("{")
    for loader in (load.load_language_model, load.load_scalar_model):
        with pytest.raises(ModelError, match="could not be loaded"):
            loader(folder)
    folder = broken("no tokenizer")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError):
        load.load_language_model(folder)


def test_a_reward_model_is_no_language_model(tmp_path: Path) -> None:
    load.save_model(_scalar(), tmp_path)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load.load_language_model(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    load.save_model(_language(), tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="could not be loaded"):
        load.load_language_model(tmp_path)


def test_devices(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load.pick_device().type == "cpu"
    with pytest.raises(ConfigError, match="CUDA was asked for"):
        load.pick_device("cuda:1")
    with pytest.raises(ConfigError, match="unknown device"):
        load.pick_device("gpu")


def test_tokenizer_is_saved_with_template(tmp_path: Path) -> None:
    load.save_model(_language(), tmp_path)
    tokenizer = load.load_tokenizer(tmp_path)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.chat_template == tiny.chat().tokenizer.chat_template
