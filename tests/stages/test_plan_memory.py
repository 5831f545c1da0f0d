"""The estimate of memory: what autograd stores for a token is counted, and the formula must be near to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tiltyard import from_scratch, train_tokenizer
from tiltyard.batch.forest import pack
from tiltyard.cli import main
from tiltyard.errors import ConfigError
from tiltyard.models.adapters import adapt
from tiltyard.models.load import PRESETS, save_model
from tiltyard.models.lora import Lora
from tiltyard.stages.memory import ALLOCATOR, UNFUSED, Memory, Shape, activations, check_room, logits, trained_weights
from tiltyard.types import Group, Prompt, Response

PRESET = "1m"
TOKENIZER = train_tokenizer((f"word{i} and number {i * 7}" for i in range(2000)), 512)


def stored_bytes(way: str) -> tuple[float, Shape, int]:
    """Bytes that autograd stores for a forward pass, weights left out; the model's shape; the tokens of the pass."""
    model = from_scratch(PRESET, TOKENIZER)
    if way == "lora":
        adapt(model, Lora())
    if way == "recomputed":
        model.checkpoint_activations()
    model.module.train()
    ids = [tuple((7 * i + 3 * k) % 300 + 5 for k in range(96)) for i in range(24)]
    trees = [Group(Prompt(ids=x[:64]), (Response(ids=x), Response(ids=x[::-1]))) for x in ids]
    forest = pack(trees)
    weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        out = model.logp_R(forest)[0]  # nothing of it is freed while it is counted
    del out
    shape = Shape.of(len(TOKENIZER), *PRESETS[PRESET])
    return sum(n for at, n in kept.items() if at not in weights), shape, len(forest.ids_T)


@pytest.mark.parametrize("way", ["whole", "lora"])
def test_what_the_fused_blocks_store_is_what_the_plan_says(way: str) -> None:
    from tiltyard.kernels import backend

    if backend.expected(None, dtype="float32", device="cpu", supported=True).ops != "cpu_c":
        pytest.skip("no compiler: the blocks are not fused here")
    found, shape, tokens = stored_bytes(way)
    expected = activations(shape, tokens, 4, fused=True, recomputed=False) / ALLOCATOR
    assert expected / 1.3 < found < expected * 1.3


def test_recomputed_blocks_store_their_inputs() -> None:
    found, shape, tokens = stored_bytes("recomputed")
    assert found < activations(shape, tokens, 4, fused=True, recomputed=True)


def test_the_parameters_are_those_of_the_model() -> None:
    model = from_scratch(PRESET, TOKENIZER)
    shape = Shape.of(len(TOKENIZER), *PRESETS[PRESET])
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.module.parameters()), rel=0.02)


def test_gradients_are_made_while_activations_are_freed_unless_a_pass_has_several_micro_batches() -> None:
    shape = Shape(1000, 8, 2, 100, 4, 16)
    assert trained_weights(shape, 4, 0.0, 1, several=True) == 16_000
    assert trained_weights(shape, 4, 1500.0, 1, several=False) == 12_000 + 2500
    assert trained_weights(shape, 4, 9999.0, 2, several=False) == 24_000
    assert logits(shape, 4, whole=True) - logits(shape, 4, whole=False) == 4 * 100 * 8
    plain = activations(shape, 10, 4, fused=True, recomputed=False)
    assert activations(shape, 10, 4, fused=False, recomputed=False) == pytest.approx(UNFUSED * plain)
    assert Memory(1.0, 2.0, 3.0, 4.0).total == 10.0


def test_too_little_memory_is_told_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights alone that do not fit end with status 2, an estimate that is above what is free is a line of the plan."""
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "one line of text"}\n' * 40)
    model = from_scratch(PRESET, TOKENIZER)
    save_model(model, tmp_path / "model")
    words = ["train", "pretrain", f"model={tmp_path / 'model'}", f"data={data}", "steps=1", "device=cpu"]
    words += ["--runs", str(tmp_path / "runs"), "--dry-run"]
    monkeypatch.setattr("tiltyard.stages.plan.free_memory", lambda _: 2**20)
    assert main(words) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "pretrain.model: there is too little memory for the models of this stage got: 1 MiB are free" in told
    assert "set lora" in told
    monkeypatch.setattr("tiltyard.stages.plan.free_memory", lambda _: 16 * 2**20)
    assert main(words) == 0
    assert "are needed and 16 MiB are free: lower tokens_per_microbatch" in " ".join(capsys.readouterr().out.split())


def test_room() -> None:
    memory = Memory(100.0 * 2**20, 50.0 * 2**20, 0.0, 0.0)
    assert check_room(memory, 200 * 2**20, "sft.model", exact=True) == []
    for free, exact in ((120, True), (90, False)):
        [line] = check_room(memory, free * 2**20, "sft.model", exact=exact)
        assert f"about 150 MiB are needed and {free} MiB are free" in line
    with pytest.raises(ConfigError, match=r"sft.model[\s\S]*got: +90 MiB[\s\S]*expected: 100 MiB"):
        check_room(memory, 90 * 2**20, "sft.model", exact=True)
