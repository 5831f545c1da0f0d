"""LoRA with every method of the table: a frozen backbone, a start at the reference, resuming after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.table import ROWS, Row
from torch import Tensor

from tiltyard.batch.compare import compare_with_ref
from tiltyard.methods import ppo, sft
from tiltyard.models.adapters import adapt, clone_adapter, copy_weights_, value_adapter, without_adapters
from tiltyard.models.backbone import Backbone
from tiltyard.models.heads import value_head
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import set_dropout
from tiltyard.models.lora import Lora, adapted_layers, adapter_tensors, base_weights, merged_adapters
from tiltyard.sampling import SampleSettings, sample
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.types import Prompt

from . import tiny

NAMES = sorted(ROWS)
LORA = Lora(rank=2, alpha=4.0)


def composed(row: Row, seed: int = 0) -> tuple[Algorithm, Models]:
    """The method over a source that draws, or over given groups; its models on one adapted backbone."""
    source = row.live() if row.live else row.source([row.groups(5, s) for s in range(6)])
    algorithm, models = row.build(source), row.models(seed)
    for name in algorithm.trains:
        if name != "value":
            adapt(models[name], LORA, name)
    if models.value is not None:
        models.value = value_adapter(models["policy"], LORA)
    if models.ref is not None:
        policy = models["policy"]
        models.ref = clone_adapter(policy, "ref") if "ref" in algorithm.mutable_models else without_adapters(policy)
    if "proposal" in models:
        models["proposal"] = clone_adapter(models["policy"], "proposal")
    return algorithm, models


def noisy(model: Backbone, name: str, size: float = 0.3) -> Backbone:
    """The adapter as if it had learnt something."""
    stream = torch.Generator().manual_seed(5)
    for key, tensor in adapter_tensors(model.backbone, name).items():
        if key.endswith("lora_B"):
            tensor.data.copy_(size * torch.randn(tensor.shape, generator=stream, dtype=tensor.dtype))
    return model


def weights(models: Models) -> dict[str, dict[str, Tensor]]:
    return {n: {k: v.clone() for k, v in base_weights(m.backbone).items()} for n, m in models.present().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_trunk_stands_still_and_the_start_is_the_reference(name: str) -> None:
    """Bit for bit: no weight of any backbone moves, and the KL to the reference is 0 before the first update."""
    algorithm, models = composed(ROWS[name])
    before = weights(models)
    if models.policy is not None:
        start = compare_with_ref(
            models.policy, models.ref or without_adapters(models.policy), models.policy.probe_forest()
        )
        assert start.kl_R.eq(0).all()
        assert start.logp_R.equal(start.ref_logp_R)
        assert models.in_memory == 1
    rows = tiny.train(algorithm, models, steps=3)
    for key in ("kl", "kl_k3", "kl_exact"):
        assert rows[0].get(key, 0.0) == pytest.approx(0, abs=1e-12)  # the sampler's states are those of single tokens
    tiny.assert_same(weights(models), before, 0)
    trained = models.get(algorithm.trains[0])
    learnt = [
        float(t.detach().abs().max()) for k, t in adapter_tensors(trained.backbone, trained.binding.trainable).items()
    ]
    assert min(learnt) > 0  # every adapter, both of its matrices


class Killed(Exception):
    """The run ends here."""


@dataclass
class KilledAt(tiny.Record):
    at: int = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == self.at:
            raise Killed


def run(row: Row, folder: Path, killed_at: int = 0) -> tuple[list[dict[str, float]], dict[str, Any]]:
    algorithm, models = composed(row, seed=3)
    record = KilledAt(at=killed_at)
    settings: dict[str, Any] = {"lr": 1e-2, "schedule": "cosine", "warmup": 2, "weight_decay": 0.1}
    try:
        tiny.fit(algorithm, models, steps=6, folder=folder, save_every=2, sinks=[record], **settings)
    except Killed:
        return record.rows, {}
    own = {n: {k: v.clone() for k, v in m.trainable.state_dict().items()} for n, m in models.present().items()}
    return record.rows, own


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Bit for bit; the checkpoint holds adapters and heads only."""
    row = ROWS[name]
    rows, whole = run(row, tmp_path / "whole")
    lost, _ = run(row, tmp_path / "cut", killed_at=5)
    rest, resumed = run(row, tmp_path / "cut")
    assert (len(lost), len(rest)) == (5, 2)
    tiny.assert_same(lost[:4] + rest, rows, 0)
    tiny.assert_same(resumed, whole, 0)
    saved = load_file(tmp_path / "whole" / "checkpoints" / "step-00000006" / "weights.safetensors")
    backbone = composed(row)[1].get(composed(row)[0].trains[0]).backbone
    assert 0 < sum(t.numel() for t in saved.values()) < sum(t.numel() for t in base_weights(backbone).values())


# --------------------------------------------------------------------------------------------------- against the merged


def policy(seed: int = 1, lora: Lora = LORA, size: float = 0.3, **shape: Any) -> LanguageModel:
    made = adapt(tiny.policy(seed, **shape), lora)
    noisy(made, "policy", size)
    return made


def gradients(model: LanguageModel, groups: Sequence[Any]) -> dict[str, Tensor]:
    """Of the summed log-probs, by name in the backbone."""
    from tiltyard.batch.forest import pack

    parameters = {n: p for n, p in model.backbone.named_parameters() if p.requires_grad}
    loss = model.logp_R(pack(groups))[0].sum()
    return dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))


def test_gradients_are_those_of_the_merged_weight_by_the_chain_rule() -> None:
    """W = W0 + s B A: dB = s dW A', dA = s B' dW, s = alpha / rank, for every linear layer of the blocks."""
    model, groups = policy(lora=Lora(rank=2, alpha=5.0)), tiny.demonstrations(5)
    found = gradients(model, groups)
    with merged_adapters(model.backbone, ("policy",)):
        model.backbone.requires_grad_(True)
        whole = gradients(model, groups)
        model.backbone.requires_grad_(False)
    layers = adapted_layers(model.backbone)
    assert len(layers) == 2 * 7
    for path, layer in layers.items():
        a, b, slope = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight, whole[f"{path}.weight"]
        tiny.assert_same(found[f"{path}.lora_B.policy.weight"], (2.5 * slope @ a.T).detach(), 1e-10)
        tiny.assert_same(found[f"{path}.lora_A.policy.weight"], (2.5 * b.T @ slope).detach(), 1e-10)


def test_merged_it_says_the_same_and_afterwards_it_is_as_before() -> None:
    model = policy()
    forest = model.probe_forest()
    with torch.no_grad():
        before, base = model.logp_R(forest)[0], without_adapters(model).logp_R(forest)[0]
        with merged_adapters(model.backbone, ("policy",)):
            assert not adapted_layers(model.backbone)
            tiny.assert_same(model.logp_R(forest)[0], before, 1e-12)
        assert model.logp_R(forest)[0].equal(before)
        assert without_adapters(model).logp_R(forest)[0].equal(base)
    assert float((before - base).abs().max()) > 0.1


@pytest.mark.parametrize("padded", [False, True])
def test_the_sampler_draws_from_the_adapted_law(padded: bool) -> None:
    from tiltyard.batch.forest import pack

    model = policy()
    if padded:
        model.force_padded("asked for by this test")
    prompts = [Prompt(id=str(i), ids=(3 + i, 4)) for i in range(4)]
    for of in (model, without_adapters(model)):
        groups = sample(of, prompts, 3, SampleSettings(max_tokens=6), seed=1)
        told = torch.tensor([x for g in groups for r in g.responses for x in r.logps or ()]).double()
        tiny.assert_same(of.logp_R(pack(groups))[0].detach(), told, 1e-6)
    assert model.packed != padded


def test_cutting_and_padding_change_nothing() -> None:
    found = []
    for how in ({}, {"tokens_per_microbatch": 1}, {"padded": True}):
        model, settings = policy(), dict(how)
        models = Models(policy=model, ref=without_adapters(model), value=value_adapter(model, LORA))
        for one in models.present().values() if settings.pop("padded", False) else ():
            one.force_padded("asked for by this test")
        rows = tiny.train(
            ppo(tiny.Given([tiny.rollouts(6, s) for s in range(3)]), beta=0.2), models, steps=3, **settings
        )
        found.append((rows, [t.detach().clone() for t in adapter_tensors(model.backbone, "policy").values()]))
    for other in found[1:]:
        tiny.assert_same(other, found[0], 1e-9)


# ------------------------------------------------------------------------------------------- references and other roles


def test_a_renewed_reference_is_a_second_adapter() -> None:
    model = policy()
    forest = model.probe_forest()
    says = lambda m: m.logp_R(forest)[0].detach()  # noqa: E731
    start = says(model)
    ref = clone_adapter(model, "ref")
    assert says(ref).equal(start)
    noisy(model, "policy", 0.5)
    assert says(ref).equal(start)
    copy_weights_(ref, model)
    assert says(ref).equal(says(model))
    assert not says(ref).equal(start)
    assert ref.parameters() == []
    assert len(model.parameters()) == 2 * len(adapted_layers(model.backbone))


def test_a_restart_gives_the_adapter_back_as_it_was_drawn() -> None:
    model = adapt(tiny.policy(1), LORA, seed=7)
    before = {k: t.detach().clone() for k, t in adapter_tensors(model.backbone, "policy").items()}
    tiny.train(sft(tiny.Given([tiny.demonstrations(4)])), Models(policy=model), steps=2)
    assert not all(t.equal(before[k]) for k, t in adapter_tensors(model.backbone, "policy").items())
    copy_weights_(model, without_adapters(model))
    assert all(t.equal(before[k]) for k, t in adapter_tensors(model.backbone, "policy").items())
    other = adapt(tiny.policy(1), LORA, seed=8)
    assert not all(t.equal(before[k]) for k, t in adapter_tensors(other.backbone, "policy").items())


def test_a_value_adapter_stands_beside_the_policys() -> None:
    """The policy's update does not move the values of an adapter of their own; those of a shared head it moves."""
    for shared in (False, True):
        model = policy()
        forest = model.probe_forest()
        law = model.logp_R(forest)[0].detach()
        value = value_head(model) if shared else value_adapter(model, LORA)
        assert model.logp_R(forest)[0].detach().equal(law)  # a new adapter is not switched on for others
        models = Models(policy=model, ref=without_adapters(model), value=value)
        torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(3))
        assert (models.shares_states("value"), models.in_memory) == (shared, 1)
        before = value.value_R(forest).detach()
        rates: Any = {"policy": 1e-2, "value": 1e-30}
        tiny.train(ppo(tiny.Given([tiny.rollouts(6)]), beta=0.2, ppo_epochs=1), models, steps=1, lr=rates)
        moved = float((value.value_R(forest).detach() - before).abs().max())
        assert moved > 1e-3 if shared else moved < 1e-20


def test_a_value_adapter_on_a_reward_model_starts_as_what_that_says() -> None:
    reward = tiny.scalar(3)
    reward.module.requires_grad_(False)
    reward.bias, reward.gain = 0.5, 2.0
    forest = tiny.policy().probe_forest()
    before = reward.value_R(forest)
    value = value_adapter(reward, LORA)
    noisy(value, "value")
    assert reward.value_R(forest).detach().equal(before)  # a new adapter is not switched on for others
    noisy(value, "value", 0.0)
    assert value.value_R(forest).detach().equal(before)
    noisy(value, "value")
    value.head.weight.data.add_(1.0)
    assert reward.value_R(forest).detach().equal(before)
    assert not value.value_R(forest).detach().equal(before)
    assert {id(p) for p in value.parameters()} == {id(p) for p in value.module.parameters() if p.requires_grad}


def test_checkpointed_blocks_are_recomputed_with_their_own_adapters() -> None:
    """Two adapters in one loss: the backward pass of the one comes after the forward pass of the other."""
    found = []
    for how in (False, True):
        model = policy(lora=Lora(rank=2, alpha=4.0, dropout=0.5))
        value = value_adapter(model, LORA)
        noisy(value, "value")
        value.head.weight.data.fill_(0.3)
        if how:
            model.checkpoint_activations()
        model.module.train()
        forest = model.probe_forest()
        torch.manual_seed(0)
        loss = model.logp_R(forest)[0].sum() + value.value_R(forest).sum()
        found.append(torch.autograd.grad(loss, [*model.parameters(), *value.parameters()]))
    tiny.assert_same(found[1], found[0], 1e-12)
    assert all(float(g.abs().max()) > 0 for g in found[0])


def test_an_adapters_dropout_is_a_setting_of_its_own() -> None:
    model = policy(lora=Lora(rank=2, dropout=0.5))
    set_dropout(model.module, 0.0)
    forest = model.probe_forest()
    model.module.train()
    one, two = (model.logp_R(forest)[0].detach() for _ in range(2))
    assert not one.equal(two)
    model.module.eval()
    assert model.logp_R(forest)[0].equal(model.logp_R(forest)[0])


def kept(model: LanguageModel, trees: int) -> int:
    """Bytes that autograd keeps for the backward pass of so many equal trees, weights left out."""
    from tiltyard.batch.forest import pack

    group = tiny.demonstrations(1)[0]
    forest, found = pack([group] * trees), {}
    weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = model.logp_R(forest)[0]
    assert out.requires_grad
    return sum(n for at, n in found.items() if at not in weights)


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_kept_for_the_backward_pass_is_linear_in_tokens(adapted: bool) -> None:
    """And checkpointed it is a fraction: the blocks' inputs."""
    sizes = {}
    for how in (False, True):
        model = policy() if adapted else tiny.policy()
        if how:
            model.checkpoint_activations()
        model.module.train()
        one, two, four = (kept(model, trees) for trees in (64, 128, 256))
        assert (four - two) == pytest.approx(2 * (two - one), rel=0.02)
        sizes[how] = four
    assert sizes[True] < 0.5 * sizes[False]
