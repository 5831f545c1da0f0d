"""The methods that match a distribution: exact gradients, each other, and their targets by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.oracles import matching
from tests.oracles.worlds import ASK, BANDIT, REWARD, give_law, law, policy
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.errors import ConfigError, ScoringError
from tiltyard.losses.divergence import best_of_n_factor, group_log_mean_exp, pseudo_reward_B
from tiltyard.methods import dpg, f_dpg, gdc, kl_dpg, rloo, vbon
from tiltyard.methods.kl_dpg import AdaptProposal
from tiltyard.models.language import LanguageModel
from tiltyard.posterior import best_of_n_probs, total_variation
from tiltyard.posterior.exact import kl_divergence
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer, WeightedScorer
from tiltyard.training.algorithm import Algorithm, Forward, Models
from tiltyard.training.constrained import Constrained
from tiltyard.training.replay import Replayed
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt, Response

from . import test_rl_oracles as tree
from . import tiny

BETA = 0.6
DIVERGENCES = ("forward_kl", "reverse_kl", "tv", "js")
F: dict[str, Callable[[Tensor], Tensor]] = {
    "forward_kl": lambda t: -t.log(),
    "reverse_kl": lambda t: t * t.log(),
    "tv": lambda t: (1 - t).abs() / 2,
    "js": lambda t: t * (2 * t / (t + 1)).log() + (2 / (t + 1)).log(),
}
SCORES = REWARD[:6].tolist()


def give(model: LanguageModel, p: Tensor) -> None:
    """Gives each answer of the bandit this probability."""
    give_law(model, torch.zeros(6, dtype=p.dtype).index_put((torch.tensor([y[0] for y in BANDIT]),), p))


def bandit(q: Tensor | None = None) -> Models:
    """A policy and a reference of different weights; the policy, or a proposal beside it, has the law `q`."""
    found = Models(policy=policy(BANDIT, 1), ref=policy(BANDIT, 2))
    if q is not None:
        give(found["policy"], q)
    return found


def target(models: Models, beta: float = BETA) -> Tensor:
    return (law(models["ref"], BANDIT) + REWARD[:6] / beta).log_softmax(0)


def each_once(scores: Any = SCORES, prompt: Prompt = ASK) -> Group:
    """Every answer once: draws from the uniform law, exactly."""
    return Group(prompt, tuple(Response(ids=y) for y in BANDIT), scores=tuple(scores))


def given(group: Group) -> tiny.Given:
    return tiny.Given([[group]], SampleSettings(max_tokens=1))


def prepared(algorithm: Algorithm, models: Models, groups: list[Group]) -> Batch:
    batch = Batch.of(groups, range(len(groups)), len(groups))
    for prepare in algorithm.prepare:
        batch = prepare(models, batch)
    return batch


def slope(algorithm: Algorithm, models: Models, groups: list[Group]) -> list[Tensor]:
    """The gradient of the mean loss."""
    batch = prepared(algorithm, models, groups)
    loss_B, _ = algorithm.loss(Forward(models, batch, 1.0, algorithm.loss.needs), batch)
    return list(torch.autograd.grad(loss_B.mean(), models["policy"].parameters()))


def finite_differences(models: Models, divergence: str, direction: list[Tensor], size: float = 1e-4) -> float:
    """The slope of D_f(pi || p), by enumeration, along a direction of all parameters."""
    p = target(models).exp()
    parameters = list(models["policy"].parameters())

    @torch.no_grad()
    def value(place: float) -> float:
        for x, d in zip(parameters, direction, strict=True):
            x += place * d
        found = float((p * F[divergence](law(models["policy"], BANDIT).exp() / p)).sum())
        for x, d in zip(parameters, direction, strict=True):
            x -= place * d
        return found

    ahead, behind = value(size) - value(-size), value(2 * size) - value(-2 * size)
    return (8 * ahead - behind) / (12 * size)


# -------------------------------------------------------------------------------------------------------- the gradients


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_gradient_is_that_of_the_divergence(divergence: Any) -> None:
    """In float64, through a model, against finite differences of the enumerated divergence; any constant baseline."""
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    models = bandit(uniform)
    algorithm = f_dpg(given(each_once()), divergence=divergence, beta=BETA, baseline="none", missing_eos="none")
    found = slope(algorithm, models, [each_once()])
    stream = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=stream, dtype=p.dtype) for p in models["policy"].parameters()]
        expected = finite_differences(models, divergence, direction)
        assert abs(expected) > 1e-3
        assert sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True)) == pytest.approx(
            expected, rel=1e-6
        )


@pytest.mark.parametrize("baseline", [True, False])
def test_dpg_is_the_gradient_of_the_forward_kl_whatever_the_proposal(baseline: bool) -> None:
    """With and without its baseline, on the policy's own answers and on those of a uniform proposal."""
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    proposal = policy(BANDIT, 3)
    give(proposal, uniform)
    for models in (bandit(uniform), bandit().replace(proposal=proposal)):
        settings: dict[str, Any] = {"beta": BETA, "baseline": baseline, "missing_eos": "none"}
        if "proposal" in models:
            algorithm = kl_dpg(matching.Proposed([[each_once()]]), **settings)
        else:
            algorithm = dpg(given(each_once()), **settings)
        loss = -(target(models).exp() * law_with_gradient(models)).sum()
        exact = torch.autograd.grad(loss, list(models["policy"].parameters()))
        tiny.assert_same(slope(algorithm, models, [each_once()]), list(exact), 1e-9)


def law_with_gradient(models: Models) -> Tensor:
    from tiltyard.batch.forest import pack

    forest = pack([Group(ASK, tuple(Response(ids=y) for y in BANDIT))])
    return models["policy"].logp_R(forest)[0]


@pytest.mark.parametrize("k", [2, 3])
def test_reverse_kl_is_the_gradient_of_rl(k: int) -> None:
    """On a tree of answers: -1/beta times that of E[r] - beta KL, exactly unbiased, and answer by answer RLOO's."""
    models = tree.models()
    groups, chance = tree.tuples(models, k)
    source = tiny.Given([groups], tree.LAW)
    ours = f_dpg(source, divergence="reverse_kl", beta=tree.BETA, missing_eos="none")
    found = tree.expected(ours, models, groups, chance)
    expected = [-g / tree.BETA for g in tree.exact(models)]
    tiny.assert_same(found, expected, 1e-10)
    theirs = rloo(source, beta=tree.BETA, missing_eos="none")
    one, two = prepared(ours, models, groups)["advantage_B"], prepared(theirs, models, groups)["advantage_B"]
    tiny.assert_same(one * tree.BETA, two, 1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_at_the_target_nothing_pulls(divergence: Any) -> None:
    """Every advantage is exactly 0 with any answers, however few: no noise is left."""
    models = bandit()
    give(models["policy"], target(models).exp())
    few = Group(ASK, tuple(Response(ids=BANDIT[i]) for i in (0, 4)), scores=(SCORES[0], SCORES[4]))
    settings: dict[str, Any] = {"beta": BETA, "missing_eos": "none"}
    for group in (each_once(), few):
        for algorithm in (f_dpg(given(group), divergence=divergence, **settings), dpg(given(group), **settings)):
            batch = prepared(algorithm, models, [group])
            if divergence != "tv":  # a sign of rounding
                assert float(batch["advantage_B"].abs().max()) < 1e-12
            assert float(batch["log_ratio_B"].abs().max()) < 1e-12
            total, count = batch.metrics["ess"]
            assert total / count == pytest.approx(len(group.responses))


def test_the_baseline_leaves_the_mean_and_lowers_the_variance() -> None:
    """Near p, over all draws of three answers: the mean gradient is what it is, its variance far smaller."""
    models = bandit()
    near = (0.95 * target(models).exp() + 0.05 / 6).double()
    give(models["policy"], near)
    found = {}
    for baseline in (True, False):
        algorithm = dpg(given(each_once()), beta=BETA, baseline=baseline, missing_eos="none")
        draws = list(itertools.product(range(6), repeat=3))
        groups = [
            Group(ASK, tuple(Response(ids=BANDIT[i]) for i in d), scores=tuple(SCORES[i] for i in d)) for d in draws
        ]
        chance = torch.stack([near[list(d)].prod() for d in draws])
        advantage = prepared(algorithm, models, groups)["advantage_B"].view(-1, 3)
        score = torch.stack([torch.eye(6, dtype=torch.float64)[list(d)] - near for d in draws])
        gradient = (advantage[:, :, None] * score).mean(1)
        mean = (chance[:, None] * gradient).sum(0)
        found[baseline] = mean, float((chance[:, None] * (gradient - mean) ** 2).sum())
    (one, with_it), (two, without) = found[True], found[False]
    assert with_it < without / 20
    tiny.assert_same(one, two, 1e-12)


# ------------------------------------------------------------------------------------------------------ each prompt's Z


@pytest.mark.parametrize("build", [dpg, *(lambda s, d=d, **k: f_dpg(s, divergence=d, **k) for d in DIVERGENCES)])
def test_each_prompt_has_a_z_of_its_own(build: Any) -> None:
    """A constant on all scores of one prompt changes nothing: a pooled Z would give that prompt all the weight."""
    easy = [s + 5.0 for s in SCORES]
    found = []
    for scores in (SCORES, easy):
        groups = [each_once(), each_once(scores, replace(ASK, id="other"))]
        algorithm = build(tiny.Given([groups], SampleSettings(max_tokens=1)), beta=BETA, missing_eos="none")
        batch = prepared(algorithm, bandit(), groups)
        found.append(batch["advantage_B"])
        total, count = batch.metrics["log_z"]
        models = bandit()
        exact = group_log_mean_exp(
            torch.tensor(SCORES).double() / BETA + law(models["ref"], BANDIT) - law(models["policy"], BANDIT),
            torch.zeros(6, dtype=torch.long),
            1,
        )
        shift = (scores[0] - SCORES[0]) / BETA / 2
        assert total / count == pytest.approx(float(exact) + shift, abs=1e-7)
    tiny.assert_same(*found, 1e-10)
    tiny.assert_same(found[0][:6], found[0][6:], 1e-12)


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@drawn_from(st.integers(0, 10**6))
def test_pseudo_rewards_are_the_derivatives(seed: int) -> None:
    """-f'(t) by automatic differentiation, up to a constant; extreme ratios stay finite."""
    stream = torch.Generator().manual_seed(seed)
    log_ratio = 3 * torch.randn(5, generator=stream, dtype=torch.float64)
    for name, f in F.items():
        t = (-log_ratio).exp().requires_grad_()
        (slope_,) = torch.autograd.grad(f(t).sum(), t)
        difference = pseudo_reward_B(log_ratio, name) + slope_  # type: ignore[arg-type]
        assert float(difference.max() - difference.min()) < 1e-8 * float(slope_.abs().max() + 1)
    far = torch.tensor([-900.0, 0.0, 600.0], dtype=torch.float64)
    assert all(pseudo_reward_B(far, name).isfinite().all() for name in DIVERGENCES)


def test_group_means_in_logs_hold_far_out() -> None:
    x_B = torch.tensor([1e4, 1e4 + math.log(3), -2e3], dtype=torch.float64)
    found = group_log_mean_exp(x_B, torch.tensor([0, 0, 1]), 2)
    assert found.tolist() == pytest.approx([1e4 + math.log(2), -2e3], abs=1e-9)
    assert group_log_mean_exp(x_B[:0], torch.zeros(0, dtype=torch.long), 0).shape == (0,)


# ---------------------------------------------------------------------------------------------------------- KL-adaptive


@pytest.mark.parametrize("measure", ["kl", "tv"])
def test_the_difference_is_that_of_the_divergences(measure: Any) -> None:
    """D(p || pi) - D(p || q) by enumeration, q uniform and each answer once."""
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    proposal = policy(BANDIT, 3)
    give(proposal, uniform)
    models = bandit().replace(proposal=proposal)
    algorithm = kl_dpg(matching.Proposed([[each_once()]]), beta=BETA, adapt_by=measure, missing_eos="none")
    batch = prepared(algorithm, models, [each_once()])
    (hook,) = algorithm.after
    p, pi = target(models), law(models["policy"], BANDIT)
    expected = {
        "kl": kl_divergence(p, pi) - kl_divergence(p, uniform.log()),
        "tv": total_variation(p.exp(), pi.exp()) - total_variation(p.exp(), uniform),
    }
    assert float(hook.difference_G(batch)) == pytest.approx(expected[measure], abs=1e-10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("measure", ["kl", "tv"])
def test_the_proposal_never_goes_back(measure: Any) -> None:
    """D(p || q) after every step of a run: it falls when the proposal is replaced, and stays otherwise."""
    toy = matching.ends(
        lambda s: kl_dpg(s, beta=BETA, adapt_every=4, adapt_by=measure, missing_eos="none"), matching.rl.tilt(BETA)
    )
    p = target(toy.models)
    gaps: list[float] = []

    def note(models: Models, batch: Batch, step: int) -> None:
        q = law(models["proposal"], BANDIT)
        gaps.append(kl_divergence(p, q) if measure == "kl" else total_variation(p.exp(), q.exp()))

    rows = tiny.train(tiny.watch(toy.algorithm, note), toy.models, steps=60, lr=2e-2)
    assert rows[-1]["proposals"] >= 3
    assert gaps[-1] < gaps[0] / 5
    assert all(b <= a + 1e-3 for a, b in itertools.pairwise(gaps))
    changed = sum(a != b for a, b in itertools.pairwise(gaps))
    assert changed in (rows[-1]["proposals"], rows[-1]["proposals"] - 1)


def test_noise_replaces_no_proposal() -> None:
    """A mean below 0 by less than its standard error is no evidence; the window is forgotten after each decision."""
    models = Models(policy=tiny.policy(1), proposal=tiny.policy(2))
    before = tiny.parameters(models["proposal"])

    def run(hook: AdaptProposal, *differences: list[float]) -> bool:
        for step, values in enumerate(differences):
            groups = [Group(replace(ASK, id=str(i)), (Response(ids=(2,)),)) for i in range(len(values))]
            batch = Batch.of(groups, range(len(values)), len(values)).with_columns(
                log_weight_B=torch.zeros(len(values), dtype=torch.float64),
                log_ratio_B=torch.tensor(values, dtype=torch.float64),
            )
            hook(models, batch, step)
        return hook.replaced > 0

    assert not run(AdaptProposal(2), [-1.0, 0.9], [0.5, -0.6])
    assert not run(AdaptProposal(2), [0.0, 0.0], [0.0, 0.0])
    assert not run(AdaptProposal(2), [5.0, 5.1], [4.0, 4.1], [-0.1, -0.2])  # the third waits for the fourth
    tiny.assert_same(tiny.parameters(models["proposal"]), before, 0)
    assert run(AdaptProposal(2), [-1.0, -1.1], [-0.9, -1.0])
    tiny.assert_same(tiny.parameters(models["proposal"]), tiny.parameters(models["policy"]), 0)


def test_the_proposal_is_what_is_sampled() -> None:
    """And no hidden states of it are taken for the policy's."""
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    proposal = policy(BANDIT, 3)
    give(proposal, uniform)
    models = bandit(torch.tensor([0.95, 0.01, 0.01, 0.01, 0.01, 0.01]).double()).replace(proposal=proposal)
    source = replace(matching.rl.online(600), sample_from="proposal", keep_hidden=True)
    (group,) = source(models, 0).groups
    assert all(r.logps == pytest.approx((math.log(1 / 6),)) and r.hidden is None for r in group.responses)
    assert 60 < sum(r.ids == BANDIT[0] for r in group.responses) < 145


# ---------------------------------------------------------------------------------------------------------------- GDC


def feature(name: str = "f") -> FunctionScorer:
    return matching.table(matching.FEATURE, name)


def online(scorer: Any, n: int = 8) -> Online:
    return Online([ASK], NativeSampler(), scorer, 1, n, SampleSettings(max_tokens=1, max_concurrent=512), seed=4)


def test_lambda_of_a_binary_feature() -> None:
    """exp(lambda) = mu/(1 - mu) (1 - p0)/p0 with the share p0 of the reference's responses; 0 for mu = p0."""
    source = Constrained(online(feature(), 200), {"f": 0.8}, prompts_solved=1, samples=500)
    models = bandit()
    drawn = source(models, 0)
    assert len(drawn.groups) == 1
    sampled = NativeSampler(models["ref"])
    from tiltyard.sampling.streams import response_seeds
    from tiltyard.training.constrained import KEY

    seeds = response_seeds([0], 500, 4, KEY)
    (group,) = sampled.generate([ASK], 500, SampleSettings(max_tokens=1), seeds)
    p0 = sum(matching.FEATURE[BANDIT.index(r.ids)] for r in group.responses) / 500
    assert math.exp(source.solved[0]) == pytest.approx(0.8 / 0.2 * (1 - p0) / p0, rel=1e-8)
    assert drawn.metrics["lambda/f"] == (source.solved[0], 1.0)
    assert drawn.metrics["reward/f"][1] == 200  # of the step's responses alone
    scores = drawn.groups[0].scores or ()
    assert set(scores) == {0.0, source.solved[0]}
    same = Constrained(online(feature()), {"f": p0}, prompts_solved=1, samples=500)
    same(models, 0)
    assert same.solved == pytest.approx([0.0], abs=1e-9)


def test_lambda_over_prompts_that_differ() -> None:
    """The mean over prompts is met, not each prompt's own: one lambda, a Z for each prompt."""
    hidden = [Prompt(id=str(i), ids=(tiny.EOS, *tiny.ids(i, torch.Generator().manual_seed(i)))) for i in range(4)]
    prompts = [replace(p, ids=tuple(t % 6 for t in p.ids)) for p in hidden]
    source = replace(online(feature()), prompts=prompts)
    constrained = Constrained(source, {"f": 0.6}, prompts_solved=4, samples=400)
    models = bandit()
    constrained(models, 0)
    (coefficient,) = constrained.solved
    has = torch.tensor(matching.FEATURE, dtype=torch.float64)
    means, before = [], []
    for prompt in prompts:
        from tiltyard.posterior import response_log_probs

        logp = response_log_probs(models["ref"], prompt, BANDIT)
        before.append(float((logp.exp() * has).sum()))
        means.append(float(((logp + coefficient * has).softmax(0) * has).sum()))
    assert sum(means) / 4 == pytest.approx(0.6, abs=0.04)
    assert max(means) - min(means) > 0.02
    assert max(before) - min(before) > 0.02


def test_the_coefficients_are_kept_and_not_solved_again() -> None:
    models = bandit()
    source = Constrained(online(feature()), {"f": 0.8}, prompts_solved=1, samples=50)
    first = source(models, 0)
    other = Constrained(online(feature()), {"f": 0.8}, prompts_solved=1, samples=50)
    other.load_state_dict(source.state_dict())
    give(models["ref"], torch.tensor([0.9, 0.02, 0.02, 0.02, 0.02, 0.02]).double())  # would be another lambda
    again = other(models, 0)
    assert other.solved == source.solved
    assert again.groups == first.groups
    assert {**again.metrics, "ref_sampled": (50.0, 1.0)} == dict(first.metrics)


def test_parts_without_a_moment_keep_their_weight() -> None:
    both = WeightedScorer([(2.0, matching.table(SCORES, "r")), (1.0, feature())])
    source = Constrained(online(both), {"f": 0.5}, prompts_solved=1, samples=200)
    drawn = source(bandit(), 0)
    assert source.solved[0] == 2.0
    assert both.parts[1][0] == 1.0  # the scorer that was given is left as it was
    assert "lambda/r" not in drawn.metrics
    assert {"reward/r", "reward/f"} <= drawn.metrics.keys()
    for response, found in zip(drawn.groups[0].responses, drawn.groups[0].scores or (), strict=True):
        i = BANDIT.index(response.ids)
        assert found == pytest.approx(2 * SCORES[i] + source.solved[1] * matching.FEATURE[i])


def test_a_constraint_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="a moment of no feature") as caught:
        gdc(online(feature("women")), moments={"woman": 0.5}).source(bandit(), 0)
    assert "women" in str(caught.value)
    empty = gdc(online(feature()), moments={})
    with pytest.raises(ConfigError, match="there is no constraint"):
        empty.source(bandit(), 0)
    never = matching.table([0.0] * 6, "f")
    impossible = gdc(online(never), moments={"f": 0.5}, moment_prompts=1, moment_samples=20)
    with pytest.raises(ConfigError, match="no tilt of the prior has this mean"):
        impossible.source(bandit(), 0)
    silent = FunctionScorer(lambda prompt, response: None if response.ids == BANDIT[1] else 1.0, "f")
    with pytest.raises(ScoringError, match="needs a score of every response"):
        gdc(online(silent), moments={"f": 0.5}, moment_prompts=1, moment_samples=200).source(bandit(), 0)


def test_a_replay_solves_nothing() -> None:
    """The stored scores have the coefficients in them."""
    source = online(feature())
    stored = Replayed(**{k: getattr(source, k) for k in Online.__dataclass_fields__}, stored={0: [each_once()]})
    drawn = Constrained(stored, {"f": 0.8})(bandit(), 0)
    assert drawn.groups == [each_once()]
    assert "lambda/f" not in drawn.metrics


# --------------------------------------------------------------------------------------------------------------- vBoN


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@drawn_from(st.integers(0, 10**6), st.floats(1, 60))
def test_the_factor_is_the_law_of_best_of_n(seed: int, n: float) -> None:
    """From exact ranks, with and without ties; n = 1 changes nothing; a monotone map of the scores changes nothing."""
    stream = torch.Generator().manual_seed(seed)
    prior = torch.rand(7, generator=stream, dtype=torch.float64) + 0.02
    prior = prior / prior.sum()
    scores = torch.randint(0, 4, (7,), generator=stream).double()
    below = torch.stack([prior[scores < s].sum() for s in scores])
    equal = torch.stack([prior[scores == s].sum() for s in scores])
    factor = best_of_n_factor(below, equal, 1.0, n)
    torch.testing.assert_close(prior * factor.exp(), best_of_n_probs(prior, scores, n), rtol=1e-9, atol=1e-12)
    assert float((prior * factor.exp()).sum()) == pytest.approx(1)
    torch.testing.assert_close(best_of_n_factor(below, equal, 1.0, 1.0), torch.zeros(7).double(), atol=1e-12, rtol=0)
    two = torch.tensor([0.5, 0.5], dtype=torch.float64)
    kl = float((p := two * best_of_n_factor(torch.tensor([0.0, 0.5]), two, 1.0, n).exp()) @ (p / two).log())
    assert kl <= math.log(2)
    tiny_level = best_of_n_factor(torch.tensor([0.3]).double(), torch.tensor([1e-7]).double(), 1.0, n)
    assert float(tiny_level) == pytest.approx(math.log(n) + (n - 1) * math.log(0.3), abs=1e-4)


def test_ranks_are_those_among_the_references_responses() -> None:
    """Sampled once a prompt, the same after a restart, whatever else the step has; only their order counts."""
    prompts = [replace(ASK, ids=(tiny.EOS,) * (i + 1), id=str(i)) for i in range(3)]
    groups = [each_once(prompt=p) for p in prompts]

    def made(scale: Callable[[float], float], seen: list[Any]) -> Batch:
        worth = matching.table([scale(s) for s in SCORES])

        class Counting(NativeSampler):
            def generate(self, prompts: Any, *rest: Any) -> Any:
                seen.append(len(prompts))
                return super().generate(prompts, *rest)

        source = replace(online(worth), sampler=Counting())
        algorithm = vbon(source, n=4, ref_samples=40)
        step = algorithm.prepare[1]
        models = bandit()
        scaled = [replace(g, scores=tuple(map(scale, g.scores or ()))) for g in groups]
        batch = Batch.of(scaled[:2], range(2), 2)
        step(models, batch)
        return step(models, Batch.of(scaled, range(3), 3))

    seen: list[Any] = []
    one = made(lambda s: s, seen)
    assert seen == [2, 1]
    tiny.assert_same(made(lambda s: math.exp(3 * s), [])["reward_B"], one["reward_B"], 0)
    assert not one["reward_B"][:6].equal(one["reward_B"][6:12])  # each prompt has draws of its own
    total, count = one.metrics["rank"]
    assert 0.2 < total / count < 0.8


def test_best_of_n_of_scores_that_do_not_compare() -> None:
    pairwise = FunctionScorer(lambda group: [0.0] * len(group.responses), comparable=False)
    with pytest.raises(ConfigError, match="ranks scores that were given at different times"):
        vbon(online(pairwise))
    silent = FunctionScorer(lambda prompt, response: None if response.meta.get("ref") is None else 1.0)
    step = vbon(online(silent), ref_samples=4).prepare[1]
    with pytest.raises(ScoringError, match="needs scores of the reference's responses"):
        step(bandit(), Batch.of([each_once()], range(1), 1))


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("build", [dpg, f_dpg, kl_dpg, gdc, vbon])
def test_what_is_sampled_must_be_the_distribution(build: Any) -> None:
    source = online(feature())
    with pytest.raises(ConfigError, match="untruncated"):
        build(replace(source, settings=SampleSettings(top_p=0.9)))
    with pytest.raises(ConfigError, match="at least 2 responses"):
        build(replace(source, samples_per_prompt=1))
