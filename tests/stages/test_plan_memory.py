"""The estimate of memory: what autograd stores for a token is counted, and the formula must be near to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tiltyard import FunctionScorer, NativeSampler, SampleSettings, from_scratch, train_tokenizer
from tiltyard.batch.batch import Batch
from tiltyard.batch.forest import pack
from tiltyard.cli import main
from tiltyard.errors import ConfigError
from tiltyard.inputs.base import Opened
from tiltyard.methods import METHODS
from tiltyard.models.adapters import adapt
from tiltyard.models.load import PRESETS, save_model
from tiltyard.models.lora import Lora
from tiltyard.stages.footprint import Work, memory_of
from tiltyard.stages.held import held as models_held
from tiltyard.stages.lengths import Lengths, lengths_of
from tiltyard.stages.memory import (
    ALLOCATOR,
    AUTOCAST,
    UNFUSED,
    Memory,
    Shape,
    activations,
    cached,
    check_room,
    logits,
)
from tiltyard.stages.settings import method_settings
from tiltyard.training.models import Models
from tiltyard.training.self_play import SelfPlay
from tiltyard.training.source import Offline, Online
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


SMALL = Shape(1000, 8, 2, 100, 4, 16)


def test_gradients_are_made_while_activations_are_freed_unless_a_pass_has_several_micro_batches() -> None:
    def weights(tokens: int, parts: int, models: int = 1) -> float:
        work = Work({f"model {i}": SMALL for i in range(models)}, {}, tokens, parts, fused=True)
        return memory_of(work).weights

    stored = activations(SMALL, 2, 4, fused=True, recomputed=False)
    assert 0 < stored < 4000
    assert weights(2, 2) == 16_000
    assert weights(2, 1) == pytest.approx(16_000 - stored)
    assert weights(1000, 1) == 12_000
    assert weights(1000, 1, models=2) == 32_000
    assert logits(SMALL, 4, whole=True) - logits(SMALL, 4, whole=False) == 4 * 100 * 8
    plain = activations(SMALL, 10, 4, fused=True, recomputed=False)
    assert activations(SMALL, 10, 4, fused=False, recomputed=False) == pytest.approx(UNFUSED * plain)
    assert activations(SMALL, 10, 4, fused=False, recomputed=False, half=True) == pytest.approx(AUTOCAST * plain)
    assert Memory(1.0, 2.0, 3.0, 4.0).total == 6.0
    assert Memory(1.0, 2.0, 3.0, 40.0, 5.0).total == 46.0  # it samples before it trains
    assert cached(SMALL, 10, 4) == 4 * 2 * 10 * 4 * 2


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


def tree(prompt: int, *responses: int) -> Group:
    return Group(Prompt(ids=(1,) * prompt), tuple(Response(ids=(2,) * n) for n in responses))


def test_the_lengths_are_those_of_the_steps_that_will_come() -> None:
    """Counted here by drawing the steps and packing them."""
    groups = [tree(3 + i % 5, 4 + 7 * i % 11, 2 + i % 3) for i in range(23)]
    source, budget, steps = Offline(groups, 4, seed=3), 40, 9
    drawn = [Batch.of(d.groups, d.index, d.total, "cpu", budget) for d in (source(Models(), n) for n in range(steps))]
    micro = [part.forest.T for batch in drawn for part in batch.micro()]
    expected = Lengths(max(b.forest.T for b in drawn), max(micro), max(len(b.micro()) for b in drawn))
    assert lengths_of(Opened(source, steps, groups), budget) == expected
    alone = [tree(30, 20), tree(2, 3)]  # one longer than the budget
    assert lengths_of(Opened(Offline(alone, 2), 1, alone), 40) == Lengths(55, 50, 2)


def test_of_sampled_responses_the_longest_are_counted() -> None:
    prompts = [Prompt(ids=(1,) * n) for n in (5, 9, 2)]
    scorer = FunctionScorer(lambda prompt, response: 0.0)
    online = Online(prompts, NativeSampler(), scorer, 3, 2, SampleSettings(max_tokens=10))
    assert lengths_of(Opened(online, 4), 1000) == Lengths(16 + 60, 76, 1, prompt=9)
    online.tries = 2  # how many batches a step takes is not known before
    assert lengths_of(Opened(online, 4), 1000) is None
    assert lengths_of(Opened(SelfPlay([tree(2, 3)], NativeSampler(), 1, every=1), 4), 1000) is None


@pytest.mark.parametrize(
    ("scored", "models"),
    [
        ({"reward": "some/model"}, ["ref", "reward"]),
        ({"reward": "gold"}, ["ref"]),
        ({"reward": "rewards.py:concise"}, ["ref"]),
        ({"reward": {"from": "rule", "max_words": 9}}, ["ref"]),
        ({"reward": {"from": "http://127.0.0.1:1/score"}}, ["ref"]),
        (
            {"reward": {"a": {"from": "one"}, "b": {"from": "two"}, "c": {"from": "gold"}}},
            ["ref", "reward a", "reward b"],
        ),
        ({"judge": {"kind": "model", "model": "some/judge"}}, ["ref", "judge"]),
        ({"judge": {"kind": "model", "model": "policy"}}, ["ref"]),
        ({"judge": {"kind": "simulated"}}, ["ref"]),
    ],
)
def test_models_in_memory_are_those_that_are_loaded(scored: dict[str, Any], models: list[str]) -> None:
    kind = method_settings(METHODS["grpo"])
    settings = kind.model_validate_json(json.dumps({"model": "m", "prompts": {"path": "p"}, **scored}))
    held = models_held(METHODS["grpo"], settings)
    assert held.words == f"policy (trained), {', '.join(models)} (frozen)"
    assert list(held.frozen) == models
