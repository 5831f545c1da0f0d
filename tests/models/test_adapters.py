"""Adapters on disk: merged for everybody, in PEFT's form for PEFT, and back onto the backbone that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from tiltyard import (
    LanguageModel,
    from_scratch,
    load_language_model,
    load_masked_model,
    load_scalar_model,
    save_model,
    train_tokenizer,
)
from tiltyard.batch.forest import pack
from tiltyard.errors import CheckpointError, ConfigError, ModelError
from tiltyard.models import pretrained
from tiltyard.models.adapters import adapt, backbone_hash, reward_adapter, save_adapter, value_adapter, without_adapters
from tiltyard.models.backbone import Backbone
from tiltyard.models.load import value_from
from tiltyard.models.lora import Lora, adapter_tensors
from tiltyard.sampling import SampleSettings, sample
from tiltyard.sampling.engine import can_use_decoder
from tiltyard.types import Prompt

from . import encoders

LORA = Lora(rank=3, alpha=9.0)
TEXTS = [f"a word {i}" for i in range(500)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(from_scratch("1m", train_tokenizer(TEXTS, 320), context=64), folder)
    return folder


def loaded(base: Path) -> LanguageModel:
    return load_language_model(base, device="cpu")


def learnt(model: Any, name: str, seed: int = 5) -> Any:
    stream = torch.Generator().manual_seed(seed)
    for key, tensor in adapter_tensors(model.backbone, name).items():
        if key.endswith("lora_B"):
            tensor.data.copy_(0.05 * torch.randn(tensor.shape, generator=stream))
    return model


def written(model: Backbone, stage: Path) -> Path:
    save_model(model, stage / "model")
    save_adapter(model, stage / "adapter")
    return stage / "model"


def reward_of(base: Path, stage: Path, lora: Lora = LORA) -> Any:
    """A reward model that has learnt something, and its stage's folder."""
    reward = learnt(adapt(load_scalar_model(base, device="cpu"), lora, "reward"), "reward", 8)
    torch.nn.init.normal_(reward.head.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    reward.bias, reward.gain = 0.25, 3.0
    written(reward, stage)
    return reward


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=within, atol=within)


def test_the_merged_model_is_anybodys(base: Path, tmp_path: Path) -> None:
    model = learnt(adapt(loaded(base), LORA), "policy")
    found = load_language_model(written(model, tmp_path), device="cpu")
    forest = model.probe_forest()
    with torch.no_grad():
        says = model.logp_R(forest)[0]
        assert float((says - without_adapters(model).logp_R(forest)[0]).abs().max()) > 0.1
        close(found.logp_R(forest)[0], says)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.state_dict().keys() == AutoModelForCausalLM.from_pretrained(base).state_dict().keys()
    assert found.module.config.to_dict().keys() == loaded(base).module.config.to_dict().keys()


def test_peft_loads_the_adapter_onto_the_base(base: Path, tmp_path: Path) -> None:
    model = learnt(adapt(loaded(base), LORA), "policy")
    written(model, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    with torch.no_grad(), model.plain(), model.autocast():
        close(theirs(ids).logits, model.module(ids).logits)
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha, config.task_type) == (3, 9.0, "CAUSAL_LM")
    assert set(config.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_peft_loads_a_reward_models_adapter_and_its_head(base: Path, tmp_path: Path) -> None:
    reward = reward_of(base, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    blank = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=None)
    theirs = PeftModel.from_pretrained(blank, tmp_path / "adapter")
    with torch.no_grad(), reward.plain(), reward.autocast():
        close(theirs(ids).logits, reward.module(ids).logits)
        close(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_an_encoder_takes_adapters_in_its_blocks_alone(family: str, tmp_path: Path) -> None:
    """BERT's blocks have layers called `dense`, and so have its pooler and its head: those get no adapter."""
    save_model(encoders.masked(family, "float32"), tmp_path / "base")
    model = learnt(adapt(load_masked_model(tmp_path / "base", device="cpu"), LORA, "encoder"), "encoder")
    written(model, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    theirs = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    adapted = [name for name, part in theirs.named_modules() if hasattr(part, "lora_A")]
    assert len(adapted) == len(adapter_tensors(model.backbone, "encoder")) / 2
    with torch.no_grad():
        says = model.run(ids, torch.ones_like(ids))
        close(theirs(ids).logits, says)
        close(load_masked_model(tmp_path / "model", device="cpu").run(ids, torch.ones_like(ids)), says)


def test_four_models_on_one_trunk_say_what_four_models_say(base: Path, tmp_path: Path) -> None:
    """Policy, reference, reward and value against merged models with backbones of their own."""
    reward_of(base, tmp_path / "reward")
    policy = learnt(adapt(loaded(base), LORA), "policy")
    reward = reward_adapter(policy, tmp_path / "reward" / "model")
    assert reward is not None
    value = value_adapter(reward, Lora(rank=2))
    alone = load_scalar_model(tmp_path / "reward" / "model", device="cpu")
    forest = policy.probe_forest()
    with torch.no_grad():
        close(reward.score_B(forest), alone.score_B(forest))
        assert float(reward.score_B(forest).abs().max()) > 0.1
        assert value.value_R(forest).equal(reward.value_R(forest))
        learnt(value, "value", 9)
        value.head.weight.data.mul_(1.5)
        apart = value_from(value)
        close(apart.value_R(forest), value.value_R(forest))
        assert apart.backbone is not value.backbone
        close(reward.score_B(forest), alone.score_B(forest))  # the value's adapter is not in the way
        close(without_adapters(policy).logp_R(forest)[0], loaded(base).logp_R(forest)[0], 1e-6)
        close(load_language_model(written(policy, tmp_path), device="cpu").logp_R(forest)[0], policy.logp_R(forest)[0])
        save_model(value, tmp_path / "value")
        close(load_scalar_model(tmp_path / "value", device="cpu").value_R(forest), value.value_R(forest))
    assert {id(m.backbone) for m in (policy, without_adapters(policy), reward, value)} == {id(policy.backbone)}
    assert reward.parameters() == []


def test_a_reward_model_of_another_trunk_stays_a_model_of_its_own(base: Path, tmp_path: Path) -> None:
    reward_of(base, tmp_path / "reward")
    other = from_scratch("1m", train_tokenizer(TEXTS, 320), context=64, seed=1)
    save_model(other, tmp_path / "other" / "model")
    assert reward_adapter(adapt(loaded(tmp_path / "other" / "model"), LORA), tmp_path / "reward" / "model") is None
    assert reward_adapter(loaded(base), tmp_path / "reward" / "model") is None  # this one's backbone will move
    assert reward_adapter(adapt(loaded(base), LORA), base) is None  # this one has no adapter
    (tmp_path / "reward" / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="the adapter cannot be read"):
        reward_adapter(adapt(loaded(base), LORA), tmp_path / "reward" / "model")


def test_the_hash_is_the_trunks_alone(base: Path) -> None:
    """Whatever head stands on it and whatever adapters lie in it; not where one weight differs."""
    plain = backbone_hash(loaded(base).backbone)
    adapted = learnt(adapt(loaded(base), LORA), "policy")
    assert backbone_hash(adapted.backbone) == plain == backbone_hash(load_scalar_model(base, device="cpu").backbone)
    adapted.backbone.layers[0].mlp.up_proj.base_layer.weight.data[0, 0] += 1e-4
    assert backbone_hash(adapted.backbone) != plain


def test_chosen_layers(base: Path) -> None:
    model = adapt(loaded(base), Lora(targets=["q_proj", "v_proj"]))
    assert {key.split(".")[-2] for key in adapter_tensors(model.backbone, "policy")} == {"q_proj", "v_proj"}
    value = value_adapter(model, LORA)  # a second adapter has layers of its own choice
    assert len(adapter_tensors(value.backbone, "value")) == 2 * 7 * 4
    with pytest.raises(ConfigError, match="no linear layer"):
        adapt(loaded(base), Lora(targets=["q_prj"]))
    with pytest.raises(ModelError, match="an adapter already"):
        adapt(model, LORA)


def test_a_seed_draws_the_same_adapter_and_leaves_the_generator_alone(base: Path) -> None:
    before = torch.random.get_rng_state()
    one, two, three = (adapt(loaded(base), LORA, seed=seed) for seed in (1, 1, 2))
    assert torch.random.get_rng_state().equal(before)
    firsts = [next(iter(adapter_tensors(m.backbone, "policy").values())) for m in (one, two, three)]
    assert firsts[0].equal(firsts[1])
    assert not firsts[0].equal(firsts[2])
    bound = firsts[0].shape[1] ** -0.5
    assert 0.9 * bound < float(firsts[0].detach().abs().max()) <= bound


def test_the_decoder_uses_the_adapters(base: Path) -> None:
    """Decoding works on a snapshot of the weights: of the merged ones, and of the bare ones for the reference."""
    model = learnt(adapt(loaded(base), LORA), "policy")
    prompts = [Prompt(id=str(i), ids=(5 + i, 6)) for i in range(5)]
    told = []
    for one in (model, without_adapters(model)):
        assert can_use_decoder(one)
        groups = sample(one, prompts, 2, SampleSettings(max_tokens=8), seed=3)
        told.append(torch.tensor([x for g in groups for r in g.responses for x in r.logps or ()]))
        with torch.no_grad():
            close(one.logp_R(pack(groups))[0], told[-1], 1e-4)
    assert not torch.equal(*(t[:5] for t in told))


def test_four_bits_are_refused_where_they_cannot_be(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load in (load_language_model, load_scalar_model):
        with pytest.raises(ConfigError, match="need a CUDA device"):
            load(base, device="cpu", quantize="4bit")
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="need bitsandbytes"):
        pretrained.in_four_bits(torch.device("cuda"), "bfloat16")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA was asked for"):
            load_language_model(base, device="cuda", quantize="4bit")


def test_four_bits_are_asked_of_transformers_as_qlora_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: name)
    asked = pretrained.in_four_bits(torch.device("cuda"), "bfloat16")
    assert (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert asked.bnb_4bit_compute_dtype == torch.bfloat16
