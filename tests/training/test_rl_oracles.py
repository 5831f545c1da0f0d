"""The policy-gradient methods, whole and through a real model, against exact gradients, each other and their limits."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from tests.chance import means, shifted
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.batch.forest import pack
from tiltyard.errors import ConfigError, DataError, TiltyardError
from tiltyard.losses.kl import sum_per_response
from tiltyard.methods import a2c, grpo, ppo, reinforce, reinforce_pp, rloo
from tiltyard.methods.policy_gradient import ClippedPolicy, aggregated
from tiltyard.methods.sft import Nll
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Forward, Models
from tiltyard.training.source import Offline, Online
from tiltyard.types import Group, Prompt, Response

from . import tiny
from .test_agreement_rl import answered

# T3: three tokens, answers of at most two; the prompt is a token that no answer goes on after
ASK = Prompt(id="ask", ids=(tiny.EOS,))
SUPPORT = [(1,), (0, 1), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2)]
SCORES = torch.tensor([0.3, -0.4, 0.9, 0.0, -0.8, 0.5, 0.2]).double()
BETA = 0.6
SHAPE: dict[str, Any] = {"vocab_size": 3, "num_hidden_layers": 1, "initializer_range": 0.4}
LAW = SampleSettings(max_tokens=2)


def models(value: int = 5) -> Models:
    return Models(policy=tiny.policy(1, **SHAPE), ref=tiny.policy(2, **SHAPE), value=tiny.scalar(value, **SHAPE))


def response(i: int) -> Response:
    return Response(ids=SUPPORT[i], finish="stop" if SUPPORT[i][-1] == tiny.EOS else "length")


def group(*answers: int) -> Group:
    return Group(ASK, tuple(response(i) for i in answers), scores=tuple(float(SCORES[i]) for i in answers))


def law(model: LanguageModel) -> Tensor:
    """Log-probability of every answer, with gradient."""
    forest = pack([Group(ASK, tuple(Response(ids=y) for y in SUPPORT))])
    return sum_per_response(model.logp_R(forest)[0], forest.response_R, forest.B)


def exact(found: Models, score: float = 1.0, kl: float = BETA) -> list[Tensor]:
    """grad of J = score E[r] - kl KL(pi||ref), by enumeration."""
    policy = found["policy"]
    logp = law(policy)
    j = (logp.exp() * (score * SCORES - kl * (logp - law(found["ref"]).detach()))).sum()
    return list(torch.autograd.grad(j, policy.parameters()))


def prepared(algorithm: Algorithm, found: Models, groups: Sequence[Group]) -> Batch:
    batch = Batch.of(groups, range(len(groups)), len(groups))
    for prepare in algorithm.prepare:
        batch = prepare(found, batch)
    return batch


def expected(algorithm: Algorithm, found: Models, groups: Sequence[Group], chance_G: Tensor) -> list[Tensor]:
    """Gradient of the expected loss of a group: a sum over its tokens (or answers), divided by its answers."""
    batch = prepared(algorithm, found, groups)
    loss, _ = algorithm.loss(Forward(found, batch, 1.0, algorithm.loss.needs), batch)
    owner = batch.forest.group_B if algorithm.loss.item == "B" else batch.forest.group_B[batch.forest.response_R]
    k = len(groups[0].responses)
    return list(torch.autograd.grad((chance_G[owner] * loss).sum() / k, found["policy"].parameters()))


def tuples(found: Models, k: int) -> tuple[list[Group], Tensor]:
    """Every draw of k answers, and its probability."""
    p = law(found["policy"]).detach().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    draws = list(product(range(len(SUPPORT)), repeat=k))
    return [group(*d) for d in draws], torch.stack([p[list(d)].prod() for d in draws])


def given(*steps: list[Group]) -> Any:
    return tiny.Given(steps, LAW)


# ------------------------------------------------------------------------------------------ exact expected gradients

ALONE: dict[str, Any] = {
    "ppo": lambda: ppo(given([group(0)]), beta=BETA, lam=1.0, vf_coef=0.0, whiten_advantages=False, missing_eos="none"),
    "a2c": lambda: a2c(given([group(0)]), beta=BETA, value_coef=0.0, missing_eos="none"),
    "reinforce": lambda: reinforce(given([group(0)]), beta=BETA, value_coef=0.0, missing_eos="none"),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("value", [5, 6])
def test_one_answer_gives_the_exact_gradient_whatever_the_critic_says(name: str, value: int) -> None:
    found = models(value)
    got = expected(ALONE[name](), found, *tuples(found, 1))
    tiny.assert_same(got, [-g for g in exact(found)], 1e-12)
    assert max(float(g.abs().max()) for g in got) > 1e-2


def test_mixing_the_kl_is_another_coefficient() -> None:
    """(1 - b) E[r] - b KL: the gradient of (1 - b) (E[r] - b/(1-b) KL), and b/(1-b) = 0.0526 for 0.05."""
    found = models()
    algorithm = reinforce(given([group(0)]), beta=0.05, mix_kl=True, value_coef=0.0, missing_eos="none")
    got = expected(algorithm, found, *tuples(found, 1))
    tiny.assert_same(got, [-0.95 * g for g in exact(found, 1.0, 0.0526315789473684)], 1e-12)


def test_the_value_model_learns_the_return() -> None:
    """Twice the error at every token: what is left of the reward for a2c, all of it for reinforce."""
    found, groups = models(), [group(i) for i in range(len(SUPPORT))]
    logp_R, ref_R = (found[n].logp_R(pack(groups))[0].detach() for n in ("policy", "ref"))
    sizes = [len(y) for y in SUPPORT]
    whole, to_go = [], []
    for i, (a, b) in enumerate(zip(logp_R.split(sizes), ref_R.split(sizes), strict=True)):
        reward = [-BETA * x for x in (a - b).tolist()]
        reward[-1] += float(SCORES[i])
        whole += [sum(reward)] * len(reward)
        to_go += [sum(reward[t:]) for t in range(len(reward))]
    for build, returns in ((a2c, to_go), (reinforce, whole)):
        algorithm = build(given(groups), beta=BETA, value_coef=0.3, missing_eos="none")
        batch = prepared(algorithm, found, groups)
        tiny.assert_same(batch["return_R"], torch.tensor(returns, dtype=torch.float64), 1e-12)
        forward = Forward(found, batch, 1.0)
        value_R = forward.value_R.detach().requires_grad_()
        forward.columns["value_R"] = value_R
        loss_R, _ = algorithm.loss(forward, batch)
        slope = torch.autograd.grad(loss_R.sum(), value_R)[0]
        tiny.assert_same(slope, 0.3 * 2 * (value_R.detach() - torch.tensor(returns, dtype=torch.float64)), 1e-12)


@pytest.mark.parametrize("k", [2, 3])
def test_rloo_is_exactly_unbiased(k: int) -> None:
    """Over all K^k draws; advantages of a prompt add up to 0; two answers have +-(R1 - R2)."""
    found = models()
    groups, chance = tuples(found, k)
    algorithm = rloo(given(groups[:1]), beta=BETA, missing_eos="none")
    tiny.assert_same(expected(algorithm, found, groups, chance), [-g for g in exact(found)], 1e-11)
    batch = prepared(algorithm, found, groups)
    advantage, reward = batch["advantage_B"].view(-1, k), batch["reward_B"].view(-1, k)
    tiny.assert_same(advantage.sum(1), torch.zeros(len(groups)).double(), 1e-12)
    if k == 2:
        tiny.assert_same(advantage[:, 0], reward[:, 0] - reward[:, 1], 1e-12)
    same = [i for i, g in enumerate(groups) if len({r.ids for r in g.responses}) == 1]
    assert float(advantage[same].abs().max()) < 1e-12


@pytest.mark.parametrize("k", [2, 3])
def test_grpo_with_everything_off_is_short_by_one_in_k(k: int) -> None:
    """No scale, KL in the reward, sums over tokens: (k-1)/k of the exact gradient."""
    found = models()
    groups, chance = tuples(found, k)
    algorithm = grpo(given(groups[:1]), beta=BETA, kl_form="reward_k1", scale="none", aggregate="constant")
    got = [2 * g for g in expected(algorithm, found, groups, chance)]  # the constant is max_tokens = 2
    tiny.assert_same(got, [-(k - 1) / k * g for g in exact(found)], 1e-11)


@pytest.mark.parametrize("form", ["loss_k2", "loss_k3"])
def test_where_the_kl_stands_decides_which_one_it_is(form: Any) -> None:
    """As a loss k2 pulls by KL(pi||ref) and k3 by KL(ref||pi), at each prefix, the law of prefixes held fixed."""
    found = models()
    groups, chance = tuples(found, 1)
    pairs = [group(*(SUPPORT.index(r.ids) for r in g.responses * 2)) for g in groups]  # tied: no policy gradient
    algorithm = grpo(given(pairs[:1]), beta=BETA, kl_form=form, aggregate="constant", scale="none")
    got = [2 * g for g in expected(algorithm, found, pairs, chance)]
    first, after = torch.tensor([0, 1, 2]), [(0,), (2,)]
    total = torch.zeros(()).double()
    p_first = rows(found["policy"], ())[first].detach().exp()
    for prefix, weight in (((), torch.ones(()).double()), (after[0], p_first[0]), (after[1], p_first[2])):
        p, q = rows(found["policy"], prefix), rows(found["ref"], prefix).detach()
        total = total + weight * ((p.exp() * (p - q)).sum() if form == "loss_k2" else (q.exp() * (q - p)).sum())
    tiny.assert_same(got, [BETA * g for g in torch.autograd.grad(total, found["policy"].parameters())], 1e-11)


def rows(model: LanguageModel, prefix: tuple[int, ...]) -> Tensor:
    """log pi of every token after the prompt and these tokens, with gradient."""
    forest = pack([Group(Prompt(id="x", ids=(*ASK.ids, *prefix)), tuple(Response(ids=(v,)) for v in range(3)))])
    return model.logp_R(forest)[0]


@pytest.mark.statistical
def test_sampled_answers_have_the_exact_gradient_on_average() -> None:
    """The real sampler, two answers to each of 4,000 prompts: the mean slope up the gradient and another way."""
    seed = shifted(0)
    found, stream = models(), torch.Generator().manual_seed(seed)
    rule = FunctionScorer(lambda prompt, response: float(SCORES[SUPPORT.index(tuple(response.ids))]))
    source = Online([ASK], NativeSampler(), rule, 4000, 2, SampleSettings(max_tokens=2, max_concurrent=8192), seed=seed)
    algorithm = rloo(source, beta=BETA, missing_eos="none")
    draw = source(found, 0)
    batch = prepared(algorithm, found, draw.groups)
    parameters = found["policy"].parameters()
    truth = exact(found)
    directions = [truth, [torch.randn(p.shape, generator=stream, dtype=p.dtype) for p in parameters]]

    def slopes(gradient: Sequence[Tensor]) -> list[float]:
        return [sum(float((a * d).sum()) for a, d in zip(gradient, way, strict=True)) for way in directions]

    # slopes of log pi of the few answers there are, once; each group's estimate is made of these
    logp = law(found["policy"])
    table = [slopes(torch.autograd.grad(x, parameters, retain_graph=True)) for x in logp]
    which = [SUPPORT.index(tuple(r.ids)) for g in draw.groups for r in g.responses]
    slope_B2 = torch.tensor(table).double()[which]
    means((batch["advantage_B"][:, None] * slope_B2).view(-1, 2, 2).mean(1), torch.tensor(slopes(truth)).double())


# ------------------------------------------------------------------------------------------------- one and the other


def trained(algorithm: Algorithm, found: Models, **settings: Any) -> tuple[dict[str, Any], list[dict[str, float]]]:
    rows = tiny.train(algorithm, found, **({"steps": 4, "lr": 1e-2} | settings))
    return {n: tiny.parameters(found[n]) for n in algorithm.trains}, rows


def actors() -> Models:
    return Models(policy=tiny.policy(), ref=tiny.frozen(2), value=tiny.scalar(1))


@pytest.mark.parametrize("clip", [0.05, 0.2, 5.0])
def test_a2c_is_ppo_with_one_update(clip: float) -> None:
    """lam = 1, half the squared error: one update a step is the same run, whatever the clip."""
    steps = [tiny.rollouts(6, s) for s in range(4)]
    one, _ = trained(a2c(tiny.Given(steps), beta=0.3, value_coef=0.25), actors())
    same = {"beta": 0.3, "lam": 1.0, "vf_coef": 0.5, "whiten_advantages": False, "clip": clip, "value_clip": 1e9}
    two, _ = trained(ppo(tiny.Given(steps), ppo_epochs=1, **same), actors())
    tiny.assert_same(one, two, 1e-11)
    several, _ = trained(ppo(tiny.Given(steps), ppo_epochs=2, **same), actors())
    assert max(float((several["policy"][n] - p).abs().max()) for n, p in one["policy"].items()) > 1e-3


def test_the_entropy_bonus_is_the_entropys_gradient() -> None:
    """Of the difference that the bonus makes to the gradient: minus its weight times that of the mean entropy."""
    groups = tiny.rollouts(5)
    found, slopes = actors(), []
    for build in (a2c, lambda source, entropy: grpo(source, beta=0.0, entropy=entropy, aggregate="token")):
        data = groups if build is a2c else answered(3, 0)
        for entropy in (0.0, 0.3):
            algorithm = build(tiny.Given([data], SampleSettings(max_tokens=9)), entropy=entropy)
            batch = prepared(algorithm, found, data)
            loss, _ = algorithm.loss(Forward(found, batch, 1.0, algorithm.loss.needs), batch)
            slopes.append(torch.autograd.grad(loss.mean(), found["policy"].parameters()))
        _, entropy_R = found["policy"].logp_R(batch.forest, entropy=True)
        bonus = torch.autograd.grad(entropy_R.mean(), found["policy"].parameters())
        without, with_it = slopes[-2:]
        tiny.assert_same([b - a for a, b in zip(without, with_it, strict=True)], [-0.3 * g for g in bonus], 1e-11)


def without_critic() -> Models:
    """A value model that says 0, and whose loss has no weight."""
    found = actors()
    torch.nn.init.zeros_(found["value"].head.weight)
    return found


def test_reinforce_pp_is_ppo_without_its_critic() -> None:
    """V = 0, lam = 1, whitening: the same run over several epochs and minibatches."""
    steps = [tiny.rollouts(8, s) for s in range(4)]
    passes = {"beta": 0.3, "ppo_epochs": 2, "minibatches": 2, "clip": 0.1}
    one, ours = trained(reinforce_pp(tiny.Given(steps), **passes), actors().replace(value=None))
    two, theirs = trained(ppo(tiny.Given(steps), lam=1.0, vf_coef=0.0, **passes), without_critic())
    tiny.assert_same(one["policy"], two["policy"], 1e-10)
    tiny.assert_same(tiny.keys(ours, "policy_loss", "kl", "clipped"), tiny.keys(theirs, "policy_loss", "kl", "clipped"))


def test_without_kl_both_roads_to_the_reward_are_one() -> None:
    """reinforce_pp at kl = 0 needs no reference; a vanishing kl with one comes to the same."""
    steps = [answered(4, s) for s in range(3)]
    for baseline in (False, True):
        alone, _ = trained(
            reinforce_pp(tiny.Given(steps), beta=0.0, group_baseline=baseline), Models(policy=tiny.policy())
        )
        beside, _ = trained(reinforce_pp(tiny.Given(steps), beta=1e-300, group_baseline=baseline), actors())
        tiny.assert_same(alone, beside, 1e-9)


def rescored(steps: list[list[Group]], a: float, c: float) -> list[list[Group]]:
    return [[replace(g, scores=tuple(a * s + c for s in g.scores or ())) for g in step] for step in steps]


@pytest.mark.parametrize("name", ["reinforce_pp", "grpo", "grpo, batch"])
def test_the_unit_of_rewards_does_not_matter(name: str) -> None:
    """r -> a r + c at kl = 0; whitening adds 1e-8 to a variance of about 1, which a run of three steps may show."""
    steps = [answered(4, s) for s in range(3)]
    found = []
    for own in (steps, rescored(steps, 7.0, -3.0)):
        source = tiny.Given(own, SampleSettings(max_tokens=9))
        if name == "reinforce_pp":
            algorithm = reinforce_pp(source, beta=0.0, missing_eos="none")
        else:
            algorithm = grpo(source, beta=0.0, scale="batch" if "batch" in name else "group", scale_eps=0.0)
        found.append(trained(algorithm, Models(policy=tiny.policy()), lr=1e-3)[0])
    tiny.assert_same(*found, 1e-6 if name == "reinforce_pp" else 1e-8)


# ------------------------------------------------------------------------------------------------- what teaches nothing


@pytest.mark.parametrize("build", [rloo, grpo, lambda source, beta: reinforce_pp(source, beta=beta)])
def test_equal_rewards_move_nothing(build: Any) -> None:
    data = [replace(g, scores=(0.1,) * 4) for g in answered(3, 0)]
    found = Models(policy=tiny.policy())
    before = tiny.parameters(found.policy)
    ended = [replace(g, responses=tuple(replace(r, finish="stop") for r in g.responses)) for g in data]
    sgd = torch.optim.SGD(found["policy"].parameters(), lr=1.0)
    with contextlib.suppress(TiltyardError):  # where the gradient is zero to the last bit, that is said
        tiny.fit(build(tiny.Given([ended], SampleSettings(max_tokens=9)), beta=0.0), found, optimizer=sgd, steps=2)
    tiny.assert_same(tiny.parameters(found.policy), before, 1e-11)


def test_k3_is_nothing_at_the_start_and_neither_is_its_slope() -> None:
    data = [replace(g, scores=(0.1,) * 4) for g in answered(3, 0)]
    found = Models(policy=tiny.policy(), ref=tiny.frozen())
    algorithm = grpo(tiny.Given([data], SampleSettings(max_tokens=9)), beta=50.0)
    batch = prepared(algorithm, found, data)
    loss, metrics = algorithm.loss(Forward(found, batch, 1.0), batch)
    assert float(loss.detach().abs().max()) < 1e-12
    assert metrics["kl_loss"][0] < 1e-12
    slope = torch.autograd.grad(loss.sum(), found["policy"].parameters())
    assert max(float(g.abs().max()) for g in slope) < 1e-11


def test_the_loss_starts_at_nothing_and_teaches_all_the_same() -> None:
    """Averaged over answers the first loss is -mean A = 0; over tokens it is -sum |y| A / sum |y|."""
    data = answered(4, 1)
    found = Models(policy=tiny.policy())
    for how in ("sequence", "token"):
        algorithm = grpo(tiny.Given([data], SampleSettings(max_tokens=9)), beta=0.0, aggregate=how)
        batch = prepared(algorithm, found, data)
        items, _ = algorithm.loss(Forward(found, batch, 1.0), batch)
        loss = algorithm.reduce.sum(items, batch) / algorithm.reduce.count(algorithm.loss.item, batch)
        size, advantage = batch.forest.count_B.double(), batch["advantage_B"]
        known = 0.0 if how == "sequence" else -float((size * advantage).sum() / size.sum())
        assert float(loss.detach()) == pytest.approx(known, abs=1e-12)
        slope = torch.autograd.grad(loss, found["policy"].parameters())
        assert max(float(g.abs().max()) for g in slope) > 1e-3


# ----------------------------------------------------------------------------------------------------- lengths, ptx


@pytest.mark.parametrize(("how", "ratio"), [("sequence", 10.0), ("token", 1.0), ("constant", 1.0)])
@pytest.mark.parametrize("ended_only", [False, True])
def test_what_a_token_weighs_by_the_length_of_its_answer(how: Any, ratio: float, ended_only: bool) -> None:
    """Answers of 1 and 10 tokens and equal |A|; a third that was cut weighs nothing where those are left out."""
    long = Response(ids=(3,) * 9 + (tiny.EOS,), finish="stop")
    cut = Response(ids=(4,) * 5, finish="length")
    data = [Group(ASK, (Response(ids=(tiny.EOS,), finish="stop"), long, cut), scores=(1.0, -1.0, 0.0))]
    batch = Batch.of(data, [0], 1)
    forest, kept_B = batch.forest, batch["stopped_B"].double()
    zero_R = torch.zeros(forest.R).double()
    advantage_R = torch.tensor([1.0] + [-1.0] * 10 + [1.0] * 5).double()
    batch = batch.with_columns(
        old_logp_R=zero_R, advantage_R=advantage_R, kept_B=kept_B, kept_R=kept_B[forest.response_R]
    )
    loss, reduce = aggregated(ClippedPolicy(0.2, 0.2), how, 20, ended_only)
    forward: Any = Forward(Models(), batch, 1.0)
    logp_R = zero_R.clone().requires_grad_()
    forward.columns["logp_R"] = logp_R
    items, _ = loss(forward, batch)
    value = reduce.sum(items, batch) / reduce.count(loss.item, batch)
    slope = torch.autograd.grad(value, logp_R)[0]
    assert float(slope[0] / -slope[1]) == pytest.approx(ratio, rel=1e-12)
    count = {"sequence": 2.0 if ended_only else 3.0, "token": 11.0 if ended_only else 16.0, "constant": 60.0}[how]
    assert float(slope[0]) == pytest.approx(-1 / count, rel=1e-12)
    assert (slope[11:] == 0).all() == ended_only


def ptx_step(weight: float | None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(gradient of the policy at the first update, metrics); None: plain PPO without a corpus."""
    data, corpus = [tiny.rollouts(6)], Offline(tiny.demonstrations(9), 4)
    found, record = actors(), tiny.Record()
    before = tiny.parameters(found.policy)
    own: dict[str, Any] = {} if weight is None else {"ptx": weight}
    algorithm = ppo(tiny.Given(data), *(() if weight is None else (corpus,)), ppo_epochs=1, **own)
    sgd = torch.optim.SGD([p for n in algorithm.trains for p in found[n].parameters()], lr=1.0)
    tiny.fit(algorithm, found, optimizer=sgd, steps=1, max_grad_norm=1e9, sinks=[record])
    return {n: before[n] - p for n, p in tiny.parameters(found.policy).items()}, record.rows[0]


def test_ptx_adds_its_weight_times_the_gradient_of_the_texts() -> None:
    plain, _ = ptx_step(None)
    none, told = ptx_step(0.0)
    tiny.assert_same(none, plain, 0)
    assert "ptx_loss" not in told
    found = actors()
    texts = Offline(tiny.demonstrations(9), 4)(found, 0).groups
    batch = Batch.of(texts, range(4), 4)
    mean = Nll()(Forward(found, batch, 1.0), batch)[0].mean()
    mean.backward()
    slope = {n: p.grad for n, p in found["policy"].module.named_parameters()}
    for weight in (0.5, 27.8):
        got, told = ptx_step(weight)
        tiny.assert_same(got, {n: plain[n] + weight * slope[n] for n in plain}, 1e-11)
        assert told["ptx_loss"] == pytest.approx(float(mean.detach()), rel=1e-12)
        assert told["ptx_grad_ratio"] > 0


def test_ptx_zero_is_ppo_to_the_last_bit() -> None:
    steps = [tiny.rollouts(6, s) for s in range(3)]
    plain, _ = trained(ppo(tiny.Given(steps)), actors())
    none, _ = trained(ppo(tiny.Given(steps), Offline(tiny.demonstrations(9), 4), ptx=0.0), actors())
    tiny.assert_same(none, plain, 0)


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_cannot_be_is_said() -> None:
    alone = Online([ASK], NativeSampler(), FunctionScorer(lambda p, r: 0.0), 4, 1, LAW)
    for build in (rloo, grpo, lambda source: reinforce_pp(source, group_baseline=True)):
        with pytest.raises(ConfigError, match="at least 2 responses"):
            build(alone)
    with pytest.raises(DataError, match="two responses a prompt"):
        tiny.train(rloo(given([group(0)]), beta=0.0), models())
    with pytest.raises(ConfigError, match="corpus=FILE"):
        ppo(given([group(0)]), ptx=1.0)
    with pytest.raises(ConfigError, match="below 1"):
        reinforce(given([group(0)]), beta=1.0, mix_kl=True)
    with pytest.raises(ConfigError, match="max_tokens = 2"):
        grpo(given([group(0, 1)]), overlong=3)
    for build in (a2c, reinforce, rloo, reinforce_pp, grpo):
        with pytest.raises(ConfigError, match="untruncated sampling"):
            build(tiny.Given([[group(0, 1)]], SampleSettings(top_p=0.5)))
    for build in (reinforce_pp, grpo):
        with pytest.raises(ConfigError, match="minibatches"):
            build(given([group(0, 1)]), minibatches=2)


def test_a_reference_is_read_only_where_it_has_a_weight() -> None:
    for build in (rloo, grpo, reinforce_pp):
        assert build(given([group(0, 1)]), beta=0.1).reads_ref
        assert not build(given([group(0, 1)]), beta=0.0).reads_ref
