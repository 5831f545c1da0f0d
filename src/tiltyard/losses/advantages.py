"""From scores to advantages: token rewards, the missing-EOS rule, GAE, whitening, baselines and scales of a group.

Flat layout: token t of response b is at `start_B[b] + t`; responses lie one after the other and none is empty.
"""

from typing import Literal

import torch
from torch import Tensor

from tiltyard.errors import ConfigError

MissingEos = Literal["replace", "subtract", "spread", "none"]
Baseline = Literal["leave_one_out", "mean", "none"]


def missing_eos_B(
    score_B: Tensor, stopped_B: Tensor, rule: MissingEos, penalty: float, spread: Tensor | float = 1.0
) -> Tensor:
    """Scores after the rule for responses that never ended by themselves (`stopped_B` False), shape [B].

    `replace`: the score becomes `-penalty` (Ziegler et al. 2019: -1). `subtract`: `score - penalty` (TRL).
    `spread`: `score - penalty * spread`, with the standard deviation of the scores, so that the penalty means the same
    on every reward's scale (Tiltyard). `none`: unchanged. `penalty` is a size, >= 0, so changing the rule never
    turns the penalty into a prize.
    """
    if penalty < 0:
        raise ConfigError("the missing-EOS penalty is a size and must be >= 0", where="penalty", got=penalty)
    if rule == "none":
        return score_B
    if rule not in ("replace", "subtract", "spread"):
        raise ConfigError("no such missing-EOS rule", got=rule, expected="replace, subtract, spread or none")
    size = penalty * spread if rule == "spread" else penalty
    cut_B = torch.full_like(score_B, -penalty) if rule == "replace" else score_B - size
    return torch.where(stopped_B, score_B, cut_B)


def token_rewards_R(old_logp_R: Tensor, ref_logp_R: Tensor, score_B: Tensor, end_B: Tensor, beta: float) -> Tensor:
    """`r_t = -beta (log pi_old - log ref) + [t is the response's last token] score` (Ziegler et al. 2019, eq. 2), [R].

    `end_B`: index into R of each response's last token (`start_B + length_B - 1`). Sums over a response to
    `score - beta log(pi_old(y)/ref(y))`.
    """
    reward_R = -beta * (old_logp_R - ref_logp_R)
    return reward_R.index_add(0, end_B, score_B.to(reward_R.dtype)).detach()


def gae_R(
    reward_R: Tensor, value_R: Tensor, start_B: Tensor, length_B: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over each response (Schulman et al. 2016, eq. 16): `(advantage_R, return_R)`.

    `delta_t = r_t + gamma V_{t+1} - V_t` with V = 0 after the last token; `A_t = delta_t + gamma lam A_{t+1}`;
    `G_t = A_t + V_t`. `value_R[t]` is the value of the state BEFORE token t. No gradient flows through either.
    """
    reward_R, value_R = reward_R.detach(), value_R.detach()
    longest = int(length_B.max()) if length_B.numel() else 0
    time_L = torch.arange(longest, device=reward_R.device)
    real_BL = time_L < length_B[:, None]
    index_BL = (start_B[:, None] + time_L) * real_BL  # beyond the end: any token, masked out below
    reward_BL = torch.where(real_BL, reward_R[index_BL], 0.0)
    value_BL = torch.where(real_BL, value_R[index_BL], 0.0)
    advantage_BL = torch.zeros_like(reward_BL)
    next_value_B = next_advantage_B = reward_R.new_zeros(len(start_B))
    for t in reversed(range(longest)):
        delta_B = reward_BL[:, t] + gamma * next_value_B - value_BL[:, t]
        advantage_BL[:, t] = next_advantage_B = delta_B + gamma * lam * next_advantage_B
        next_value_B = value_BL[:, t]
    advantage_R = torch.zeros_like(reward_R)
    advantage_R[index_BL[real_BL]] = advantage_BL[real_BL]
    return advantage_R, advantage_R + value_R


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(sum, sum of squares, count)` as float64 scalars, which processes add up before `mean_var`."""
    x = x.detach().double()
    return x.sum(), (x * x).sum(), torch.tensor(float(x.numel()), dtype=torch.float64, device=x.device)


def mean_var(total: Tensor, squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance (ddof=0) from `moments`, summed over processes or not. Of nothing: (0, 0)."""
    count = count.clamp(min=1)
    mean = total / count
    return mean, (squares / count - mean * mean).clamp(min=0)


def whiten(
    x: Tensor,
    mean: Tensor | float | None = None,
    var: Tensor | float | None = None,
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """`(x - mean) / sqrt(var + eps)`; with `shift_mean=False` the mean is put back (rewards keep their sign).

    Give `mean` and `var` (population) to use those of all processes or of the whole step; both default to x's own.
    """
    if mean is None or var is None:
        x_mean, x_var = mean_var(*moments(x))
        mean, var = x_mean if mean is None else mean, x_var if var is None else var
    mean = torch.as_tensor(mean, device=x.device).to(x.dtype)
    var = torch.as_tensor(var, device=x.device).to(x.dtype)
    white = (x - mean) * torch.rsqrt(var + eps)
    return white if shift_mean else white + mean


def response_rewards_B(score_B: Tensor, kl_B: Tensor, beta: float, score_weight: float = 1.0) -> Tensor:
    """`score_weight * score - beta * log(pi_old(y)/ref(y))`, one number a response, without gradient.

    `kl_B` is the sum over the response's tokens of k1. A constant: a gradient through it would be k1 as a loss, noise
    of mean zero.
    """
    return (score_weight * score_B - beta * kl_B.to(score_B.dtype)).detach()


def overlong_B(length_B: Tensor, longest: int, soft: int) -> Tensor:
    """DAPO's soft length penalty (Yu et al. 2025, eq. 13), added to the reward of each response, [B].

    0 up to `longest - soft` tokens, then falling linearly to -1 at `longest`, and -1 beyond.
    """
    if not 0 < soft <= longest:
        raise ConfigError(
            "the zone of the length penalty lies within the longest answer",
            where="overlong",
            got=soft,
            expected=f"1 to {longest}",
        )
    return ((longest - soft - length_B.double()) / soft).clamp(-1, 0)


def group_advantages_B(
    reward_B: Tensor,
    group_B: Tensor,
    baseline: Baseline,
    std: Literal["group", "none"] | Tensor = "none",
    ddof: int = 1,
    eps: float = 0.0,
) -> Tensor:
    """Each response's reward against those of its group, `(R_i - b_i) / (std + eps)`, [B].

    `leave_one_out`: b_i is the mean of the OTHERS (RLOO: unbiased). `mean`: of all of them, which makes the expected
    gradient smaller by (K-1)/K. `none`: 0. `std`: the group's own standard deviation with `ddof`, a given one, or 1.
    Where all rewards of a group are equal, or it has one response alone, the advantage is exactly 0 unless baseline is
    `none`; so it is where the divisor is 0. `group_B`: each response's group, 0, 1, ...
    """
    reward_B = reward_B.detach().double()
    groups = int(group_B.max()) + 1 if group_B.numel() else 0
    zero_G = reward_B.new_zeros(groups)
    size_G = zero_G.index_add(0, group_B, torch.ones_like(reward_B))
    mean_G = zero_G.index_add(0, group_B, reward_B) / size_G
    # means of equal numbers are off by a last digit, which a small standard deviation would blow up
    most_G = zero_G.scatter_reduce(0, group_B, reward_B, "amax", include_self=False)
    least_G = zero_G.scatter_reduce(0, group_B, reward_B, "amin", include_self=False)
    tied_B = (most_G == least_G)[group_B]
    centred_B = torch.where(tied_B, 0.0, reward_B - mean_G[group_B])
    advantage_B = reward_B
    if baseline == "mean":
        advantage_B = centred_B
    elif baseline == "leave_one_out":
        advantage_B = centred_B * (size_G / (size_G - 1).clamp(min=1))[group_B]
    if isinstance(std, Tensor):
        scale_B = std.double().expand_as(reward_B)
    elif std == "group":
        square_G = zero_G.index_add(0, group_B, centred_B**2)
        scale_B = (square_G / (size_G - ddof).clamp(min=1)).sqrt()[group_B]
    else:
        return advantage_B
    return torch.where(scale_B + eps > 0, advantage_B / (scale_B + eps), 0.0)
