"""Divergences of a policy from a target that is known up to its normaliser, and the target of best-of-n.

The target is p(y|x) = P(x, y) / Z(x); `log_ratio` is log p/pi of a response. For a convex f with f(1) = 0

    D_f(pi || p) = E_p f(pi/p),    grad D_f = E_pi[ f'(pi/p) grad log pi ]

(Go et al. 2023, "Aligning language models with preferences through f-divergence minimization", theorem 1), so
-f'(pi/p) is a reward, and f' may be shifted by a constant.

| | f(t), t = pi/p | -f'(t), up to a constant | needs Z |
|---|---|---|---|
| forward_kl | -log t, KL(p‖pi) | p/pi | as a factor |
| reverse_kl | t log t, KL(pi‖p) | log p/pi | no |
| tv | abs(1 - t)/2 | sign(p - pi)/2 | yes |
| js | t log 2t/(t+1) + log 2/(t+1) | log(1 + p/pi) | yes |
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Divergence = Literal["forward_kl", "reverse_kl", "tv", "js"]


def group_size(group_B: Tensor, groups: int) -> Tensor:
    """The number of responses of each group, [G] in float64."""
    zero_G = torch.zeros(groups, dtype=torch.float64, device=group_B.device)
    return zero_G.index_add(0, group_B, torch.ones_like(group_B, dtype=torch.float64))


def group_mean(x_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """The mean over each group's responses, [B] -> [G] in float64."""
    zero_G = torch.zeros(groups, dtype=torch.float64, device=x_B.device)
    return zero_G.index_add(0, group_B, x_B.double()) / group_size(group_B, groups)


def group_log_mean_exp(x_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """log of the mean of exp(x) over each group's responses, [B] -> [G] in float64: log Z(x) of log importance weights.

    Each prompt has a Z of its own; it is never pooled.
    """
    x_B = x_B.double()
    most_G = torch.full((groups,), -math.inf, dtype=torch.float64, device=x_B.device)
    most_G = most_G.scatter_reduce(0, group_B, x_B, "amax")
    return group_mean(torch.exp(x_B - most_G[group_B]), group_B, groups).log() + most_G


def pseudo_reward_B(log_ratio_B: Tensor, divergence: Divergence) -> Tensor:
    """-f'(pi/p) of each response up to a constant; its policy gradient descends the divergence.

    Args:
        log_ratio_B: log p/pi, normalised.
    """
    if divergence == "forward_kl":
        return log_ratio_B.exp()
    if divergence == "reverse_kl":
        return log_ratio_B
    if divergence == "tv":
        return torch.sign(log_ratio_B) / 2
    return softplus(log_ratio_B)


def best_of_n_factor(below: Tensor, equal: Tensor, total: Tensor | float, n: float) -> Tensor:
    """log of p_n(y) / ref(y), p_n the distribution of the best of n draws from ref, in nats.

    p_n(y) = ref(y) [F(s)^n - F(<s)^n] / m: F(s) is the chance that a draw scores at most y's score s, F(<s) that it
    scores less, and m = F(s) - F(<s) that of y's own level (ties by chance; Beirami et al. 2401.01879). Without ties
    it tends to n F(s)^(n-1) (Amini et al. 2407.06057).

    Args:
        below, equal: draws that score less than y and as much, counts or probabilities; equal above 0. total: of all.
        n: draws, at least 1.
    """
    under = below / total
    level = equal / total
    high = under + level
    return n * high.log() + torch.log1p(-((under / high) ** n)) - level.log()
