"""Numbers that the field's formulas give, to the digits that are written here (half a unit of the last one)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tiltyard.losses.kl import AdaptiveKL, k1, k2, k3
from tiltyard.losses.labels import both_ways_G, noisy_label_G
from tiltyard.losses.preference import Logistic, Squared, likelihood_rank, rank_hinge_G
from tiltyard.losses.reward import kwise_loss_G, listwise_loss_G

FOUR = torch.arange(1, 5).double()  # ranks
ONE = torch.zeros(4, dtype=torch.long)  # all in one group


def number(x: float) -> Tensor:
    return torch.tensor([x], dtype=torch.float64)


def best_h(loss: Callable[[Tensor], Tensor], q: float) -> float:
    """Where q l(h) + (1 - q) l(-h) is least: its slope is 0."""
    low, high = -100.0, 100.0
    for _ in range(200):
        h = number((low + high) / 2).requires_grad_()
        slope = torch.autograd.grad(both_ways_G(loss, h, number(q)).sum(), h)[0]
        low, high = (low, float(h.detach())) if float(slope) > 0 else (float(h.detach()), high)
    return low


def margin_gap(p: float, margin: float) -> float:
    """The difference of two scores at the least of the margin loss, labels being Bernoulli of p."""
    return best_h(Logistic(1.0, margin), p)


def by_the_quadratic(p: float, margin: float) -> str:
    """ln u with (1-p) u^2 - (2p-1) e^m u - p = 0, to nine digits: derived by setting the slope to 0."""
    half = (2 * p - 1) * math.exp(margin)
    return f"{math.log((half + math.sqrt(half**2 + 4 * p * (1 - p))) / (2 * (1 - p))):.9f}"


def at_equal_scores(loss: Callable[..., Tensor]) -> tuple[float, list[float]]:
    """Loss and gradient of a ranking of four that are scored alike."""
    score_B = torch.full((4,), 0.4, dtype=torch.float64, requires_grad=True)
    value = loss(score_B, FOUR, ONE, 1).sum()
    return float(value.detach()), torch.autograd.grad(value, score_B)[0].tolist()


def rrhf_by_hand() -> float:
    """Rewards 1, .2, .8 and averaged log-probs -.8, -.5, -.9."""
    p_B = torch.tensor([-0.8, -0.5, -0.9], dtype=torch.float64)
    return float(rank_hinge_G(p_B, torch.tensor([1.0, 3.0, 2.0]), ONE[:3], 1))


def saturated(kl: float) -> float:
    """The factor on the KL coefficient after 512 answers whose KL is far off its target."""
    return AdaptiveKL(1.0, target=6.0, horizon=10_000).update(kl, 512)


CONSTANTS: dict[str, tuple[float, str]] = {
    "DPO and SPIN at the start": (float(both_ways_G(Logistic(0.1), number(0), number(1))), "0.693147"),
    "Bradley-Terry at the start": (at_equal_scores(kwise_loss_G)[0], "0.693147"),
    "IPO at the start, tau 0.1": (float(both_ways_G(Squared(0.1), number(0), number(1))), "25.0"),
    "IPO's h, sure": (best_h(Squared(0.1), 1.0), "5.0"),
    "IPO's h, p 0.75": (best_h(Squared(0.1), 0.75), "2.5"),
    **{
        f"K-wise gradient at rank {i + 1} of 4": (at_equal_scores(kwise_loss_G)[1][i], value)
        for i, value in enumerate(("-0.2500000", "-0.0833333", "0.0833333", "0.2500000"))
    },
    "Plackett-Luce at the start, K 4": (at_equal_scores(listwise_loss_G)[0], "3.178054"),
    "margin 0.6, p 0.8": (margin_gap(0.8, 0.6), by_the_quadratic(0.8, 0.6)),
    "cDPO's h, beta 0.1, e 0.1": (
        best_h(Logistic(0.1), float(noisy_label_G(number(1), 0.1, "conservative"))),
        "21.9722",
    ),
    "RRHF by hand": (rrhf_by_hand(), "0.70"),
    "k1 at log(ref/pi) = 0.1": (float(k1(number(-0.1), number(0))), "-0.100"),
    "k2": (float(k2(number(-0.1), number(0))), "0.005000"),
    "k3": (float(k3(number(-0.1), number(0))), "0.00517092"),
    "adaptive KL, far above": (saturated(600.0), "1.01024"),
    "adaptive KL, far below": (saturated(0.0), "0.98976"),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_constant(name: str) -> None:
    found, printed = CONSTANTS[name]
    assert found == pytest.approx(float(printed), abs=0.5 * 10 ** -len(printed.partition(".")[2]) + 1e-12, rel=0)


def test_click_holds_each_bad_answer_against_the_good_one_just_below() -> None:
    """Log-probs -1 (bad), -2 (good), -3 (bad), -4 (good): first against second, third against fourth."""
    assert likelihood_rank([False, True, False, True], [-1, -2, -3, -4]) == [1, -1, 3, -1]
