"""Losses of direct alignment: pure functions of log-probabilities, one value a pair (G), response (B) or group (G).

A pair is two responses, first and second. Three letters are used for all pair losses:

* `h_G`: a difference of one quantity (log-ratio, log-prob, log odds), first response minus second;
* `l`: a loss of `h` that is small where the first response is clearly ahead: `Logistic`, `Squared`, `Hinge`;
* `q_G`: the probability that the FIRST response is preferred: 1 or 0 for hard labels, between them for soft ones.

Every pair loss is `q l(h) + (1 - q) l(-h)`, so label noise is a change of q (`losses.labels`) and works with all of
them. The papers' letters for the parameters stand in the table; in the code the scale of h is always `beta`.

| loss | class | l | h | source |
|---|---|---|---|---|
| DPO, SPIN | `Logistic(beta)` | softplus(-beta h) | of log pi/ref, summed over tokens | Rafailov et al. 2023, eq. 7 |
| IPO | `Squared(beta)`, tau = beta | (h - 1/(2 tau))^2 | of log pi/ref | Azar et al. 2023, eq. 17 |
| SLiC-HF, CLICK | `Hinge(margin)`, delta = margin | max(0, delta - h) | of log pi, summed | Zhao et al. 2023, eq. 1 |
| RSO's hinge-norm | `Hinge(1, beta)` | max(0, 1 - gamma h) | of log pi/ref, summed | Liu et al. 2023, table 1 |
| SimPO | `Logistic(beta, margin)` | softplus(gamma - beta h) | of averaged log pi | Meng et al. 2024, eq. 6 |
| ORPO | `Logistic(1)` | softplus(-h) | of log odds of exp(averaged log pi) | Hong et al. 2024, eq. 7 |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tiltyard.losses.reward import ranking_pairs


def first_minus_second_G(x_B: Tensor) -> Tensor:
    """Difference of the two responses of each pair; rows of a pair stand next to each other. [2G] -> [G]."""
    first_G, second_G = x_B.view(-1, 2).unbind(1)
    return first_G - second_G


class MarginLoss(Protocol):
    """A loss `l` of the difference h of a pair, elementwise, same shape as h."""

    def __call__(self, h: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Logistic:
    """`l(h) = -log sigmoid(beta h - margin)`: DPO and SPIN (margin 0), SimPO (averaged log-probs, margin gamma)."""

    beta: float
    margin: float = 0.0

    def __call__(self, h: Tensor) -> Tensor:
        return softplus(self.margin - self.beta * h)


@dataclass(frozen=True)
class Squared:
    """IPO's `l(h) = (h - 1/(2 beta))^2`, the paper's tau being beta: h beyond the target is pulled back."""

    beta: float

    def __call__(self, h: Tensor) -> Tensor:
        return (h - 0.5 / self.beta) ** 2


@dataclass(frozen=True)
class Hinge:
    """`l(h) = max(0, margin - beta h)`: zero once the margin is reached; no estimate of log-odds (methods 4.1)."""

    margin: float
    beta: float = 1.0

    def __call__(self, h: Tensor) -> Tensor:
        return torch.relu(self.margin - self.beta * h)


def log_odds(average_logp: Tensor) -> Tensor:
    """`log(P / (1 - P))` with P = exp(average log-prob of a token): ORPO's odds. Finite for average_logp < 0."""
    return average_logp - torch.log(-torch.expm1(average_logp.clamp(max=-1e-7)))


def kto_B(
    log_ratio_B: Tensor, label_B: Tensor, kl: Tensor, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """KTO (Ethayarajh et al. 2024, eq. 8): `w_D (1 - sigmoid(beta (r - z)))` good, `w_U (1 - sigmoid(beta (z - r)))`.

    r is the summed log-ratio to the reference, `kl` the reference point z >= 0 (a constant: no gradient flows into it).
    """
    sign_B = 2 * label_B - 1
    # not torch.where of two numbers, which would round them to float32
    weight_B = torch.full_like(log_ratio_B, undesirable).masked_fill(label_B > 0, desirable)
    return weight_B * torch.sigmoid(-sign_B * beta * (log_ratio_B - kl.detach()))


def rank_hinge_G(x_B: Tensor, rank_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """RRHF's ranking loss (Yuan et al. 2023, eq. 3), [G]: the SUM over untied pairs of `max(0, x_worse - x_better)`."""
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    loss_P = torch.relu(x_B[loser_P] - x_B[winner_P])
    return torch.zeros(groups, dtype=x_B.dtype, device=x_B.device).index_add(0, group_P, loss_P)


def likelihood_rank(good: Sequence[bool], logp: Sequence[float]) -> list[int]:
    """CLICK's pairing: for each response the index of the good one that it is paired with, or -1.

    Each bad response is paired with the good one whose likelihood is highest among those BELOW its own: the pair is
    close, and the hinge is active. Good responses, and bad ones less likely than every good one, have no pair.
    """
    paired = [-1] * len(good)
    for bad, is_good in enumerate(good):
        below = [i for i, g in enumerate(good) if g and logp[i] < logp[bad]]
        if not is_good and below:
            paired[bad] = max(below, key=lambda i: logp[i])
    return paired
