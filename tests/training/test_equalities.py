"""What must not matter does not: how a batch is cut, ordered, packed; and what must hold at PPO's first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.errors import TiltyardError
from tiltyard.losses.advantages import mean_var, moments, whiten
from tiltyard.methods import ppo, reward_model, sft
from tiltyard.sampling import NativeSampler
from tiltyard.scoring import FunctionScorer, RewardScorer
from tiltyard.training.algorithm import Algorithm, Models, StepGroups
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt

from . import tiny

STEPS = 5
EXACT = 1e-12

Make = Callable[[Any], tuple[Algorithm, Models]]


def make_sft(source: Any) -> tuple[Algorithm, Models]:
    return sft(source), Models(policy=tiny.policy())


def make_reward(source: Any) -> tuple[Algorithm, Models]:
    return reward_model(source), Models(reward=tiny.scalar())


def make_ppo(source: Any, **settings: Any) -> tuple[Algorithm, Models]:
    models = Models(policy=tiny.policy(), ref=tiny.frozen(2), value=tiny.scalar(1))
    return ppo(source, **({"ppo_epochs": 2, "minibatches": 2, "whiten_rewards": True} | settings)), models


METHODS: dict[str, tuple[Make, list[list[Group]]]] = {
    "sft": (make_sft, [tiny.demonstrations(7, s) for s in range(STEPS)]),
    "reward": (make_reward, [tiny.rankings(7, s, tied=[0, 1, s]) for s in range(STEPS)]),
    "ppo": (make_ppo, [tiny.rollouts(7, s) for s in range(STEPS)]),
}


def curve(
    name: str, *, steps: list[list[Group]] | None = None, padded: bool = False, **settings: Any
) -> tuple[Any, Any]:
    """(metrics of every step, final parameters) of one short run."""
    make, usual = METHODS[name]
    algorithm, models = make(tiny.Given(steps or usual))
    for model in models.present().values() if padded else ():
        model.force_padded("asked for by this test")
    rows = tiny.train(algorithm, models, **({"steps": STEPS} | settings))
    return rows, {n: tiny.parameters(getattr(models, n)) for n in algorithm.trains}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [1, 40, 77])
def test_the_micro_batch_budget_changes_nothing(name: str, budget: int) -> None:
    """1: every group by itself. Counts are global, so 1 x 7 groups and 7 x 1 give one loss, gradient and metrics."""
    tiny.assert_same(curve(name, tokens_per_microbatch=budget), curve(name), EXACT)


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_the_order_of_groups_changes_nothing(name: str) -> None:
    turned = [list(reversed(step)) for step in METHODS[name][1]]
    tiny.assert_same(curve(name, steps=turned), curve(name), EXACT)


def test_the_order_of_rollouts_changes_nothing() -> None:
    """With one minibatch; with several the order decides who is in which."""
    steps = METHODS["ppo"][1]
    found = []
    for order in (steps, [list(reversed(step)) for step in steps]):
        algorithm, models = make_ppo(tiny.Given(order), minibatches=1)
        found.append((tiny.train(algorithm, models, steps=STEPS), tiny.parameters(models.policy)))
    tiny.assert_same(*found, EXACT)


@pytest.mark.parametrize("name", METHODS)
def test_packed_training_is_padded_training(name: str) -> None:
    assert tiny.policy().packed
    tiny.assert_same(curve(name, padded=True), curve(name), 1e-11)


def test_batch_of_two_lengths_is_weighted_by_tokens() -> None:
    """Methods 9.1 (5): the loss and its gradient are the token-weighted mean of two batches of one."""
    short, long = sorted(tiny.demonstrations(8), key=lambda g: g.tokens)[::7]
    a, b = len(short.responses[0].ids), len(long.responses[0].ids)
    assert a < b
    gradients = {}
    for name, groups in {"both": [short, long], "short": [short], "long": [long]}.items():
        algorithm, models = make_sft(tiny.Given([groups]))
        gradients[name] = gradient(algorithm, models, groups)
    for key, whole in gradients["both"].items():
        parts = (a * gradients["short"][key] + b * gradients["long"][key]) / (a + b)
        tiny.assert_same(whole, parts, EXACT)


def gradient(algorithm: Algorithm, models: Models, groups: list[Group]) -> dict[str, Tensor]:
    """The gradient of the step's loss that `fit` would take with one minibatch, by the pieces themselves."""
    from tiltyard.training.algorithm import Forward

    batch = Batch.of(groups, range(len(groups)), len(groups))
    for prepare in algorithm.prepare:
        batch = prepare(models, batch)
    model = models.get(algorithm.trains[0])
    model.module.zero_grad()
    per_item, _ = algorithm.loss(Forward(models, batch, algorithm.temperature), batch)
    count = algorithm.reduce.count(algorithm.loss.item, batch)
    (algorithm.reduce.sum(per_item, batch) / count).backward()
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


def test_tied_groups_count_for_nothing() -> None:
    """Rankings that are all ties change neither the loss nor a parameter; a batch of nothing else takes no step."""
    plain = [tiny.rankings(4, s) for s in range(STEPS)]
    with_ties = [[*step, *tiny.rankings(3, 50 + s, tied=range(3))] for s, step in enumerate(plain)]
    one, two = curve("reward", steps=plain), curve("reward", steps=with_ties)
    tiny.assert_same(tiny.keys(one[0], "loss", "accuracy", "groups"), tiny.keys(two[0], "loss", "accuracy", "groups"))
    tiny.assert_same(one[1], two[1], EXACT)
    nothing = [tiny.rankings(3, 9, tied=range(3))]
    (algorithm, models), record = METHODS["reward"][0](tiny.Given(nothing)), tiny.Record()
    with pytest.raises(TiltyardError, match="no step taught anything"):
        tiny.train(algorithm, models, steps=STEPS, sinks=[record])
    tiny.assert_same(tiny.parameters(models.reward), tiny.parameters(tiny.scalar()), 0)
    assert "loss" not in record.rows[0]
    assert record.rows[0]["tied_groups"] == 1


@pytest.mark.parametrize(("groups", "minibatches", "epochs"), [(7, 2, 3), (5, 3, 2), (8, 4, 1), (6, 1, 2), (3, 3, 1)])
def test_every_group_is_learnt_from_once_an_epoch(groups: int, minibatches: int, epochs: int) -> None:
    seen: list[list[str]] = []
    algorithm, models = make_ppo(tiny.Given([tiny.rollouts(groups)]), minibatches=minibatches, ppo_epochs=epochs)

    class Spy:
        needs, item = algorithm.loss.needs, algorithm.loss.item

        def __call__(self, forward: Any, batch: Batch) -> Any:
            seen.append([g.prompt.id for g in batch.groups])
            return algorithm.loss(forward, batch)

    rows = tiny.train(replace(algorithm, loss=Spy()), models, steps=2)
    assert len(seen) == 2 * epochs * minibatches
    everyone = sorted(str(i) for i in range(groups))
    for first in range(0, len(seen), minibatches):
        parts = seen[first : first + minibatches]
        assert sorted(i for part in parts for i in part) == everyone
        assert max(map(len, parts)) - min(map(len, parts)) <= 1  # the remainder is shared out, not dropped
    total = sum(len(g.responses[0].ids) for g in tiny.rollouts(groups))
    assert rows[0]["tokens"] == pytest.approx(total / minibatches)  # the mean over updates
    if minibatches > 1:
        orders = {tuple(map(tuple, seen[i : i + minibatches])) for i in range(0, len(seen), minibatches)}
        assert len(orders) > 1 or groups == 3 or 2 * epochs == 2


# ------------------------------------------------------------------------------------------------- PPO's first step


def online(batch: int = 16, scorer: Any = None) -> Online:
    g = torch.Generator().manual_seed(5)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 4, g)) for i in range(8)]
    score = scorer or FunctionScorer(lambda prompt, response: float(sum(response.ids) % 7))
    return Online(prompts, NativeSampler(), score, batch, settings=replace(tiny.Given([[]]).settings, max_tokens=8))


@pytest.mark.parametrize("value_init", ["own", "reward"])
def test_ppo_starts_on_the_policy(value_init: str) -> None:
    """Sampled for real: KL is exactly 0, the ratio 1, nothing clipped, and the sampler agrees with the trainer."""
    policy = tiny.policy()
    ref = tiny.frozen()
    reward = tiny.scalar(3)
    scorer = RewardScorer(reward) if value_init == "reward" else None
    models = Models(policy=policy, ref=ref, reward=reward, value=tiny.scalar(3 if scorer else 1))
    before = tiny.parameters(ref), tiny.parameters(reward)
    batches: list[Batch] = []
    algorithm = tiny.watch(ppo(online(scorer=scorer), ppo_epochs=1), lambda m, batch, s: batches.append(batch))
    rows = tiny.train(algorithm, models, steps=3, lr=1e-2)
    # the same weights, of which the sampler spoke token by token and the trainer all at once
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-12)
    assert rows[0]["kl_k3"] == pytest.approx(0, abs=1e-12)
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-12)
    assert rows[0]["clipped"] == 0
    assert all(row["sampler_gap"] < 1e-12 for row in rows)
    assert rows[2]["kl"] != 0
    tiny.assert_same((tiny.parameters(ref), tiny.parameters(reward)), before, 0)
    first = batches[0]
    score_B = first["score_B"] - 1.0 * (first["stopped_B"] == 0)
    tiny.assert_same(
        torch.zeros(first.forest.B).double().index_add(0, first.forest.response_R, first["reward_R"]), score_B
    )
    if (
        scorer is not None
    ):  # a value model that is the reward model: the state before the last token is scored, not after
        tiny.assert_same(models["reward"].score_B(first.forest).detach(), first["score_B"], EXACT)
    assert [g.responses[0].policy_version for g in batches[2].groups] == [2] * 16


def test_the_first_gradient_is_the_policy_gradient() -> None:
    """Methods 2.5: at pi = pi_old the surrogate's gradient is that of -mean A log pi, whatever the clip."""
    groups = tiny.rollouts(6)
    algorithm, models = make_ppo(tiny.Given([groups]), whiten_rewards=False, vf_coef=0.0, clip=1e-6)
    found = gradient(algorithm, models, groups)
    batch = Batch.of(groups, range(6), 6)
    for prepare in algorithm.prepare:
        batch = prepare(models, batch)
    policy = models["policy"]
    policy.module.zero_grad()
    logp_R, _ = policy.logp_R(batch.forest)
    (-(batch["advantage_R"] * logp_R).mean()).backward()
    plain = {n: p.grad for n, p in policy.module.named_parameters()}
    for name, part in found.items():
        tiny.assert_same(part, plain[name], 1e-10)


def test_advantages_are_whitened_over_the_step() -> None:
    groups = tiny.rollouts(9)
    algorithm, models = make_ppo(tiny.Given([groups]))
    batch = Batch.of(groups, range(9), 9, budget=30)
    for prepare in algorithm.prepare:
        batch = prepare(models, batch)
    mean, var = mean_var(*moments(batch["advantage_R"]))
    assert abs(float(mean)) < 1e-12
    assert float(var) == pytest.approx(1, abs=1e-6)
    raw = batch["return_R"] - batch["old_value_R"]  # the returns use the advantages before whitening
    tiny.assert_same(batch["advantage_R"], whiten(raw), 1e-9)


def test_a_process_without_groups_can_take_part() -> None:
    """Two processes, one group: the other runs every prepare step on nothing."""
    for make, whole in METHODS.values():
        algorithm, models = make(tiny.Given(whole))
        batch = Batch.of([], [], 1)
        for prepare in algorithm.prepare:
            batch = prepare(models, batch)
        for after in algorithm.after:
            after(models, batch, 0)
        assert set(algorithm.loss.needs) <= {*batch.columns, "logp_R", "value_R", "model_score_B"}


def test_select_may_drop_groups() -> None:
    """A source that keeps some groups only hands out places that fit what is left."""

    def shortest(groups: list[Group]) -> list[Group]:
        return sorted(groups, key=lambda g: len(g.responses[0].ids))[:5]

    source = replace(online(8), select=shortest)
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar())
    draw: StepGroups = source(models, 0)
    assert (len(draw.groups), draw.index, draw.total) == (5, [0, 1, 2, 3, 4], 5)
    rows = tiny.train(ppo(source, minibatches=2), models, steps=2)
    assert all(math.isfinite(v) for row in rows for v in row.values())
