"""Reward modelling from comparisons: Bradley-Terry pairs and InstructGPT's K-wise rankings, one loss for both.

Bradley & Terry 1952: p(i preferred to j) = sigmoid(s_i - s_j).
Ouyang et al. 2022 (InstructGPT), eq. 1: all K(K-1)/2 pairs of one prompt are ONE element of the batch, because each
response would otherwise take K-1 gradient steps an epoch and overfit.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ranking_pairs(rank_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every ordered pair of responses of one group in which the first is ranked strictly better (a smaller rank).

    Ties yield no pair. Groups need not be contiguous. Returns `(winner_P, loser_P, group_P)`: indices into B and the
    pair's group, ordered by group, then winner, then loser.
    """
    if rank_B.numel() == 0:
        empty_P = torch.zeros(0, dtype=torch.long, device=rank_B.device)
        return empty_P, empty_P, empty_P
    order_B = torch.argsort(group_B, stable=True)
    group_U, row_B, size_U = torch.unique_consecutive(group_B[order_B], return_inverse=True, return_counts=True)
    start_U = size_U.cumsum(0) - size_U
    place_B = torch.arange(len(order_B), device=order_B.device) - start_U[row_B]
    member_UK = torch.full((len(group_U), int(size_U.max())), -1, dtype=torch.long, device=order_B.device)
    member_UK[row_B, place_B] = order_B
    rank_UK, real_UK = rank_B[member_UK], member_UK >= 0
    better_UKK = (rank_UK[:, :, None] < rank_UK[:, None, :]) & real_UK[:, :, None] & real_UK[:, None, :]
    row_P, i_P, j_P = better_UKK.nonzero(as_tuple=True)
    return member_UK[row_P, i_P], member_UK[row_P, j_P], group_U[row_P]


def pairs_G(rank_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """Kept (untied) pairs of each group, int64 [G]. A group with 0 says nothing: leave it out of the mean."""
    return torch.bincount(ranking_pairs(rank_B, group_B)[2], minlength=groups)


def _mean_of_pairs_G(x_P: Tensor, group_P: Tensor, groups: int) -> Tensor:
    total_G = torch.zeros(groups, dtype=x_P.dtype, device=x_P.device).index_add(0, group_P, x_P)
    return total_G / torch.bincount(group_P, minlength=groups).clamp(min=1)


def kwise_loss_G(score_B: Tensor, rank_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """K-wise ranking loss of each group (InstructGPT eq. 1; Bradley-Terry when K=2), shape [G].

    `mean over kept pairs (i ranked above j) of -log sigmoid(s_i - s_j)`. Ties are left out, and the divisor is the
    number of KEPT pairs of that prompt, not K(K-1)/2 and not the batch's pairs: a prompt weighs the same whatever its
    K and however many ties it has. A group with no pair gives 0 (without gradient); `pairs_G` tells which.

    Args:
        score_B: reward-model scores. rank_B: 1 is best, equal ranks tie. group_B: group index of each response,
        in 0..groups-1.
    """
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    return _mean_of_pairs_G(-logsigmoid(score_B[winner_P] - score_B[loser_P]), group_P, groups)


def accuracy_G(score_B: Tensor, rank_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """Share of each group's kept pairs that the scores order rightly; equal scores count 0.5. [G]; see `pairs_G`."""
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    return _mean_of_pairs_G(correct_P(score_B[winner_P], score_B[loser_P]), group_P, groups)


def correct_P(winner_score_P: Tensor, loser_score_P: Tensor) -> Tensor:
    """1 where the winner scores higher, 0.5 where the scores are equal, else 0. Shape [P]."""
    return (torch.sign(winner_score_P.detach() - loser_score_P.detach()) + 1) / 2
