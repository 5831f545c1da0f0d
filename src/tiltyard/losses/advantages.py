"""From scores to advantages: token rewards, the missing-EOS rule, GAE, whitening.

Flat layout: token t of response b is at `start_B[b] + t`; responses lie one after the other and none is empty.
"""

from typing import Literal

import torch
from torch import Tensor

from tiltyard.errors import ConfigError

MissingEos = Literal["replace", "subtract", "none"]


def missing_eos_B(score_B: Tensor, stopped_B: Tensor, rule: MissingEos, penalty: float) -> Tensor:
    """Scores after the rule for responses that never ended by themselves (`stopped_B` False), shape [B].

    `replace`: the score becomes `-penalty` (Ziegler et al. 2019: -1). `subtract`: `score - penalty` (TRL).
    `none`: unchanged. `penalty` is a size, >= 0, so changing the rule never turns the penalty into a prize.
    """
    if penalty < 0:
        raise ConfigError("the missing-EOS penalty is a size and must be >= 0", where="penalty", got=penalty)
    if rule == "none":
        return score_B
    if rule not in ("replace", "subtract"):
        raise ConfigError("no such missing-EOS rule", got=rule, expected="replace, subtract or none")
    cut_B = score_B - penalty if rule == "subtract" else torch.full_like(score_B, -penalty)
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
    """`(sum, sum of squares, count)` as float64 scalars: what processes add up before `mean_var`."""
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
        own_mean, own_var = mean_var(*moments(x))
        mean, var = own_mean if mean is None else mean, own_var if var is None else var
    mean = torch.as_tensor(mean, device=x.device).to(x.dtype)
    var = torch.as_tensor(var, device=x.device).to(x.dtype)
    white = (x - mean) * torch.rsqrt(var + eps)
    return white if shift_mean else white + mean
