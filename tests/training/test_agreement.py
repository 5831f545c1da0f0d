"""`fit` against the flat references, number for number over 20 steps in float64: every metric, every parameter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.reference import ppo as ref_ppo
from tests.reference import reward as ref_reward
from tests.reference import sft as ref_sft

from tiltyard.algorithms import ppo, reward_model, sft
from tiltyard.training.algorithm import Models
from tiltyard.training.source import generator
from tiltyard.types import Group

from . import tiny

STEPS = 20


def as_rollout(group: Group) -> ref_ppo.Rollout:
    (response,), (score,) = group.responses, group.scores or ()
    return ref_ppo.Rollout(list(group.prompt.ids), list(response.ids), response.finish, score)


def test_sft() -> None:
    steps = [tiny.demonstrations(5, seed) for seed in range(STEPS)]
    model = tiny.policy()
    theirs, final = ref_sft.run(
        plain_copy(model),
        [[(list(g.prompt.ids), list(g.responses[0].ids)) for g in step] for step in steps],
        lr=1e-2,
    )
    ours = tiny.train(sft(tiny.Given(steps)), Models(policy=model))
    for name in ("loss", "tokens", "grad_norm"):
        tiny.assert_same([row[name] for row in ours], [float(row[name]) for row in theirs])
    tiny.assert_same(tiny.parameters(model), final)
    assert ours[-1]["loss"] < ours[0]["loss"]


def test_sft_moves_only_a_little_without_clipping() -> None:
    """The clip is really at work above: without it the run is another one."""
    steps = [tiny.demonstrations(5, seed) for seed in range(STEPS)]
    clipped, free = tiny.policy(), tiny.policy()
    one = tiny.train(sft(tiny.Given(steps)), Models(policy=clipped))
    two = tiny.train(sft(tiny.Given(steps)), Models(policy=free), max_grad_norm=1e9)
    assert max(row["grad_norm"] for row in one) > 1
    assert abs(one[-1]["loss"] - two[-1]["loss"]) > 1e-6


def test_reward() -> None:
    steps = [tiny.rankings(6, seed, tied=[seed % 6]) for seed in range(STEPS)]
    model = tiny.scalar()
    batches = [
        [(list(g.prompt.ids), [list(r.ids) for r in g.responses], list(g.ranks or ())) for g in step] for step in steps
    ]
    theirs, final = ref_reward.run(plain_copy(model), batches, lr=1e-2)
    ours = tiny.train(reward_model(tiny.Given(steps)), Models(reward=model))
    for name in ("loss", "accuracy", "groups", "grad_norm"):
        tiny.assert_same([row[name] for row in ours], [float(row[name]) for row in theirs])
    assert {row["groups"] for row in ours} == {5.0}
    assert {row["tied_groups"] for row in ours} == {1 / 6}
    tiny.assert_same(tiny.parameters(model), final)


CASES: dict[str, dict[str, Any]] = {
    "plain": {"ppo_epochs": 1, "minibatches": 1, "missing_eos": "replace"},
    "minibatches": {"ppo_epochs": 2, "minibatches": 2, "missing_eos": "replace"},
    "subtract": {"ppo_epochs": 4, "minibatches": 2, "missing_eos": "subtract", "missing_eos_penalty": 0.7},
    "tight value clip": {"ppo_epochs": 3, "minibatches": 2, "missing_eos": "none", "value_clip": 0.01, "vf_coef": 0.5},
    "not whitened": {"ppo_epochs": 2, "minibatches": 2, "missing_eos": "subtract", "whiten_advantages": False},
    "discounted": {"ppo_epochs": 2, "minibatches": 4, "missing_eos": "replace", "gamma": 0.97, "lam": 0.8},
    "tight clip": {"ppo_epochs": 4, "minibatches": 2, "missing_eos": "replace", "clip": 0.02, "kl": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_ppo(case: str) -> None:
    settings, seed, n = CASES[case], 3, 8
    steps = [tiny.rollouts(n, s) for s in range(STEPS)]
    policy, value, ref = tiny.policy(), tiny.scalar(1), tiny.frozen(2)
    theirs, final = reference(settings, steps, (policy, ref, value), order(seed))
    models = Models(policy=policy, ref=ref, value=value)
    rates = {"policy": 1e-3, "value": 3e-3}
    ours = tiny.train(ppo(tiny.Given(steps), **({"kl": 0.05} | settings)), models, lr=rates, seed=seed)
    renamed = {"score": "score_after_rule", "kl": "kl", "grad_norm": "grad_norm"}
    for name, own in renamed.items():
        tiny.assert_same([row[own] for row in ours], [row[name] for row in theirs])
    sizes = [minibatch_tokens(step, s, settings, seed) for s, step in enumerate(steps)]
    for name, own in {"loss": "loss", "pg_loss": "policy_loss", "vf_loss": "value_loss", "ratio": "ratio"}.items():
        expected = [  # ours: the mean over all tokens that were learnt from; theirs: one mean an update
            sum(u[name] * t for u, t in zip(row["updates"], tokens, strict=True)) / sum(tokens)
            for row, tokens in zip(theirs, sizes, strict=True)
        ]
        tiny.assert_same([row[own] for row in ours], expected)
    tiny.assert_same({"policy": tiny.parameters(policy), "value": tiny.parameters(value)}, final)
    assert ours[0]["kl"] != 0
    if "clip" in case:
        assert max(row["clipped"] for row in ours) > 0 or "value" in case


def reference(
    settings: dict[str, Any], steps: list[list[Group]], models: tuple[Any, Any, Any], order: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The flat reference on copies of the models, its arguments under its own names."""
    names = {"kl": "beta", "ppo_epochs": "epochs", "missing_eos_penalty": "penalty", "whiten_advantages": "whiten"}
    own = {names.get(k, k): v for k, v in ({"kl": 0.05} | settings).items()}
    batches = [[as_rollout(g) for g in step] for step in steps]
    return ref_ppo.run(*map(plain_copy, models), batches, order, lr=1e-3, value_lr=3e-3, **own)


def plain_copy(model: Any) -> Any:
    """The model's weights in a module that runs as transformers made it."""
    with model.plain():
        return copy.deepcopy(model.module)


def order(seed: int) -> Any:
    def permutation(step: int, epoch: int, n: int) -> list[int]:
        return torch.randperm(n, generator=generator(seed, 3, step, epoch)).tolist()

    return permutation


def minibatch_tokens(groups: list[Group], step: int, settings: dict[str, Any], seed: int) -> list[int]:
    """Tokens of every minibatch of a step, in the order in which they are learnt from."""
    counts = [len(g.responses[0].ids) for g in groups]
    size = len(groups) // settings["minibatches"]
    found = []
    for epoch in range(settings["ppo_epochs"]):
        where = order(seed)(step, epoch, len(groups))
        found += [sum(counts[i] for i in part) for part in (where[i : i + size] for i in range(0, len(where), size))]
    return found
