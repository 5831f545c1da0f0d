"""Policy-gradient losses: the plain one, and PPO's clipped ones (Schulman et al. 2017, eq. 7; Ziegler et al. 2019)."""

from typing import NamedTuple

import torch
from torch import Tensor


class ClippedPolicy(NamedTuple):
    """`loss_R` carries the gradient; the rest is for metrics and is detached."""

    loss_R: Tensor
    ratio_R: Tensor  # pi / pi_old of each token
    clipped_R: Tensor  # bool: the clip took this token's gradient away


def policy_gradient(logp: Tensor, advantage: Tensor) -> Tensor:
    """`-A log pi` with A a constant, token by token or response by response (Williams 1992).

    Its gradient is the policy gradient; its value has no meaning. An advantage that carried gradient (a reward with the
    log-ratio in it) would add noise of mean zero, so it is detached here.
    """
    return -advantage.detach().to(logp.dtype) * logp


def ppo_clip_R(
    logp_R: Tensor, old_logp_R: Tensor, advantage_R: Tensor, clip: float, clip_high: float | None = None
) -> ClippedPolicy:
    """PPO's pessimistic surrogate of each token: `max(-A ratio, -A clip(ratio, 1-clip, 1+clip_high))` (eq. 7, negated).

    At pi = pi_old its gradient is that of `-A log pi`, whatever `clip`; `clip=inf` never clips. `old_logp_R` and
    `advantage_R` are constants: they are detached here. `clip_high` is `clip` unless given (DAPO's clip-higher).
    """
    advantage_R = advantage_R.detach()
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    ratio_R = torch.exp(logp_R - old_logp_R.detach())
    free_R = -advantage_R * ratio_R
    bound_R = -advantage_R * ratio_R.clamp(low, high)
    ratio_now_R = ratio_R.detach()
    outside_R = (ratio_now_R < low) | (ratio_now_R > high)
    clipped_R = outside_R & (bound_R > free_R).detach()
    return ClippedPolicy(torch.maximum(free_R, bound_R), ratio_now_R, clipped_R)


def value_error_R(value_R: Tensor, return_R: Tensor) -> Tensor:
    """`(V - G)^2` of each token, G a constant."""
    return (value_R - return_R.detach().to(value_R.dtype)) ** 2


def value_clip_R(value_R: Tensor, old_value_R: Tensor, return_R: Tensor, clip: float) -> Tensor:
    """Clipped value loss of each token: `0.5 max((V-G)^2, (clip(V, V_old-clip, V_old+clip) - G)^2)`.

    Never below `0.5 (V-G)^2` and equal to it while `|V - V_old| <= clip`; `clip=inf` is plain half squared error.
    """
    old_value_R, return_R = old_value_R.detach(), return_R.detach()
    near_R = torch.clamp(value_R, old_value_R - clip, old_value_R + clip)
    return 0.5 * torch.maximum((value_R - return_R) ** 2, (near_R - return_R) ** 2)
