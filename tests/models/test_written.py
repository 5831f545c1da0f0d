"""A folder that holds other numbers than the model that it was written of is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tiltyard.errors import ModelError
from tiltyard.models import saving_spread
from tiltyard.models.backbone import Backbone
from tiltyard.models.heads import scalar_from
from tiltyard.models.load import load_language_model, save_model
from tiltyard.models.saving import save_spread
from tiltyard.models.written import check_written

from . import tiny


def test_what_was_written_is_what_was_trained(tmp_path: Path) -> None:
    policy = tiny.language("llama", vocab_size=300)
    for name, model in (("policy", policy), ("scalar", scalar_from(policy))):
        folder = tmp_path / name
        with torch.no_grad():
            model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        save_model(model, folder)
        gap = check_written(model, folder, torch.float32)
        assert gap is not None
        assert gap < 1e-5
        with torch.no_grad():
            model.head.weight.mul_(1.5)
        with pytest.raises(ModelError, match="not the one that was trained"):
            check_written(model, folder, torch.float32)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tensor_by_tensor_gives_the_same_files(family: str, tmp_path: Path) -> None:
    """As a model that is spread is written: byte for byte what transformers and safetensors write, or nothing."""
    tiny.causal(family, dtype=torch.bfloat16, vocab_size=512).save_pretrained(tmp_path / "source")
    tiny.chat().tokenizer.save_pretrained(tmp_path / "source")
    policy = load_language_model(tmp_path / "source", device="cpu")
    models: list[Backbone] = [policy]
    if "moe" not in family and policy.packed:
        models.append(scalar_from(policy))
    for model in models:
        one, two = tmp_path / f"{type(model).__name__}-1", tmp_path / f"{type(model).__name__}-2"
        save_model(model, one)
        wrote = save_spread(model, two)
        assert wrote or family not in ("llama", "llama_tied", "qwen2", "qwen3", "mistral")
        if wrote:
            assert {f.name: f.read_bytes() for f in two.iterdir()} == {f.name: f.read_bytes() for f in one.iterdir()}


def test_a_large_model_is_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving_spread, "LARGEST", "20KB")
    policy = tiny.language("llama", vocab_size=300)
    assert save_spread(policy, tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in policy.module.state_dict().items():
        assert torch.equal(again[name], tensor)
