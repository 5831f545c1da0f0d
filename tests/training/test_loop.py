"""The loop's own promises: rates, weight decay, frozen layers, numbers that are not finite, pieces that do not fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiltyard.batch.batch import Batch
from tiltyard.data import group_from_dict
from tiltyard.errors import CompositionError, ConfigError, ModelError, NonFiniteError
from tiltyard.methods import ppo, reward_model, sft
from tiltyard.models.finite import require_finite
from tiltyard.models.load import freeze_bottom
from tiltyard.sampling import NativeSampler, SampleSettings, sample
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Mean, Models
from tiltyard.training.fit import fit
from tiltyard.training.hooks import UpdateKL
from tiltyard.training.optimizer import lr_factor, make_optimizer
from tiltyard.training.prepare import Gae, OldLogp, TokenRewards, Values
from tiltyard.training.run import Run, ValueOptimizer
from tiltyard.training.source import EpochShuffle, Offline, Online, generator
from tiltyard.types import Prompt

from . import tiny


def sft_run(**settings: Any) -> tuple[list[dict[str, float]], Models]:
    models = Models(policy=tiny.policy())
    return tiny.train(sft(tiny.Given([tiny.demonstrations(4)])), models, **settings), models


# ----------------------------------------------------------------------------------------------------- learning rates


def test_constant_rate() -> None:
    assert {lr_factor(s, tiny.run(steps=9)) for s in range(9)} == {1.0}


def test_warmup_is_a_straight_line_to_the_peak() -> None:
    run = tiny.run(steps=100, warmup=4)
    assert [lr_factor(s, run) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    share = tiny.run(steps=100, warmup=0.04)
    assert [lr_factor(s, share) for s in range(100)] == [lr_factor(s, run) for s in range(100)]


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.55), ("cosine", 0.55)])
def test_schedules_fall_from_the_peak_to_the_last_share(schedule: str, middle: float) -> None:
    run = tiny.run(steps=1000, schedule=schedule, final_lr=0.1)
    factors = [lr_factor(s, run) for s in range(1000)]
    assert factors[0] == 1
    assert factors[500] == pytest.approx(middle)
    assert factors[999] == pytest.approx(0.1, abs=1e-3)
    assert factors == sorted(factors, reverse=True)
    expected = 0.1 + 0.9 * (0.5 * (1 + math.cos(math.pi / 4)) if schedule == "cosine" else 0.75)
    assert factors[250] == pytest.approx(expected)


def test_each_step_is_taken_at_its_rate() -> None:
    rows, _ = sft_run(steps=6, schedule="linear", warmup=2, lr=3e-3)
    run = tiny.run(steps=6, schedule="linear", warmup=2)
    assert [row["lr"] for row in rows] == pytest.approx([3e-3 * lr_factor(s, run) for s in range(6)])


def test_an_optimizer_of_ones_own_keeps_its_peak() -> None:
    """The schedule is a share of the peak, not of the step before."""
    models = Models(policy=tiny.policy())
    own = torch.optim.SGD(models.policy.parameters(), lr=0.5)
    record = tiny.Record()
    run = tiny.run(steps=5, schedule="linear", final_lr=0.0)
    fit(sft(tiny.Given([tiny.demonstrations(4)])), models, run, own, sinks=[record])
    assert [row["lr"] for row in record.rows] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


# ------------------------------------------------------------------------------------------------------- who is moved


def test_weight_decay_is_on_matrices_only() -> None:
    models = Models(policy=tiny.policy())
    groups = make_optimizer(models, ("policy",), tiny.run(steps=1, weight_decay=0.1)).param_groups
    by_decay = {g["weight_decay"]: g["params"] for g in groups}
    assert {p.ndim for p in by_decay[0.1]} == {2}
    assert {p.ndim for p in by_decay[0.0]} == {1}
    assert sum(map(len, by_decay.values())) == len(list(models.policy.module.parameters()))


def test_weight_decay_is_decoupled() -> None:
    """AdamW: what decay adds to one step is exactly -lr * decay * weight, and nothing on norms."""
    start = tiny.parameters(tiny.policy())
    plain, decayed = (sft_run(steps=1, lr=1e-2, weight_decay=w)[1].policy for w in (0.0, 0.5))
    for name, p in decayed.module.named_parameters():
        extra = -1e-2 * 0.5 * start[name] if p.ndim == 2 else torch.zeros_like(p)
        tiny.assert_same(p.detach() - tiny.parameters(plain)[name], extra, 1e-12)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_frozen_layers_stay(layers: int) -> None:
    models = Models(policy=tiny.policy())
    freeze_bottom(models.policy, layers)
    before = tiny.parameters(models.policy)
    tiny.train(sft(tiny.Given([tiny.demonstrations(4)])), models, steps=3, weight_decay=0.1)
    for name, now in tiny.parameters(models.policy).items():
        below = layers > 0 and ("embed" in name or any(f"layers.{i}." in name for i in range(layers)))
        assert torch.equal(now, before[name]) is below, name


def test_nothing_to_train() -> None:
    models = Models(policy=tiny.frozen())
    with pytest.raises(ConfigError, match="nothing to train"):
        tiny.train(sft(tiny.Given([tiny.demonstrations(2)])), models)


@pytest.mark.parametrize(("steps", "said"), [(0, "no steps"), (-1, "expected: int >= 0")])
def test_no_steps_is_an_error(steps: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sft_run(steps=steps)


def test_the_value_model_may_have_a_rate_of_its_own() -> None:
    models = Models(policy=tiny.policy(), value=tiny.scalar())
    for value_lr, rate in ((0.0, 1e-3), (5e-3, 5e-3)):
        run = Run(steps=1, lr=1e-3, optimizer=ValueOptimizer(value_lr=value_lr))
        groups = make_optimizer(models, ("policy", "value"), run).param_groups
        assert {group["lr"] for group in groups} == {1e-3, rate}


def test_a_run_explains_a_wrong_key() -> None:
    """Keys of records go without the record's name; a slip, an old name and a wrong record are told."""
    assert Run(steps=1, warmup=0.5).optimizer.warmup == Run(steps=1, optimizer={"warmup": 0.5}).optimizer.warmup == 0.5
    for key, said in (
        ("warmpu", "did you mean 'warmup'"),
        ("micro_tokens", "it is called 'tokens_per_microbatch' now"),
    ):
        with pytest.raises(ConfigError, match=said):
            Run(steps=1, **{key: 1})
    with pytest.raises(ConfigError, match=r"it is 'models\.dropout'"):
        Run(steps=1, optimizer={"dropout": 0.1})
    with pytest.raises(ConfigError, match="set twice"):
        Run(steps=1, warmup=0.5, optimizer={"warmup": 0.5})


def test_gradients_left_by_the_caller_do_not_count() -> None:
    clean, dirty = Models(policy=tiny.policy()), Models(policy=tiny.policy())
    for p in dirty.policy.module.parameters():
        p.grad = torch.ones_like(p)
    for models in (clean, dirty):
        tiny.train(sft(tiny.Given([tiny.demonstrations(3)])), models, steps=2)
    tiny.assert_same(tiny.parameters(dirty.policy), tiny.parameters(clean.policy), 0)


def test_dropout_depends_on_seed_and_step_alone() -> None:
    """Not on what was drawn before, or a resumed run would drop other units; and the caller's stream is left alone."""

    def run(seed: int, used: int) -> Any:
        torch.manual_seed(used)
        state = torch.random.get_rng_state()
        model = tiny.policy(attention_dropout=0.3)
        torch.random.set_rng_state(state)
        method = sft(tiny.Given([tiny.demonstrations(4)]))
        rows = tiny.train(method, Models(policy=model), steps=3, seed=seed, dropout="model")
        assert torch.equal(torch.random.get_rng_state(), state)
        return rows

    assert run(0, used=1) == run(0, used=2)
    assert run(0, used=1) != run(1, used=1)
    model = tiny.policy(attention_dropout=0.3)  # and `fit` switches it off unless it is asked for
    rows = tiny.train(sft(tiny.Given([tiny.demonstrations(4)])), Models(policy=model), steps=3)
    assert rows == sft_run(steps=3)[0]


# -------------------------------------------------------------------------------------------------------- not finite


def break_at(algorithm: Algorithm, step: int, value: float) -> Algorithm:
    """The same method; the first item of its loss becomes `value` at one update."""
    calls = iter(range(10**6))

    class Broken:
        needs, item = algorithm.loss.needs, algorithm.loss.item

        def __call__(self, forward: Any, batch: Any) -> Any:
            per_item, metrics = algorithm.loss(forward, batch)
            spoil = torch.zeros_like(per_item)
            spoil[0] = value if next(calls) == step else 0.0
            return per_item + spoil, metrics

    return replace(algorithm, loss=Broken())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(value: float, tmp_path: Path) -> None:
    """Three steps are taken, the fourth is not: the parameters are those of step 3, the groups are kept."""
    groups = [tiny.demonstrations(4, s) for s in range(6)]
    good = Models(policy=tiny.policy())
    tiny.train(sft(tiny.Given(groups)), good, steps=3)
    bad = Models(policy=tiny.policy())
    with pytest.raises(NonFiniteError, match="step was not taken") as caught:
        tiny.train(break_at(sft(tiny.Given(groups)), 3, value), bad, steps=6, folder=tmp_path, save_every=2)
    tiny.assert_same(tiny.parameters(bad.policy), tiny.parameters(good.policy), 0)
    saved = list(tmp_path.glob("nonfinite-step-*.jsonl"))
    assert len(saved) == 1
    assert str(saved[0]) in str(caught.value)
    assert [group_from_dict(json.loads(line)) for line in saved[0].read_text().splitlines()] == groups[3]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert all(p.grad is None for p in bad.policy.module.parameters())


def test_a_score_that_is_not_a_number() -> None:
    """It comes from outside the loss; whitening spreads it over the step; no parameter moves."""
    groups = tiny.rollouts(4)
    groups[1] = replace(groups[1], scores=(math.nan,))
    models = Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar())
    before = tiny.parameters(models.policy), tiny.parameters(models.value)
    with pytest.raises(NonFiniteError):
        tiny.train(ppo(tiny.Given([groups])), models)
    tiny.assert_same((tiny.parameters(models.policy), tiny.parameters(models.value)), before, 0)


def test_a_gradient_that_is_not_finite() -> None:
    """The loss is finite, its derivative is not: sqrt at 0."""

    class Sqrt:
        needs, item = ("logp_R",), "R"

        def __call__(self, forward: Any, batch: Any) -> Any:
            return torch.sqrt(forward.logp_R - forward.logp_R.detach()), {}

    models = Models(policy=tiny.policy())
    before = tiny.parameters(models.policy)
    with pytest.raises(NonFiniteError):
        tiny.train(Algorithm("odd", tiny.Given([tiny.demonstrations(2)]), Sqrt()), models)  # type: ignore[arg-type]
    tiny.assert_same(tiny.parameters(models.policy), before, 0)


# ------------------------------------------------------------------------------------------------- pieces that do fit


def test_a_missing_column_is_named_when_the_method_is_built() -> None:
    source = tiny.Given([tiny.rollouts(2)])
    whole = ppo(source)
    alone = OldLogp()  # says nothing of a reference
    instead = {"ref_logp_R": alone, "old_logp_R": None, "old_value_R": None, "reward_R": None}
    kinds = {"ref_logp_R": OldLogp, "old_logp_R": OldLogp, "old_value_R": Values, "reward_R": TokenRewards}
    for column, kind in kinds.items():
        left = tuple(instead[column] if isinstance(p, kind) else p for p in whole.prepare)
        left = tuple(p for p in left if p is not None)
        with pytest.raises(CompositionError, match=f"'{column}'.*\n(.*\n)*.*add a prepare step") as caught:
            replace(whole, prepare=left)
        assert isinstance(caught.value, TypeError)
    with pytest.raises(CompositionError, match="the loss needs column 'advantage_R'"):
        replace(whole, prepare=tuple(p for p in whole.prepare if not isinstance(p, Gae))[:-1], after=())
    with pytest.raises(CompositionError, match="WhitenAdvantages needs"):  # the order counts
        replace(whole, prepare=tuple(reversed(whole.prepare)))


def test_what_is_averaged_and_what_comes_after_is_checked_too() -> None:
    source = tiny.Given([tiny.rankings(2)])
    with pytest.raises(CompositionError, match="the mean needs column 'ranked_G'"):
        replace(sft(source), reduce=Mean("ranked_G"))
    hook = next(a for a in ppo(source).after if isinstance(a, UpdateKL))
    with pytest.raises(CompositionError, match="UpdateKL needs column 'kl_B'"):
        replace(sft(source), after=(hook,))
    with pytest.raises(ConfigError, match="at least one pass"):
        replace(sft(source), epochs=0)


def test_a_record_that_is_missing_is_named_at_the_first_step() -> None:
    with pytest.raises(CompositionError, match="rank_B"):
        tiny.train(reward_model(tiny.Given([tiny.demonstrations(2)])), Models(reward=tiny.scalar()))
    with pytest.raises(CompositionError, match="'ref'"):
        tiny.train(ppo(tiny.Given([tiny.rollouts(2)])), Models(policy=tiny.policy(), value=tiny.scalar()))


def test_ppo_wants_the_whole_law() -> None:
    for law in (SampleSettings(top_p=0.9), SampleSettings(top_k=5), SampleSettings(temperature=0)):
        with pytest.raises(ConfigError, match="untruncated sampling"):
            ppo(tiny.Given([tiny.rollouts(2)], law))


def test_more_minibatches_than_prompts() -> None:
    with pytest.raises(ConfigError, match="minibatches"):
        ppo(tiny.Given([tiny.rollouts(3)]), minibatches=4)


# ------------------------------------------------------------------------------------------------------ order of data


def test_every_epoch_is_a_permutation() -> None:
    cycle = EpochShuffle(list(range(10)), seed=3)
    drawn = [x for step in range(20) for x in cycle.batch_at(step, 3)]
    epochs = [drawn[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 6
    assert EpochShuffle(list(range(10)), seed=3).batch_at(13, 3) == drawn[39:42]  # a pure function of the step
    assert EpochShuffle(list(range(10)), seed=4).batch_at(0, 10) != drawn[:10]


def test_streams_differ_by_every_key() -> None:
    keys = [(s, k, i) for s in range(4) for k in range(4) for i in range(4)]
    assert len({generator(*k).initial_seed() for k in keys}) == len(keys)


def test_offline_hands_out_the_file() -> None:
    groups = tiny.demonstrations(5)
    source = Offline(groups, prompts_per_step=5, seed=1)
    draw = source(Models(), 0)
    assert sorted(g.prompt.id for g in draw.groups) == ["0", "1", "2", "3", "4"]
    assert (draw.index, draw.total) == ([0, 1, 2, 3, 4], 5)


def test_online_answers_depend_on_seed_step_and_place_alone() -> None:
    prompt = Prompt(id="one", ids=(2, 3, 4))
    models = Models(policy=tiny.policy())

    def ids(seed: int, step: int) -> list[tuple[int, ...]]:
        rule = FunctionScorer(lambda prompt, response: 0.0)
        source = Online([prompt], NativeSampler(), rule, 3, 2, SampleSettings(max_tokens=12), seed=seed)
        return [r.ids for g in source(models, step).groups for r in g.responses]

    assert ids(0, 0) == ids(0, 0)
    assert len({*ids(0, 0), *ids(0, 1), *ids(1, 0)}) == 18  # no two of them share their random numbers


def test_the_mean_leaves_out_what_weighs_nothing() -> None:
    groups = tiny.rankings(3)
    weight_G = torch.tensor([1.0, 0.0, 1.0]).double()
    batch = Batch.of(groups, range(3), 3).with_columns(weight_G=weight_G)
    per_item = torch.tensor([1.0, 100.0, 3.0]).double()
    assert float(Mean("weight_G").sum(per_item, batch)) / Mean("weight_G").count("G", batch) == 2
    assert Mean().count("B", batch) == batch.forest.B == sum(len(g.responses) for g in groups)
    assert Mean().count("R", batch) == batch.forest.R


# --------------------------------------------------------------------------------------------- weights that are finite


@pytest.mark.parametrize("folder", [False, True])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, folder: bool) -> None:
    """The last step's update overflows: its loss and gradient were finite, the weights are not."""

    def overflow(models: Models, batch: Batch, step: int) -> dict:
        if step == 3:
            next(iter(models["policy"].parameters())).data.view(-1)[5] = math.inf
        return {}

    algorithm = replace(sft(tiny.Given([tiny.demonstrations(4)])), after=(overflow,))
    with pytest.raises(NonFiniteError, match=r"(?s)not finite after step 4.*1 of 272 values") as caught:
        fit(
            algorithm,
            Models(policy=tiny.policy()),
            tiny.run(steps=4, save_every=2),
            folder=tmp_path if folder else None,
        )
    assert "embed_tokens.weight" in caught.value.got
    saved = [p.name for p in tmp_path.glob("checkpoints/step-*")]
    assert saved == (["step-00000002"] if folder else [])


def test_a_model_with_a_weight_that_is_nan_is_refused_before_it_is_used() -> None:
    broken = tiny.scalar()
    broken.head.weight.data[0, 3] = math.nan
    with pytest.raises(ModelError, match=r"(?s)'reward' are not finite.*1 of 16 values"):
        require_finite({"policy": tiny.policy(), "reward": broken})
    require_finite({"policy": tiny.policy(), "reward": tiny.scalar()})


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_sampled_from_logits_that_are_not_finite(temperature: float, top_k: int, bad: float) -> None:
    model = tiny.policy()
    model.module.lm_head.weight.data[7, 3] = bad
    prompts = [g.prompt for g in tiny.demonstrations(3)]
    settings = SampleSettings(temperature=temperature, top_k=top_k, max_tokens=4)
    with pytest.raises(NonFiniteError, match="probabilities of the next token are not finite"):
        sample(model, prompts, 2, settings)
    assert len(sample(tiny.policy(), prompts, 2, settings)) == 3
