"""`fit` against the flat references, number for number over 20 steps in float64: every metric, every parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference import dpo as ref_dpo
from tests.reference import ppo as ref_ppo
from tests.reference import reward as ref_reward
from tests.reference import sft as ref_sft

from tiltyard.methods import dpo, ipo, ppo, reward_model, sft, slic
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.refcache import cache_ref_logps
from tiltyard.training.source import generator
from tiltyard.types import Group, Preference, Prompt, Response, ranks_of

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
        [(list(g.prompt.ids), [list(r.ids) for r in g.responses], list(ranks_of(g.preference) or ())) for g in step]
        for step in steps
    ]
    theirs, final = ref_reward.run(plain_copy(model), batches, lr=1e-2)
    ours = tiny.train(reward_model(tiny.Given(steps)), Models(reward=model))
    for name in ("loss", "accuracy", "groups", "grad_norm"):
        tiny.assert_same([row[name] for row in ours], [float(row[name]) for row in theirs])
    assert {row["groups"] for row in ours} == {5.0}
    assert {row["tied_groups"] for row in ours} == {1 / 6}
    tiny.assert_same(tiny.parameters(model), final)


LABELS = (1.0, 0.0, 0.8, None, 0.35, 0.5)  # chosen, rejected, votes, a tie, votes for the other, an even vote


def pairs(seed: int) -> list[Group]:
    """Six pairs with the labels above; the two answers of a pair differ in length."""
    g = torch.Generator().manual_seed(seed)
    groups = []
    for i, q in enumerate(LABELS):
        prompt = Prompt(id=str(i), ids=tiny.ids(tiny.length(1, 9, g), g))
        first, second = ((2 + j, *tiny.ids(tiny.length(0, 4, g) + 3 * j, g), tiny.EOS) for j in (0, 1))
        ranks = {True: (1, 2), False: (2, 1)}[q > 0.5] if q not in (None, 0.5) else (1, 1)
        shares = None if q in (None, 0.0, 1.0) else (q, 1 - q)
        groups.append(
            Group(
                prompt,
                (Response(ids=first), Response(ids=second)),
                preference=Preference(ranks=ranks) if shares is None else Preference(shares=shares),
            )
        )
    return groups


def as_pairs(groups: list[Group]) -> list[tuple[Any, ...]]:
    return [
        (list(group.prompt.ids), *(list(r.ids) for r in group.responses), q)
        for group, q in zip(groups, LABELS, strict=True)
    ]


Method = Callable[[Any], Algorithm]
DIRECT: dict[str, tuple[Method, dict[str, Any]]] = {
    "dpo": (lambda s: dpo(s, beta=0.3), {"kind": "dpo", "strength": 0.3}),
    "conservative": (
        lambda s: dpo(s, beta=0.3, noise=0.15),
        {"kind": "dpo", "strength": 0.3, "noise": 0.15},
    ),
    "robust": (
        lambda s: dpo(s, beta=0.3, noise=0.15, noise_kind="robust"),
        {"kind": "dpo", "strength": 0.3, "noise": 0.15, "noise_kind": "robust"},
    ),
    "ipo": (lambda s: ipo(s, beta=0.2, length_norm=False), {"kind": "ipo", "strength": 0.2}),
    "ipo averaged": (lambda s: ipo(s, beta=0.2), {"kind": "ipo averaged", "strength": 0.2}),
    "ipo averaged, robust": (
        lambda s: ipo(s, beta=0.2, noise=0.1, noise_kind="robust"),
        {"kind": "ipo averaged", "strength": 0.2, "noise": 0.1, "noise_kind": "robust"},
    ),
    "slic": (lambda s: slic(s, lam=0.0, delta=3.0), {"kind": "slic", "strength": 3.0}),
}
IMPLICIT = {"dpo": 0.3, "ipo": 0.2, "ipo averaged": 0.2, "slic": 1.0}  # what our metric multiplies h by


@pytest.fixture(scope="module")
def direct_runs() -> Callable[[str], tuple[list[dict[str, Any]], dict[str, Any]]]:
    """The flat reference's run of each case, made once; policy and reference begin apart."""
    known: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}

    def run(case: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        if case not in known:
            policy, ref = plain_copy(tiny.policy()), plain_copy(tiny.frozen(2))
            steps = [as_pairs(pairs(seed)) for seed in range(STEPS)]
            known[case] = ref_dpo.run(policy, ref, steps, lr=3e-3, **DIRECT[case][1])
        return known[case]

    return run


@pytest.mark.parametrize("held", ["live", "cached", "from a file"])
@pytest.mark.parametrize("case", DIRECT)
def test_direct(case: str, held: str, direct_runs: Any, tmp_path: Path) -> None:
    """Every loss, norm and final parameter, whether the reference is in memory or was asked once before."""
    method, names = DIRECT[case]
    theirs, final = direct_runs(case)
    steps, policy, ref = [pairs(seed) for seed in range(STEPS)], tiny.policy(), tiny.frozen(2)
    models = Models(policy=policy, ref=ref)
    if held != "live":
        everything = [group for step in steps for group in step]
        cache = cache_ref_logps(ref, everything, tmp_path if held == "from a file" else None, budget=64)
        if held == "from a file":
            cache = cache_ref_logps(ref, everything, tmp_path)
            assert not cache.fresh
        models = Models(policy=policy, ref_cache=cache)
    ours = tiny.train(method(tiny.Given(steps)), models, lr=3e-3)
    for own, name in {"loss": "loss", "grad_norm": "grad_norm", "accuracy": "accuracy", "groups": "pairs"}.items():
        tiny.assert_same([row[own] for row in ours], [float(row[name]) for row in theirs])
    scale = IMPLICIT[names["kind"]]
    tiny.assert_same([row["margin"] for row in ours], [scale * row["margin"] for row in theirs])
    assert {row["tied_groups"] for row in ours} == {1 / 6}
    tiny.assert_same(tiny.parameters(policy), final)


def test_direct_runs_are_seven_different_ones(direct_runs: Any) -> None:
    """No two cases end alike, so agreeing with one is not agreeing with another."""
    ends = [direct_runs(case)[1]["lm_head.weight"] for case in DIRECT]
    for i, one in enumerate(ends):
        assert all(float((one - other).abs().max()) > 1e-4 for other in ends[:i])


def test_direct_without_the_ties_is_the_same(direct_runs: Any) -> None:
    """Ties are read and left out of the mean: the run without them is the same run, and one counted in is another."""
    theirs, final = direct_runs("dpo")
    for q, alike in ((None, True), (0.5, False)):
        steps = [pairs(seed) for seed in range(STEPS)]
        for step in steps:
            tied = step.pop(LABELS.index(None))
            if q is not None:
                step.append(replace(tied, preference=Preference(shares=(q, 1 - q))))
        policy = tiny.policy()
        ours = tiny.train(dpo(tiny.Given(steps), beta=0.3), Models(policy=policy, ref=tiny.frozen(2)), lr=3e-3)
        gap = max(float((tiny.parameters(policy)[n] - p).abs().max()) for n, p in final.items())
        assert (gap < 1e-10) == alike
        assert (abs(ours[0]["loss"] - theirs[0]["loss"]) < 1e-10) == alike


CASES: dict[str, dict[str, Any]] = {
    "plain": {"ppo_epochs": 1, "minibatches": 1, "missing_eos": "replace"},
    "minibatches": {"ppo_epochs": 2, "minibatches": 2, "missing_eos": "replace"},
    "subtract": {"ppo_epochs": 4, "minibatches": 2, "missing_eos": "subtract", "missing_eos_penalty": 0.7},
    "tight value clip": {"ppo_epochs": 3, "minibatches": 2, "missing_eos": "none", "value_clip": 0.01, "vf_coef": 0.5},
    "not whitened": {"ppo_epochs": 2, "minibatches": 2, "missing_eos": "subtract", "whiten_advantages": False},
    "discounted": {"ppo_epochs": 2, "minibatches": 4, "missing_eos": "replace", "gamma": 0.97, "lam": 0.8},
    "tight clip": {"ppo_epochs": 4, "minibatches": 2, "missing_eos": "replace", "clip": 0.02, "beta": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_ppo(case: str) -> None:
    settings, seed, n = CASES[case], 3, 8
    steps = [tiny.rollouts(n, s) for s in range(STEPS)]
    policy, value, ref = tiny.policy(), tiny.scalar(1), tiny.frozen(2)
    theirs, final = reference(settings, steps, (policy, ref, value), order(seed))
    models = Models(policy=policy, ref=ref, value=value)
    rates = {"policy": 1e-3, "value": 3e-3}
    ours = tiny.train(ppo(tiny.Given(steps), **({"beta": 0.05} | settings)), models, lr=rates, seed=seed)
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
    names = {"ppo_epochs": "epochs", "missing_eos_penalty": "penalty", "whiten_advantages": "whiten"}
    own = {names.get(k, k): v for k, v in ({"beta": 0.05} | settings).items()}
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
