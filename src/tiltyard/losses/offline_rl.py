"""Losses of offline reinforcement learning on responses that were sampled and scored before."""

import torch
from torch import Tensor


def gold_R(logp_R: Tensor, q_R: Tensor, floor: float) -> Tensor:
    """GOLD (Pang & He 2021, eq. 3): `-sg(max(pi, floor)) Q log pi` of each response token. Shape [R] -> [R].

    pi = exp(logp_R) approximates the importance weight of a token that another policy sampled; no gradient flows
    through it or through `q_R`, the return from that token on. With floor = 0 the gradient is that of `-Q pi`, which
    seeks the mode; with floor = 1 the weight is 1 and the loss is the log-likelihood weighted by Q.
    """
    return -logp_R.detach().exp().clamp(min=floor) * q_R.detach() * logp_R


def vmpo_weights_B(advantage_B: Tensor, eta: float) -> Tensor:
    """V-MPO's weights (Song et al. 2019, eq. 4), [B] -> [B]: exp(A / eta) on the better half, 0 on the other.

    They average 1 over the better half (the paper's add up to 1), so learning rates compare to plain likelihood's. Of
    an odd number the half is the larger one; responses that tie with its last are in it too. Maximum likelihood with
    these weights ends at `pi_g exp(A / eta) / Z` within the better half.
    """
    last = advantage_B.topk((len(advantage_B) + 1) // 2).values[-1]
    better_B = advantage_B >= last
    logit_B = torch.where(better_B, advantage_B / eta, -torch.inf)
    return logit_B.softmax(0) * better_B.sum()
