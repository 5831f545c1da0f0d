"""A model whose blocks stay in its files computes the same bits, and becomes the same model when it is read."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import tiny
from tiltyard.distributed.unread import blocks_unread, read_now, sources_of
from tiltyard.errors import ModelError
from tiltyard.models.adapters import adapt, backbone_hash
from tiltyard.models.backbone import Backbone
from tiltyard.models.finite import require_finite
from tiltyard.models.heads import scalar_from
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load import frozen_copy, load_language_model, load_scalar_model, value_from
from tiltyard.models.lora import Lora, adapter_tensors

HOW: dict[str, Any] = {"device": "cpu", "dtype": "float64"}
WHOLE = ("llama", "qwen2", "qwen3", "mistral")  # at least these have nothing that is joined or cut when it is read


def written(folder: Path, family: str = "llama", width: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    tiny.causal(family, dtype=width, vocab_size=512, **changes).save_pretrained(folder)
    tiny.chat().tokenizer.save_pretrained(folder)
    return folder


def numbers(model: Backbone) -> torch.Tensor:
    forest = model.probe_forest()
    with torch.no_grad():
        return model.logp_R(forest)[0] if isinstance(model, LanguageModel) else model.score_B(forest)  # type: ignore[attr-defined]


def same(one: nn.Module, two: nn.Module) -> None:
    found, expected = one.state_dict(), two.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert {n: p.requires_grad for n, p in one.named_parameters()} == {
        n: p.requires_grad for n, p in two.named_parameters()
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_the_same_model(family: str, tmp_path: Path) -> None:
    folder = written(tmp_path, family)
    how: dict[str, Any] = HOW | ({"dtype": "float32"} if family in tiny.NO_FLOAT64 else {})
    expected = load_language_model(folder, **how)
    model = load_language_model(folder, **how, blocks="files")
    if family in WHOLE:
        assert len(blocks_unread(model.module)) == 2
    assert model.padded_reason == expected.padded_reason
    assert model.rows_alone == expected.rows_alone
    assert model.backend == expected.backend
    assert model.module.generation_config.to_dict() == expected.module.generation_config.to_dict()
    assert model.module.config.to_dict() == expected.module.config.to_dict()
    assert torch.equal(numbers(model), numbers(expected))
    read_now(model.module)
    assert not sources_of(model.module)
    same(model.module, expected.module)
    assert model.head.weight.data_ptr() == model.module.get_output_embeddings().weight.data_ptr()


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16])
def test_the_blocks_take_no_memory(width: torch.dtype, tmp_path: Path) -> None:
    """Before, during and after a pass; of a folder of several files too."""
    tiny.causal("llama", dtype=width, vocab_size=512).save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.chat().tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load_language_model(tmp_path, device="cpu", blocks="files")
    inside = [p for block in model.module.model.layers for p in block.parameters()]
    assert all(p.is_meta for p in inside)
    expected = load_language_model(tmp_path, device="cpu")
    model.use_backend(expected.backend)
    held: list[int] = []
    count = lambda *_: held.append(sum(not p.is_meta for p in model.module.model.layers.parameters()))  # noqa: E731
    model.module.model.layers[1].self_attn.register_forward_hook(count)
    torch.testing.assert_close(numbers(model), numbers(expected), rtol=1e-5, atol=1e-5)
    assert held == [len(list(model.module.model.layers[1].parameters()))]
    assert all(p.is_meta for p in model.module.model.layers.parameters())
    gc.collect()


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_made_of_such_a_model_is_the_same(tied: bool, tmp_path: Path) -> None:
    """References, value models, heads at random and adapters, by blocks in files and in memory."""
    folder = written(tmp_path / "policy", tie_word_embeddings=tied)
    reward = tmp_path / "reward"
    made = load_scalar_model(folder, **HOW, seed=3)
    nn.init.normal_(made.head.weight)
    made.module.save_pretrained(reward)
    tiny.chat().tokenizer.save_pretrained(reward)
    found: list[list[Backbone]] = []
    for blocks in ("files", "memory"):
        policy = load_language_model(folder, **HOW, blocks=blocks)  # type: ignore[arg-type]
        scalar = load_scalar_model(reward, **HOW, blocks=blocks)  # type: ignore[arg-type]
        new = load_scalar_model(folder, **HOW, seed=5, blocks=blocks)  # type: ignore[arg-type]
        adapted = adapt(load_language_model(folder, **HOW, blocks=blocks), Lora(rank=2), seed=4)  # type: ignore[arg-type]
        for tensor in adapter_tensors(adapted.backbone, "policy").values():
            tensor.data += 0.01
        assert backbone_hash(adapted.backbone) == backbone_hash(policy.backbone)
        models = [policy, frozen_copy(policy), scalar, value_from(scalar), scalar_from(policy), new, adapted]
        models.append(scalar_from(adapted))
        for model in (m for m in (models[4], models[7]) if isinstance(m, ScalarModel)):
            nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(6))
        require_finite({str(i): model for i, model in enumerate(models)})
        found.append(models)
    assert backbone_hash(found[0][0].backbone) == backbone_hash(found[1][0].backbone)
    for one, two in zip(*found, strict=True):
        assert torch.equal(numbers(one), numbers(two))
    for one, two in zip(*found, strict=True):
        read_now(one.module)
        same(one.module, two.module)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    module = tiny.causal("llama", vocab_size=512)
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[2, 3] = torch.nan
    module.save_pretrained(tmp_path)
    tiny.chat().tokenizer.save_pretrained(tmp_path)
    said = []
    for blocks in ("files", "memory"):
        with pytest.raises(ModelError) as caught:
            require_finite({"policy": load_language_model(tmp_path, **HOW, blocks=blocks)})  # type: ignore[arg-type]
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "layers.1.mlp.up_proj.weight: 1 of" in said[0]


@pytest.mark.parametrize("fault", ["missing", "shape", "more"])
def test_files_that_do_not_fit_are_refused_alike(fault: str, tmp_path: Path) -> None:
    module = tiny.causal("llama", vocab_size=512)
    state = dict(module.state_dict())
    key = "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del state[key]
    elif fault == "shape":
        state[key] = state[key][:-1].clone()
    else:
        state["model.layers.2.mlp.up_proj.weight"] = state[key].clone()
    module.save_pretrained(tmp_path, state_dict=copy.copy(state))
    tiny.chat().tokenizer.save_pretrained(tmp_path)
    said = []
    for blocks in ("files", "memory"):
        with pytest.raises(ModelError) as caught:
            load_language_model(tmp_path, **HOW, blocks=blocks)  # type: ignore[arg-type]
        said.append(str(caught.value))
    assert said[0] == said[1]
