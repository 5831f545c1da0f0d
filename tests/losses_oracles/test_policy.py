"""methods.md §2.0 and §2.5: PPO's losses against the exact policy gradient."""

import math

import pytest
import torch

from tiltyard.losses.advantages import gae_R, token_rewards_R
from tiltyard.losses.kl import sum_per_response
from tiltyard.losses.policy import ppo_clip_R, value_clip_R

from .toy import F64, SequenceWorld, bandit, grad, same


@pytest.mark.parametrize("clip", [0.0, 0.2, math.inf])
def test_first_step_is_reinforce_for_any_clip(clip):
    torch.manual_seed(0)
    logp_R = torch.randn(20, dtype=F64, requires_grad=True)
    advantage_R = torch.randn(20, dtype=F64)
    loss_R, ratio_R, clipped_R = ppo_clip_R(logp_R, logp_R, advantage_R, clip)
    assert (ratio_R == 1).all()
    assert not clipped_R.any()
    same(loss_R.detach(), -advantage_R)
    same(grad(loss_R.sum(), logp_R), -advantage_R, 1e-15)  # of -A log pi


def test_clip_truth_table():
    """A>0: rising stops beyond 1+eps, falling is pulled back; A<0 mirrored. Four cells, and the inside."""
    advantage = torch.tensor([1.0, 1, -1, -1, 1, -1], dtype=F64)
    log_ratio = torch.tensor([0.5, -0.5, -0.5, 0.5, 0.1, -0.1], dtype=F64, requires_grad=True)
    loss_R, ratio_R, clipped_R = ppo_clip_R(log_ratio, torch.zeros(6, dtype=F64), advantage, 0.2)
    g = grad(loss_R.sum(), log_ratio)
    assert clipped_R.tolist() == [True, False, True, False, False, False]
    assert (g == 0).tolist() == clipped_R.tolist()
    same(g[~clipped_R], (-advantage * ratio_R)[~clipped_R])
    same(loss_R[clipped_R].detach(), torch.tensor([-1.2, 0.8], dtype=F64))


def test_old_logp_and_advantage_are_constants():
    old, advantage = (torch.randn(3, dtype=F64, requires_grad=True) for _ in range(2))
    logp = torch.randn(3, dtype=F64, requires_grad=True)
    loss = ppo_clip_R(logp, old, advantage, 0.2).loss_R.sum()
    assert grad(loss, old) is None
    assert grad(loss, advantage) is None


@pytest.mark.parametrize("baseline", [False, True])
def test_expected_gradient_is_the_exact_policy_gradient(baseline):
    """T3 enumerated: token rewards, lam=1, no whitening: E[grad L_pg] = -grad J, KL included, any baseline."""
    w, beta = SequenceWorld(), 0.7
    logp_R, ref_R = w.logp_R(w.theta), w.logp_R(w.ref_theta)
    p_B = w.p_B(w.theta)
    j = (p_B * (w.score_B - beta * (w.sum_B(logp_R) - w.sum_B(ref_R)))).sum()
    reward_R = token_rewards_R(logp_R, ref_R, w.score_B, w.end_B, beta)
    value = torch.randn(len(w.theta), dtype=F64) * baseline
    advantage_R, _ = gae_R(reward_R, value[w.prefix_R], w.start_B, w.length_B, 1.0, 1.0)
    loss_R = ppo_clip_R(logp_R, logp_R, advantage_R, 0.2).loss_R
    expected = (p_B.detach() * sum_per_response(loss_R, w.response_R, w.B)).sum()
    same(grad(expected, w.theta), -grad(j, w.theta))


def test_bandit_gradient_and_optimum_identities():
    """dJ/dtheta_y = pi(y)(g(y) - E g), g = r - beta log(pi/ref); at pi* g is beta log Z for every y."""
    w = bandit()
    logp = torch.log_softmax(w.theta, 0)
    score = token_rewards_R(logp, w.ref, w.reward, torch.arange(5), w.beta)
    loss = (logp.exp().detach() * ppo_clip_R(logp, logp, score, 0.2).loss_R).sum()
    pi = logp.exp().detach()
    same(grad(loss, w.theta), -pi * (score - (pi * score).sum()))
    at_optimum = token_rewards_R(w.optimum, w.ref, w.reward, torch.arange(5), w.beta)
    same(at_optimum, (w.beta * torch.logsumexp(w.ref + w.reward / w.beta, 0)).expand(5))


@pytest.mark.parametrize("clip", [0.2, math.inf])
def test_fixed_point_is_the_tilted_distribution(clip):
    """Exact expectations, two epochs a step: pi -> pi*, g flat over the support, with or without the clip."""
    w = bandit()
    theta = w.theta.detach().clone().requires_grad_()
    end = torch.arange(5)
    for _ in range(600):
        old = torch.log_softmax(theta, 0).detach()
        score = token_rewards_R(old, w.ref, w.reward, end, w.beta)
        advantage = score - (old.exp() * score).sum()
        for _ in range(2):
            logp = torch.log_softmax(theta, 0)
            loss = (old.exp() * ppo_clip_R(logp, old, advantage, clip).loss_R).sum()
            theta = (theta - 0.5 * grad(loss, theta)).detach().requires_grad_()
    logp = torch.log_softmax(theta, 0).detach()
    assert (logp.exp() - w.optimum.exp()).abs().sum() / 2 < 1e-4
    g = w.reward - w.beta * (logp - w.ref)
    assert g.max() - g.min() < 1e-3


def test_value_clipping():
    torch.manual_seed(0)
    value, old, target = torch.randn(3, 400, dtype=F64)
    value.requires_grad_()
    loss = value_clip_R(value, old, target, 0.2)
    plain = 0.5 * (value - target) ** 2
    near = (value - old).abs() <= 0.2
    assert near.any()
    assert (~near).any()
    assert (loss[near] == plain[near]).all()
    assert (loss >= plain).all()
    assert (loss[~near] > plain[~near]).any()
    same(value_clip_R(value, old, target, math.inf), plain)
    g = grad(loss.sum(), value)
    same(g[near], (value - target)[near].detach(), 1e-15)
    # zero gradient exactly where the clipped branch is the larger one: moving on would not help
    flat = ~near & (loss > plain)
    assert (g[flat] == 0).all()
