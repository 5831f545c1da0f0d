"""Another program samples: what lies between it and the trainer is measured, and weighed in policy gradients.

The world of `test_rl_oracles`: all answers of at most two of three tokens. The sampler's distribution is another's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.errors import ConfigError
from tiltyard.methods import a2c, grpo, ppo, reinforce, reinforce_pp, rloo
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.sampling.base import Capabilities
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.prepare import Correction
from tiltyard.training.prepare.mismatch import mismatch
from tiltyard.training.source import Online
from tiltyard.types import Group

from . import tiny
from .test_rl_oracles import ASK, BETA, LAW, SCORES, SHAPE, SUPPORT, exact, expected, group, law, models, prepared

WHOLE = Correction("sequence", math.inf)


class Elsewhere(NativeSampler):
    """The toolkit's sampler, which passes for another program."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exact=False)


def source(correction: Correction, k: int = 1) -> Online:
    never = FunctionScorer(lambda prompt, response: 0.0)
    return Online([ASK], Elsewhere(), never, 1, k, LAW, correction=correction)


def other() -> LanguageModel:
    return tiny.policy(8, **SHAPE)


def drawn(sampler: LanguageModel, k: int) -> tuple[list[Group], Tensor]:
    """Every draw of k answers of the sampler with its log-probs, and its probability."""
    groups = [group(i) for i in range(len(SUPPORT))]
    sizes = [len(y) for y in SUPPORT]
    logps = [part.tolist() for part in sampler.logp_R(pack(groups))[0].detach().split(sizes)]
    p = law(sampler).detach().exp()
    draws = list(product(range(len(SUPPORT)), repeat=k))

    def recorded(draw: tuple[int, ...]) -> Group:
        made = group(*draw)
        answers = [replace(r, logps=tuple(logps[i])) for i, r in zip(draw, made.responses, strict=True)]
        return replace(made, responses=tuple(answers))

    return [recorded(d) for d in draws], torch.stack([p[list(d)].prod() for d in draws])


PLAIN: dict[str, tuple[int, Callable[[Any], Algorithm], float]] = {  # answers, method, its share of the gradient
    "ppo": (
        1,
        lambda s: ppo(s, beta=BETA, lam=1.0, vf_coef=0.0, whiten_advantages=False, missing_eos="none"),
        1.0,
    ),
    "a2c": (1, lambda s: a2c(s, beta=BETA, value_coef=0.0, missing_eos="none"), 1.0),
    "reinforce": (1, lambda s: reinforce(s, beta=BETA, value_coef=0.0, missing_eos="none"), 1.0),
    "rloo": (2, lambda s: rloo(s, beta=BETA, missing_eos="none"), 1.0),
    "grpo": (2, lambda s: grpo(s, beta=BETA, kl_form="reward_k1", scale="none", aggregate="constant"), 0.25),
}


def gradient(name: str, found: Models, correction: Correction) -> list[Tensor]:
    """The expected gradient over the sampler's answers, in units of the exact one."""
    k, build, share = PLAIN[name]
    return [g / share for g in expected(build(source(correction, k)), found, *drawn(other(), k))]


def distance(one: list[Tensor], two: list[Tensor]) -> float:
    return math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(one, two, strict=True)))


@pytest.mark.parametrize("name", PLAIN)
def test_whole_weights_give_the_exact_gradient(name: str) -> None:
    """Of the trainer's policy, though another one answered; without weights it is another gradient."""
    found = models()
    truth = [-g for g in exact(found)]
    tiny.assert_same(gradient(name, found, WHOLE), truth, 1e-11)
    assert distance(gradient(name, found, Correction("none")), truth) > 0.05


@pytest.mark.parametrize("name", PLAIN)
def test_a_cap_that_no_answer_reaches_changes_nothing(name: str) -> None:
    found = models()
    ratio = (law(found["policy"]) - law(other())).detach().exp()
    cap = float(ratio.max()) + 1e-9
    tiny.assert_same(gradient(name, found, Correction("sequence", cap)), [-g for g in exact(found)], 1e-11)


@pytest.mark.parametrize("cap", [1.5, 1.2, 1.0])
def test_the_bias_of_truncation_is_bounded(cap: float) -> None:
    """By what the cap takes off, E[(ratio - cap)+], times the largest advantage and the largest slope of log pi."""
    found = models()
    logp, theirs = law(found["policy"]), law(other()).detach()
    taken = float((theirs.exp() * ((logp.detach() - theirs).exp() - cap).clamp(min=0)).sum())
    reward = SCORES - BETA * (logp - law(found["ref"])).detach()
    parameters = list(found["policy"].parameters())
    slopes = [torch.autograd.grad(x, parameters, retain_graph=True) for x in logp]
    steepest = max(math.sqrt(sum(float((g**2).sum()) for g in slope)) for slope in slopes)
    bias = distance(gradient("rloo", found, Correction("sequence", cap)), [-g for g in exact(found)])
    assert 1e-3 < bias < taken * float(reward.max() - reward.min()) * steepest


def test_truncated_weights_of_tokens_by_hand() -> None:
    """Each token of each answer, written out: min(ratio, cap) (R - baseline) grad log pi."""
    found, sampler, cap = models(), other(), 1.3
    groups = [group(i) for i in range(len(SUPPORT))]
    sizes = [len(y) for y in SUPPORT]
    ours, theirs = (m.logp_R(pack(groups))[0].split(sizes) for m in (found["policy"], sampler))
    logp_B, ref_B = law(found["policy"]).detach(), law(found["ref"]).detach()
    reward = SCORES - BETA * (logp_B - ref_B)
    chance = law(sampler).detach().exp()
    total = torch.zeros(()).double()
    for i, j in product(range(len(SUPPORT)), repeat=2):
        for own, against in ((i, j), (j, i)):
            weight = (ours[own] - theirs[own]).detach().exp().clamp(max=cap)
            total = total - chance[i] * chance[j] * (reward[own] - reward[against]) * (weight * ours[own]).sum() / 2
    truth = list(torch.autograd.grad(total, found["policy"].parameters()))
    tiny.assert_same(gradient("rloo", found, Correction("token", cap)), truth, 1e-11)


def test_weights_of_tokens_are_exact_for_answers_of_one_token() -> None:
    """A bandit: the token is the whole answer."""
    found, settings = models(), SampleSettings(max_tokens=1)
    score = torch.tensor([0.7, -0.2, 0.4]).double()
    ask = pack([Group(ASK, tuple(replace(group(0).responses[0], ids=(v,)) for v in range(3)))])
    logp, theirs = (m.logp_R(ask)[0] for m in (found["policy"], other()))
    truth = list(torch.autograd.grad((logp.exp() * score).sum(), found["policy"].parameters(), retain_graph=True))
    never = FunctionScorer(lambda prompt, response: 0.0)
    here = Online([ASK], Elsewhere(), never, 1, 2, settings, correction=Correction("token", math.inf))
    draws = list(product(range(3), repeat=2))
    groups = [
        Group(
            ASK,
            tuple(
                replace(group(0).responses[0], ids=(v,), logps=(float(theirs[v].detach()),), finish="length")
                for v in draw
            ),
            scores=tuple(float(score[v]) for v in draw),
        )
        for draw in draws
    ]
    chance = torch.stack([theirs.detach().exp()[list(d)].prod() for d in draws])
    got = expected(rloo(here, beta=0.0, missing_eos="none"), found, groups, chance)
    tiny.assert_same(got, [-g for g in truth], 1e-11)


def test_no_weight_is_above_the_cap() -> None:
    found = models()
    groups, _ = drawn(other(), 2)
    for level, cap in product(("token", "sequence"), (1.0, 1.2, 2.0)):
        batch = prepared(PLAIN["rloo"][1](source(Correction(level, cap), 2)), found, groups)
        weight_R = batch["sampler_weight_R"]
        assert float(weight_R.max()) <= cap
        mean, count = batch.metrics["mismatch/weight"]
        assert mean / count == pytest.approx(float(weight_R.mean()))
        truncated, count = batch.metrics["mismatch/truncated"]
        assert truncated / count == pytest.approx(float((weight_R == cap).double().mean()))
        tiny.assert_same(batch["old_logp_R"], found["policy"].logp_R(batch.forest)[0].detach(), 1e-12)


# -------------------------------------------------------------------------------------- the toolkit's own sampler

TRAINED: dict[str, Callable[[Any], Algorithm]] = {
    "ppo": ppo,
    "a2c": a2c,
    "reinforce": reinforce,
    "reinforce_pp": lambda s: reinforce_pp(s, ppo_epochs=2),
    "rloo": rloo,
    "grpo": lambda s: grpo(s, ppo_epochs=2, minibatches=2),
}


def run(name: str, sampler: NativeSampler, correction: Correction) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    found = Models(policy=tiny.policy(), ref=tiny.frozen(2), value=tiny.scalar(1))
    rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
    prompts = [replace(ASK, ids=(2, 3 + i)) for i in range(3)]
    online = Online(prompts, sampler, rule, 3, 2, SampleSettings(max_tokens=5), seed=4, correction=correction)
    rows = tiny.train(TRAINED[name](online), found, steps=3, lr=1e-2)
    return tiny.parameters(found["policy"]), rows


@pytest.mark.parametrize("name", TRAINED)
def test_where_both_are_one_program_the_weights_are_one(name: str) -> None:
    """With the toolkit's sampler nothing is weighted; where it passes for another program all ratios are 1."""
    plain, rows = run(name, NativeSampler(), Correction())
    same, again = run(name, NativeSampler(), Correction("sequence", 1.0))
    tiny.assert_same(same, plain, 0)
    tiny.assert_same(again, rows, 0)
    assert not any("mismatch/weight" in row for row in rows)
    weighted, others = run(name, Elsewhere(), Correction("token", 3.0))
    tiny.assert_same(weighted, plain, 1e-7)
    for row in others:
        assert row["sampler_gap"] < 1e-12
        shares = (row["mismatch/weight"], row["mismatch/truncated"], row["mismatch/off"], row["mismatch/effective"])
        assert shares == pytest.approx((1, 0, 0, 1), abs=1e-9)
        assert row["mismatch/largest"] < 1e-11


def test_the_distance_by_hand() -> None:
    theirs = torch.tensor([-1.0, -2.0, -0.5, -3.0]).double()
    ours = theirs + torch.tensor([0.0, 0.005, -0.2, 1.5]).double()
    found = {name: total / count for name, (total, count) in mismatch(ours, theirs).items()}
    ratios = [1.0, math.exp(0.005), math.exp(-0.2), math.exp(1.5)]
    assert found == pytest.approx(
        {
            "sampler_gap": 1.705 / 4,
            "mismatch/off": 0.5,
            "mismatch/above_0.001": 0.75,
            "mismatch/above_0.01": 0.5,
            "mismatch/above_0.1": 0.5,
            "mismatch/above_1": 0.25,
            "mismatch/effective": sum(ratios) ** 2 / (4 * sum(r * r for r in ratios)),
            "mismatch/largest": 1.5,
        }
    )
    assert mismatch(ours[:0], theirs[:0]) == {}


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="a cap below 1"):
        Correction("token", 0.5)
