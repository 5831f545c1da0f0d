"""methods.md §2.0 (the optimum), §2.2 (the estimators) and §2.3 (the controllers)."""

import math

import pytest
import torch

from tiltyard.errors import ConfigError, NonFiniteError
from tiltyard.losses.kl import AdaptiveKL, FixedKL, k1, k2, k3, sum_per_response
from tiltyard.losses.supervised import nll_R

from .toy import F64, SequenceWorld, bandit, grad, same


def kl(a, b):
    return (a.exp() * (a - b)).sum(-1)


def test_sharp_constants():
    logp, ref = torch.tensor(0.0, dtype=F64), torch.tensor(0.1, dtype=F64)
    assert k1(logp, ref).item() == pytest.approx(-0.1, abs=1e-15)
    assert k2(logp, ref).item() == pytest.approx(0.005, abs=1e-15)
    assert k3(logp, ref).item() == pytest.approx(0.0051709180756477, abs=1e-15)


def test_nll_is_minus_logp():
    x = torch.tensor([-0.5, -2.0], dtype=F64)
    same(nll_R(x), -x)


def test_five_statements_on_the_bandit():
    w = bandit()
    logp = torch.log_softmax(w.theta, 0)
    frozen = logp.detach().exp()
    reverse, forward = kl(logp, w.ref), kl(w.ref, logp)
    expect = {f.__name__: (frozen * f(logp, w.ref)).sum() for f in (k1, k2, k3)}
    same(expect["k1"], reverse)  # 1 unbiased
    same(expect["k3"], reverse)  # 2 unbiased
    assert (k3(logp, w.ref) >= 0).all()
    same(grad(expect["k1"], w.theta), torch.zeros(5, dtype=F64))  # 3 pure noise as a loss
    same(grad(expect["k2"], w.theta), grad(reverse, w.theta))  # 4 reverse KL as a loss
    same(grad(expect["k3"], w.theta), grad(forward, w.theta))  # 5 forward KL as a loss
    assert (grad(reverse, w.theta) - grad(forward, w.theta)).abs().max() > 1e-2  # and the two differ here


def test_k2_is_biased_at_third_order():
    w = bandit()
    errors = []
    for step in (0.02, 0.01):
        logp = torch.log_softmax(w.ref + step * w.reward, 0)
        errors.append(((logp.exp() * k2(logp, w.ref)).sum() - kl(logp, w.ref)).abs().item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)


def test_five_statements_token_by_token():
    w = SequenceWorld()
    logp_R, ref_R = w.logp_R(w.theta), w.logp_R(w.ref_theta)
    frozen_B = w.p_B(w.theta).detach()
    same(frozen_B.sum(), torch.tensor(1.0, dtype=F64))
    table, ref_table = torch.log_softmax(w.theta, -1), torch.log_softmax(w.ref_theta, -1)
    law = w.prefix_law(w.theta).detach()
    sequence_kl = (frozen_B * (w.sum_B(logp_R) - w.sum_B(ref_R))).sum()
    expect = {
        f.__name__: (frozen_B * sum_per_response(f(logp_R, ref_R), w.response_R, w.B)).sum() for f in (k1, k2, k3)
    }
    same(expect["k1"], sequence_kl)
    same(expect["k3"], sequence_kl)
    same(grad(expect["k1"], w.theta), torch.zeros_like(w.theta))
    same(grad(expect["k2"], w.theta), grad((law * kl(table, ref_table)).sum(), w.theta))
    same(grad(expect["k3"], w.theta), grad((law * kl(ref_table, table)).sum(), w.theta))


def test_sum_per_response_is_the_naive_sum_and_keeps_empty_responses():
    w = SequenceWorld()
    x_R = torch.randn(len(w.token_R), dtype=F64)
    same(sum_per_response(x_R, w.response_R, w.B), w.sum_B(x_R))
    assert sum_per_response(x_R[:0], w.response_R[:0], 2).tolist() == [0, 0]


def test_no_bias_at_the_reference():
    x = torch.randn(7, dtype=F64, requires_grad=True)
    for f in (k1, k2, k3):
        assert (f(x, x.detach()) == 0).all()
    same(grad(k3(x, x.detach()).sum(), x), torch.zeros(7, dtype=F64))


def test_saturation():
    assert AdaptiveKL(beta=1.0).update(1e6, 512) == pytest.approx(1.01024, abs=1e-12)
    assert AdaptiveKL(beta=1.0).update(0.0, 512) == pytest.approx(0.98976, abs=1e-12)
    assert AdaptiveKL(beta=1.0).update(-3.0, 512) == pytest.approx(0.98976, abs=1e-12)  # a negative sample is legal


def test_on_target_leaves_beta_and_the_response_is_monotone():
    assert AdaptiveKL(beta=0.3, target=6).update(6.0, 512) == 0.3
    betas = [AdaptiveKL(beta=0.3, target=6).update(x, 512) for x in (-1, 5, 5.5, 6, 6.5, 7, 50)]
    assert betas == sorted(betas)
    assert betas[1] < betas[2] < 0.3 < betas[4] < betas[5]


def test_closed_loop_converges_to_the_beta_of_the_target():
    w = bandit()
    kl_at = lambda beta: kl(torch.log_softmax(w.ref + w.reward / beta, 0), w.ref).item()  # noqa: E731
    target, low, high = 0.25, 1e-2, 1e3
    for _ in range(200):  # KL falls as beta grows
        mid = math.sqrt(low * high)
        low, high = (mid, high) if kl_at(mid) > target else (low, mid)
    for start in (0.05, 20.0):
        controller = AdaptiveKL(beta=start, target=target)
        for _ in range(3000):
            controller.update(kl_at(controller.beta), 512)
        assert controller.beta == pytest.approx(low, rel=1e-9)
        assert kl_at(controller.beta) == pytest.approx(target, rel=1e-9)


def test_fixed_and_state():
    fixed = FixedKL(0.05)
    assert fixed.update(100.0, 512) == 0.05
    a, b = AdaptiveKL(), AdaptiveKL()
    a.update(9.0, 64)
    b.load_state_dict(a.state_dict())
    assert a.update(7.0, 64) == b.update(7.0, 64)


def test_bad_input():
    with pytest.raises(NonFiniteError):
        AdaptiveKL().update(float("nan"), 8)
    with pytest.raises(ConfigError, match="horizon"):
        AdaptiveKL(horizon=100).update(1.0, 500)
    with pytest.raises(ConfigError, match="target"):
        AdaptiveKL(target=0)
    with pytest.raises(ConfigError, match="beta"):
        FixedKL(-1)
