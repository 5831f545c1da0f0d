"""methods.md §2.10 to §2.12: baselines and scales of a group, by enumeration; length's punishment; GRPO's optima."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from tiltyard.errors import ConfigError
from tiltyard.losses.advantages import gae_R, group_advantages_B, overlong_B, response_rewards_B, token_rewards_R
from tiltyard.losses.kl import k3
from tiltyard.losses.policy import policy_gradient, ppo_clip_R, value_error_R
from tiltyard.losses.supervised import nll_R

from .toy import F64, SequenceWorld, bandit, grad, same

BASELINES = ("leave_one_out", "mean", "none")


def one_group(*rewards: float, baseline: str = "mean", std: object = "group", ddof: int = 1) -> Tensor:
    zeros = torch.zeros(len(rewards), dtype=torch.long)
    return group_advantages_B(torch.tensor(rewards, dtype=F64), zeros, baseline, std, ddof)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- sharp values


def test_two_answers() -> None:
    """(1, 0): +-0.7071 with the sample deviation, +-1 with the population's; leave-one-out +-(R1 - R2)."""
    half = math.sqrt(0.5)
    same(one_group(1, 0), torch.tensor([half, -half], dtype=F64), 1e-15)
    same(one_group(1, 0, ddof=0), torch.tensor([1, -1], dtype=F64), 1e-15)
    same(one_group(2.5, 0.3, baseline="leave_one_out", std="none"), torch.tensor([2.2, -2.2], dtype=F64), 1e-15)
    same(one_group(2.5, 0.3, std="none"), torch.tensor([1.1, -1.1], dtype=F64), 1e-15)
    same(one_group(2.5, 0.3, std=torch.tensor(4.0)), torch.tensor([0.275, -0.275], dtype=F64), 1e-15)
    assert one_group(2.5, 0.3, baseline="none", std="none").tolist() == [2.5, 0.3]


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("std", ["group", "none", torch.tensor(0.0)])
@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -1e9, 1e-300])
def test_equal_rewards_teach_exactly_nothing(reward: float, baseline: str, std: object, ddof: int) -> None:
    """0.1 + 0.1 + 0.1 is not 0.3: without care the last digit is divided by itself."""
    for k in (1, 2, 3, 7):
        assert one_group(*[reward] * k, baseline=baseline, std=std, ddof=ddof).tolist() == [0.0] * k


def test_every_group_has_its_own_baseline() -> None:
    """Groups of different sizes, one after the other, against a loop over plain lists."""
    g = torch.Generator().manual_seed(0)
    sizes = (2, 5, 1, 3)
    rows = [torch.randn(n, generator=g, dtype=F64).tolist() for n in sizes]
    group_B = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    flat = torch.tensor([x for row in rows for x in row], dtype=F64)
    left_out, scaled = [], []
    for row in rows:
        others = [row[:i] + row[i + 1 :] for i in range(len(row))]
        left_out += [x - sum(rest) / len(rest) if rest else 0.0 for x, rest in zip(row, others, strict=True)]
    same(group_advantages_B(flat, group_B, "leave_one_out"), torch.tensor(left_out, dtype=F64))
    for row in rows:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / max(len(row) - 1, 1))
        scaled += [(x - mean) / (deviation + 1e-3) if len(row) > 1 else 0.0 for x in row]
    same(group_advantages_B(flat, group_B, "mean", "group", eps=1e-3), torch.tensor(scaled, dtype=F64))


@pytest.mark.parametrize(("a", "c"), [(3.0, 0.0), (0.01, 5.0), (100.0, -2.0)])
def test_scaled_advantages_do_not_know_the_unit_of_rewards(a: float, c: float) -> None:
    g = torch.Generator().manual_seed(1)
    r = torch.randn(12, generator=g, dtype=F64)
    group_B = torch.arange(3).repeat_interleave(4)
    scaled = group_advantages_B(r, group_B, "mean", "group")
    same(group_advantages_B(a * r + c, group_B, "mean", "group"), scaled, 1e-9)
    same(scaled.view(3, 4).sum(1), torch.zeros(3, dtype=F64))
    left = group_advantages_B(r, group_B, "leave_one_out")
    same(group_advantages_B(a * r + c, group_B, "leave_one_out"), a * left, 1e-9)
    same(left.view(3, 4).sum(1), torch.zeros(3, dtype=F64))


# --------------------------------------------------------------------- expected gradients, over all draws of a group


def expected_gradient(k: int, baseline: str) -> tuple[Tensor, Tensor]:
    """(mean gradient of the estimator over all K^k draws from pi, grad J), KL in the reward; T1."""
    w = bandit()
    logp = torch.log_softmax(w.theta, 0)
    pi = logp.exp().detach()
    reward = response_rewards_B(w.reward, logp - w.ref, w.beta)
    loss = torch.zeros((), dtype=F64)
    for draw in product(range(5), repeat=k):
        y = torch.tensor(draw)
        advantage = group_advantages_B(reward[y], torch.zeros(k, dtype=torch.long), baseline)  # type: ignore[arg-type]
        loss = loss + pi[y].prod() * policy_gradient(logp[y], advantage).mean()
    j = (logp.exp() * (w.reward - w.beta * (logp - w.ref))).sum()
    return -grad(loss, w.theta), grad(j, w.theta)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_leave_one_out_is_unbiased_and_the_plain_mean_is_short_by_one_in_k(k: int) -> None:
    found, exact = expected_gradient(k, "leave_one_out")
    same(found, exact, 1e-13)
    found, _ = expected_gradient(k, "mean")
    same(found, exact * (k - 1) / k, 1e-13)
    found, _ = expected_gradient(k, "none")
    same(found, exact, 1e-13)


def test_no_gradient_flows_through_a_reward() -> None:
    """With it RLOO would carry k1 as a loss: the same mean, another estimate."""
    w = bandit()
    logp = torch.log_softmax(w.theta, 0)
    reward = response_rewards_B(w.reward, logp - w.ref, w.beta)
    advantage = group_advantages_B(reward, torch.zeros(5, dtype=torch.long), "leave_one_out")
    assert not advantage.requires_grad
    leaking = (w.reward - w.beta * (logp - w.ref)) * 1.25
    same(policy_gradient(logp, leaking).detach(), -leaking.detach() * logp.detach())
    assert grad(policy_gradient(logp, leaking).sum(), leaking) is None
    value = torch.randn(5, dtype=F64, requires_grad=True)
    assert grad(value_error_R(value, leaking).sum(), leaking) is None
    same(grad(value_error_R(value, leaking).sum(), value), 2 * (value - leaking).detach())


def binary(size: int, p: float, std: str) -> float:
    """d/dlogit of the expected surrogate of `size` answers with rewards 0 and 1: a sum over the binomial law."""
    x = torch.tensor(math.log(p / (1 - p)), dtype=F64, requires_grad=True)
    wins, losses = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
    total = 0.0
    for m in range(size + 1):
        chance = math.exp(
            math.lgamma(size + 1) - math.lgamma(m + 1) - math.lgamma(size - m + 1)
            + m * math.log(p) + (size - m) * math.log(1 - p)
        )  # fmt: skip
        reward = torch.zeros(size, dtype=F64)
        reward[:m] = 1
        advantage = group_advantages_B(reward, torch.zeros(size, dtype=torch.long), "mean", std, 0)  # type: ignore[arg-type]
        surrogate = (advantage[:m].sum() * wins + advantage[m:].sum() * losses) / size
        total += chance * float(grad(surrogate, x)) if m not in (0, size) else 0.0
    return total


@pytest.mark.parametrize("p", [0.1, 0.37, 0.8])
def test_binary_rewards_ascend_the_arcsine(p: float) -> None:
    """Scaled by its deviation a large group ascends 2 arcsin sqrt(p), unscaled p itself, times (G-1)/G at any G.

    By the logit x of p the slopes are sqrt(p(1-p)) and p(1-p); what a finite group lacks falls like 1/G.
    """
    limit = math.sqrt(p * (1 - p))
    short = [limit - binary(size, p, "group") for size in (100, 200, 400)]
    assert 0 < short[2] < 0.01 * limit
    assert short[0] / short[1] == pytest.approx(2, rel=0.06)
    assert short[1] / short[2] == pytest.approx(2, rel=0.03)
    assert binary(7, p, "none") == pytest.approx(p * (1 - p) * 6 / 7, abs=1e-14)


# ------------------------------------------------------------------------------------------------ length, rewards to go


def test_overlong_has_three_parts() -> None:
    """DAPO's own numbers: nothing up to 16384 tokens, -1 from 20480 on, a line between."""
    length = torch.tensor([1, 16384, 16385, 18432, 20480, 30000])
    expected = torch.tensor([0, 0, -1 / 4096, -0.5, -1, -1], dtype=F64)
    same(overlong_B(length, 20480, 4096), expected, 1e-15)
    same(overlong_B(torch.tensor([3, 4, 5]), 4, 4), torch.tensor([-0.75, -1, -1], dtype=F64), 1e-15)
    for soft in (0, -1, 5):
        with pytest.raises(ConfigError, match="overlong"):
            overlong_B(length, 4, soft)


def test_rewards_to_go_give_the_exact_gradient() -> None:
    """T3 enumerated: without a critic every token is credited with what comes after it, KL included."""
    w, beta = SequenceWorld(), 0.7
    logp_R, ref_R = w.logp_R(w.theta), w.logp_R(w.ref_theta)
    reward_R = token_rewards_R(logp_R, ref_R, w.score_B, w.end_B, beta)
    to_go_R, _ = gae_R(reward_R, torch.zeros_like(reward_R), w.start_B, w.length_B, 1.0, 1.0)
    for s, n in zip(w.start_B.tolist(), w.length_B.tolist(), strict=True):
        same(to_go_R[s : s + n], torch.stack([reward_R[s + t : s + n].sum() for t in range(n)]))
    loss = (w.p_B(w.theta).detach() * w.sum_B(policy_gradient(logp_R, to_go_R))).sum()
    j = (w.p_B(w.theta) * (w.score_B - beta * (w.sum_B(logp_R) - w.sum_B(ref_R)))).sum()
    same(grad(loss, w.theta), -grad(j, w.theta))


def test_the_clip_may_be_lopsided() -> None:
    """The four cells with clip 0.1 below and 0.5 above."""
    advantage = torch.tensor([1.0, 1, -1, -1, 1], dtype=F64)
    ratio = torch.tensor([1.6, 0.8, 0.8, 1.6, 1.4], dtype=F64)
    log_ratio = ratio.log().requires_grad_()
    loss, _, clipped = ppo_clip_R(log_ratio, torch.zeros(5, dtype=F64), advantage, 0.1, 0.5)
    assert clipped.tolist() == [True, False, True, False, False]
    same(loss.detach(), torch.tensor([-1.5, -0.8, 0.9, 1.6, -1.4], dtype=F64), 1e-15)
    g = grad(loss.sum(), log_ratio)
    assert (g == 0).tolist() == clipped.tolist()
    same(g[~clipped], (-advantage * ratio)[~clipped], 1e-15)


# ------------------------------------------------------------------------------------------- optima, without sampling


def bisect(f, low: float, high: float) -> float:
    """Where a falling function is 0."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2


def descend(w, loss, steps: int, rate: float) -> Tensor:
    """log pi after steps along the exact expectation of `loss(logp, old)`, one value an answer, under pi_old."""
    theta = w.theta.detach().clone().requires_grad_()
    for _ in range(steps):
        logp = torch.log_softmax(theta, 0)
        old = logp.detach()
        theta = (theta - rate * grad((old.exp() * loss(logp, old)).sum(), theta)).detach().requires_grad_()
    return torch.log_softmax(theta, 0).detach()


def test_k3_in_the_loss_ends_at_another_law_than_the_tilt() -> None:
    """Unscaled GRPO: d E[r] = b d KL(ref||pi), so pi = b ref / (nu - r) with nu such that it sums to 1."""
    w, b = bandit(), 0.7

    def loss(logp: Tensor, old: Tensor) -> Tensor:
        advantage = w.reward - (old.exp() * w.reward).sum()
        return ppo_clip_R(logp, old, advantage, 0.2).loss_R + b * k3(logp, w.ref)

    top = float(w.reward.max())
    nu = bisect(lambda nu: float((b * w.ref.exp() / (nu - w.reward)).sum()) - 1, top + 1e-12, top + 100)
    best = b * w.ref.exp() / (nu - w.reward)
    found = descend(w, loss, 3000, 0.5)
    same(found.exp(), best, 1e-9)
    tilt = torch.log_softmax(w.ref + w.reward / b, 0).exp()
    assert 0.5 * (tilt - best).abs().sum() > 0.03  # not pi*
    assert (best >= b * w.ref.exp() / (nu - float(w.reward.min())) - 1e-12).all()  # heavier tails


@pytest.mark.parametrize("ptx", [0.0, 0.5, 2.0])
def test_ptx_ends_where_reward_pull_and_texts_balance(ptx: float) -> None:
    """r - beta log(pi/ref) + ptx D/pi is the same for every answer, and that is its mean, E[r - beta log] + ptx."""
    w = bandit()
    texts = torch.tensor([0.1, 0.45, 0.05, 0.15, 0.25], dtype=F64)

    def loss(logp: Tensor, old: Tensor) -> Tensor:
        reward = token_rewards_R(old, w.ref, w.reward, torch.arange(5), w.beta)
        return ppo_clip_R(logp, old, reward, 0.2).loss_R + ptx * texts / old.exp() * nll_R(logp)

    found = descend(w, loss, 3000, 0.3)
    pull = w.reward - w.beta * (found - w.ref)
    balance = pull + ptx * texts / found.exp()
    assert float(balance.max() - balance.min()) < 1e-8
    assert float(balance[0]) == pytest.approx(float((found.exp() * pull).sum()) + ptx, abs=1e-8)

    def law(nu: float) -> Tensor:  # for each answer the only pi with that balance, by bisection
        def one(i: int) -> float:
            def f(p: float) -> float:
                return float(w.reward[i]) - w.beta * (math.log(p) - float(w.ref[i])) + ptx * float(texts[i]) / p - nu

            return bisect(f, 1e-12, 50.0)

        return torch.tensor([one(i) for i in range(5)], dtype=F64)

    same(found.exp(), law(bisect(lambda nu: float(law(nu).sum()) - 1, -10, 20)), 1e-8)
