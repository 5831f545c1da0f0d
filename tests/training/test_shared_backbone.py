"""A value head on the policy's own backbone: one pass, one backward pass, and the numbers of two models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.methods import a2c, ppo, reinforce
from tiltyard.models.heads import scalar_from, value_head
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Forward, Models
from tiltyard.training.prepare import OldLogp, Values
from tiltyard.training.source import Online
from tiltyard.types import Prompt

from . import tiny

METHODS: dict[str, Callable[..., Algorithm]] = {
    "ppo": lambda source, weight=0.3: ppo(source, beta=0.2, vf_coef=weight, ppo_epochs=2),
    "a2c": lambda source, weight=0.3: a2c(source, beta=0.2, value_coef=weight),
    "reinforce": lambda source, weight=0.3: reinforce(source, beta=0.2, value_coef=weight),
}
STEPS = [tiny.rollouts(6, s) for s in range(3)]


def actors(shared: bool, seed: int = 1) -> Models:
    policy = tiny.policy(seed)
    value = value_head(policy) if shared else scalar_from(policy)
    return Models(policy=policy, ref=tiny.frozen(2), value=value)


def prepared(algorithm: Algorithm, models: Models, groups: Sequence[Any]) -> Batch:
    batch = Batch.of(groups, range(len(groups)), len(groups))
    for prepare in algorithm.prepare:
        batch = prepare(models, batch)
    return batch


@contextmanager
def passes(model: LanguageModel) -> Iterator[list[int]]:
    """Tokens of every pass of a model's backbone."""
    seen: list[int] = []
    handle = model.backbone.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(out.last_hidden_state.shape[1]), with_kwargs=True
    )
    yield seen
    handle.remove()


@pytest.mark.parametrize("name", METHODS)
def test_without_a_value_loss_it_is_the_policy_alone(name: str) -> None:
    """Both heads stay zero: the policies are the same, step by step."""
    found = {}
    for shared in (True, False):
        models = actors(shared)
        rows = tiny.train(METHODS[name](tiny.Given(STEPS), 0.0), models, steps=3)
        found[shared] = (rows, tiny.parameters(models["policy"]))
    tiny.assert_same(found[True], found[False], 1e-11)


@pytest.mark.parametrize("name", METHODS)
def test_on_a_frozen_trunk_both_heads_learn_the_same(name: str) -> None:
    """Where the backbone stands still it does not matter whose it is."""
    found = {}
    for shared in (True, False):
        models = actors(shared)
        for model in (models["policy"], models["value"]):
            model.backbone.requires_grad_(False)
        rows = tiny.train(METHODS[name](tiny.Given(STEPS)), models, steps=3, max_grad_norm=1e9)
        found[shared] = (rows, models["value"].head.weight.detach(), models["policy"].head.weight.detach())
        assert float(models["value"].head.weight.detach().abs().max()) > 1e-3
    tiny.assert_same(found[True], found[False], 1e-11)


@pytest.mark.parametrize("name", METHODS)
def test_the_joint_gradient_is_the_sum_of_both_and_that_of_finite_differences(name: str) -> None:
    models = actors(shared=True)
    torch.nn.init.normal_(models["value"].head.weight, generator=torch.Generator().manual_seed(3))
    algorithm = METHODS[name](tiny.Given(STEPS))
    batch = prepared(algorithm, models, STEPS[0])
    parameters = [p for n in algorithm.trains for p in models[n].parameters()]
    assert len({id(p) for p in parameters}) == len(parameters)

    def loss() -> Tensor:
        return algorithm.loss(Forward(models, batch, 1.0), batch)[0].mean()

    def part(constant: str) -> tuple[Tensor, ...]:
        """With one of the two columns held fixed, each from a pass of its own."""
        forward = Forward(models, batch, 1.0)
        forward.__dict__["_policy_states"] = {}
        if constant == "value_R":
            forward.columns["value_R"] = forward.value_R.detach()
        else:
            forward.columns["logp_R"] = forward.logp_R.detach()
        found = torch.autograd.grad(algorithm.loss(forward, batch)[0].mean(), parameters, allow_unused=True)
        return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True))

    gradient = torch.autograd.grad(loss(), parameters)
    parts = [part("value_R"), part("logp_R")]
    tiny.assert_same([a + b for a, b in zip(*parts, strict=True)], list(gradient), 1e-12)
    assert all(max(float(g.abs().max()) for g in p) > 1e-3 for p in parts)
    stream = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=stream, dtype=p.dtype) for p in parameters]
    found = {}
    with torch.no_grad():
        for place in (-2, -1, 1, 2):
            for p, d in zip(parameters, direction, strict=True):
                p += place * 1e-4 * d
            found[place] = float(loss())
            for p, d in zip(parameters, direction, strict=True):
                p -= place * 1e-4 * d
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert (8 * (found[1] - found[-1]) - (found[2] - found[-2])) / 12e-4 == pytest.approx(slope, rel=1e-6)


def test_one_pass_serves_both_before_and_during_the_updates() -> None:
    """Of the policy's backbone: one pass of old log-probs and values, one an update; of the reference's one."""
    models = actors(shared=True)
    tokens = Batch.of(STEPS[0], range(6), 6).forest.T
    with passes(models["policy"]) as seen, passes(models["ref"]) as beside:
        tiny.train(METHODS["ppo"](tiny.Given(STEPS)), models, steps=1)
    assert (seen, beside) == ([tokens] * 3, [tokens])
    assert models.in_memory == 2


@pytest.mark.parametrize("name", METHODS)
def test_old_values_are_those_of_a_pass_of_their_own(name: str) -> None:
    models = actors(shared=True)
    torch.nn.init.normal_(models["value"].head.weight, generator=torch.Generator().manual_seed(3))
    algorithm = METHODS[name](tiny.Given(STEPS))
    alone = Models(policy=models.policy, value=models.value)
    for micro in (1, 8192):
        batch = Batch.of(STEPS[0], range(6), 6, budget=micro)
        expected = models["value"].value_R(batch.forest).detach()
        told = (algorithm.prepare[0](models, batch), OldLogp()(alone, batch), Values()(models, batch))
        assert ["old_logp_R" in made.columns for made in told] == [True, True, False]
        for made in told:
            tiny.assert_same(made["old_value_R"], expected, 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_cutting_and_padding_change_nothing(name: str) -> None:
    found = []
    for how in ({}, {"tokens_per_microbatch": 1}, {"tokens_per_microbatch": 40}, {"padded": True}):
        models, settings = actors(shared=True), dict(how)
        for model in models.present().values() if settings.pop("padded", False) else ():
            model.force_padded("asked for by this test")
        rows = tiny.train(METHODS[name](tiny.Given(STEPS)), models, steps=3, **settings)
        found.append((rows, tiny.parameters(models["policy"]), models["value"].head.weight.detach()))
    for other in found[1:]:
        tiny.assert_same(other, found[0], 1e-9)


def test_the_head_has_a_rate_of_its_own() -> None:
    models = actors(shared=True)
    before = tiny.parameters(models["policy"])
    rates: Any = {"policy": 1e-30, "value": 1e-2}
    tiny.train(METHODS["ppo"](tiny.Given(STEPS)), models, steps=1, lr=rates)
    tiny.assert_same(tiny.parameters(models["policy"]), before, 1e-12)
    assert float(models["value"].head.weight.detach().abs().max()) > 1e-3


class Killed(Exception):
    """The run ends here."""


def attempt(folder: Path, until: int = 0) -> Any:
    """Three answers at a step to prompts, drawn while the run goes on; killed after `until` steps."""
    stream = torch.Generator().manual_seed(0)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, stream)) for i in range(7)]
    rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
    source = Online(prompts, NativeSampler(), rule, 3, 2, SampleSettings(max_tokens=6), seed=2)
    models = actors(shared=True)

    def hook(models: Models, batch: Any, step: int) -> None:
        if until and step + 1 == until:
            raise Killed

    algorithm = tiny.watch(METHODS["ppo"](source), hook)
    try:
        tiny.fit(algorithm, models, steps=6, lr=1e-2, folder=folder, save_every=2)
    except Killed:
        return None
    return tiny.parameters(models["policy"]), models["value"].head.weight.detach()


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = attempt(tmp_path / "whole")
    assert attempt(tmp_path / "cut", until=5) is None
    tiny.assert_same(attempt(tmp_path / "cut"), whole, 0)


def test_checkpoints_hold_the_trunk_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    attempt(tmp_path)
    names = load_file(tmp_path / "checkpoints" / "step-00000006" / "weights.safetensors").keys()
    assert [n for n in names if n.startswith("value.")] == ["value.score.weight"]
