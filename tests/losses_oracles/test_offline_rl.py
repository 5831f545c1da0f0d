"""Losses of offline RL: GOLD's gradient and where it ends, V-MPO's weights and the law that they lead to."""

from __future__ import annotations

import math

import pytest
import torch

from tiltyard.losses.offline_rl import gold_R, vmpo_weights_B
from tiltyard.losses.supervised import nll_R

from .tabular import minimise
from .toy import F64, same

G = torch.Generator().manual_seed(0)
LOGP = -3 * torch.rand(12, generator=G, dtype=F64) - 0.01
Q = torch.rand(12, generator=G, dtype=F64)
ADVANTAGE = torch.tensor([0.3, -0.4, 0.9, 0.0, -0.8, 0.5], dtype=F64)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.4, 1.0])
def test_the_gradient_of_gold_is_its_weight(floor: float) -> None:
    """-max(pi, floor) Q by each log-prob, in plain numbers; none flows into Q or through the weight."""
    logp, q = LOGP.clone().requires_grad_(), Q.clone().requires_grad_()
    loss = gold_R(logp, q, floor)
    weights = [max(math.exp(x), floor) for x in LOGP.tolist()]
    same(
        loss,
        torch.tensor([-w * r * x for w, r, x in zip(weights, Q.tolist(), LOGP.tolist(), strict=True)], dtype=F64),
        1e-12,
    )
    found = torch.autograd.grad(loss.sum(), (logp, q), allow_unused=True)
    same(found[0], torch.tensor([-w * r for w, r in zip(weights, Q.tolist(), strict=True)], dtype=F64), 1e-12)
    assert found[1] is None


def test_gold_without_a_floor_raises_probabilities_and_with_the_highest_is_likelihood() -> None:
    logp = LOGP.clone().requires_grad_()
    (found,) = torch.autograd.grad(gold_R(logp, Q, 0.0).sum(), logp)
    (probability,) = torch.autograd.grad(-(Q * logp.exp()).sum(), logp)
    same(found, probability, 1e-12)
    same(gold_R(LOGP, torch.ones(12, dtype=F64), 1.0), nll_R(LOGP), 0)


def test_the_weights_of_v_mpo() -> None:
    """exp(A/eta) of the three best of six, nothing of the others, one on average over the three."""
    eta = 0.7
    found = vmpo_weights_B(ADVANTAGE, eta)
    each = {i: math.exp(a / eta) for i, a in enumerate(ADVANTAGE.tolist()) if a >= 0.3}
    assert sorted(each) == [0, 2, 5]
    mean = sum(each.values()) / 3
    same(found, torch.tensor([each.get(i, 0.0) / mean for i in range(6)], dtype=F64), 1e-12)
    same(vmpo_weights_B(ADVANTAGE + 5, eta), found, 1e-12)
    same(vmpo_weights_B(3 * ADVANTAGE, 3 * eta), found, 1e-12)
    same(vmpo_weights_B(ADVANTAGE, 1e9), torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=F64), 1e-8)
    same(vmpo_weights_B(ADVANTAGE, 1e-3), torch.tensor([0.0, 0, 3, 0, 0, 0], dtype=F64), 1e-12)


def test_the_half_of_an_odd_number_and_of_ties() -> None:
    kept = [vmpo_weights_B(torch.tensor(a, dtype=F64), 1e9) > 0 for a in ([3.0, 2, 1], [1.0, 1, 0, 0], [1.0, 0, 0, 0])]
    assert [k.tolist() for k in kept] == [[True, True, False], [True, True, False, False], [True] * 4]
    same(vmpo_weights_B(torch.zeros(5, dtype=F64), 0.1), torch.ones(5, dtype=F64), 1e-12)
    same(vmpo_weights_B(torch.tensor([7.0], dtype=F64), 0.1), torch.ones(1, dtype=F64), 1e-12)


def test_v_mpo_ends_at_the_tilt_within_the_better_half() -> None:
    """The minimum of the weighted likelihood of samples of pi_g (counts 1 to 6, so what half is goes by samples)."""
    counts = [3, 1, 2, 5, 4, 6]
    sampled = [i for i, count in enumerate(counts) for _ in range(count)]
    eta = 0.4
    weights = vmpo_weights_B(ADVANTAGE[sampled], eta)
    # 21 samples: the eleventh best is answer 0 (0.3): 2 of 0.9, 6 of 0.5, 3 of 0.3
    kept = {i: counts[i] * math.exp(float(ADVANTAGE[i]) / eta) for i in (0, 2, 5)}
    law = torch.tensor([kept.get(i, 0.0) / sum(kept.values()) for i in range(6)], dtype=F64)
    total = torch.zeros(6, dtype=F64).index_add(0, torch.tensor(sampled), weights)
    same(total / total.sum(), law, 1e-12)
    inside = [0, 2, 5]
    end = minimise(lambda theta: -(total[inside] * torch.log_softmax(theta, 0)).sum() / 21, torch.zeros(3, dtype=F64))
    same(torch.softmax(end, 0), law[inside], 1e-10)
