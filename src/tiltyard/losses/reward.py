"""Reward modelling from comparisons: Bradley-Terry pairs, InstructGPT's K-wise rankings, Plackett-Luce, best of K.

Bradley & Terry 1952: p(i preferred to j) = sigmoid(s_i - s_j).
Ouyang et al. 2022 (InstructGPT), eq. 1: all K(K-1)/2 pairs of one prompt are ONE element of the batch, because each
response would otherwise take K-1 gradient steps an epoch and overfit.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiltyard.losses.labels import Noise, both_ways_G, noisy_label_G


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
    """Kept (untied) pairs of each group, int64 [G]. A group with 0 is left out of the mean."""
    return torch.bincount(ranking_pairs(rank_B, group_B)[2], minlength=groups)


def _mean_of_pairs_G(x_P: Tensor, group_P: Tensor, groups: int) -> Tensor:
    total_G = torch.zeros(groups, dtype=x_P.dtype, device=x_P.device).index_add(0, group_P, x_P)
    return total_G / torch.bincount(group_P, minlength=groups).clamp(min=1)


def kwise_loss_G(
    score_B: Tensor,
    rank_B: Tensor,
    group_B: Tensor,
    groups: int,
    *,
    share_B: Tensor | None = None,
    soft_G: Tensor | None = None,
    noise: float = 0.0,
    noise_kind: Noise = "conservative",
    grade_B: Tensor | None = None,
    centre: float = 0.0,
) -> Tensor:
    """K-wise ranking loss of each group (InstructGPT eq. 1; Bradley-Terry when K=2), shape [G].

    `mean over kept pairs (i ranked above j) of q l(D - m) + (1 - q) l(-D - m) + centre (s_i + s_j)^2` with
    `l(x) = -log sigmoid(x)`, `D = s_i - s_j`; q = 1 and m = 0 by default. Ties are left out, and the divisor
    is the number of KEPT pairs of that prompt, not K(K-1)/2 and not the batch's pairs: a prompt weighs the same
    whatever its K and however many ties it has. A group with no pair gives 0 (without gradient); see `pairs_G`.

    Args:
        score_B: reward-model scores. rank_B: 1 is best, equal ranks tie. group_B: group index of each response,
            in 0..groups-1.
        share_B, soft_G: where soft_G is 1, q = share_i / (share_i + share_j) (one half if both are 0).
        noise, noise_kind: see `losses.labels`.
        grade_B: m = |grade_i - grade_j| (Llama 2, section 3.2.2). Margins break calibration: D is no log-odds then.
        centre: Eisenstein et al. 2023's regulariser. With K=2 it sets s_w = -s_l without touching D; with K >= 3 it is
            a ridge besides, and differences shrink.
    """
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    gap_P = score_B[winner_P] - score_B[loser_P]
    q_P = torch.ones_like(gap_P)
    if share_B is not None and soft_G is not None:
        both_P = share_B[winner_P] + share_B[loser_P]
        soft_P = torch.where(both_P > 0, share_B[winner_P] / both_P.clamp(min=1e-30), 0.5)
        q_P = torch.where(soft_G[group_P] > 0, soft_P.to(q_P.dtype), q_P)
    if noise:
        q_P = noisy_label_G(q_P, noise, noise_kind)
    margin_P = 0.0 if grade_B is None else (grade_B[winner_P] - grade_B[loser_P]).abs().to(gap_P.dtype)
    loss_P = both_ways_G(lambda d_P: -logsigmoid(d_P - margin_P), gap_P, q_P)
    if centre:
        loss_P = loss_P + centre * (score_B[winner_P] + score_B[loser_P]) ** 2
    return _mean_of_pairs_G(loss_P, group_P, groups)


def listwise_loss_G(score_B: Tensor, rank_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """Plackett-Luce (Plackett 1975; Luce 1959), [G]: `-sum over ranks k of (s_(k) - logsumexp of those not above it)`.

    The sum, not a mean: exp(-loss) is the probability of the whole ranking. Tied responses are in each other's
    denominators (Breslow's rule), and the last rank adds nothing unless it is shared.
    """
    same_BB = group_B[:, None] == group_B[None]
    left_BB = same_BB & (rank_B[None] >= rank_B[:, None])  # those that are not ranked above the row's response
    table_BB = torch.where(left_BB, score_B[None], -torch.inf)
    loss_B = table_BB.logsumexp(1) - score_B
    return torch.zeros(groups, dtype=score_B.dtype, device=score_B.device).index_add(0, group_B, loss_B)


def best_loss_G(score_B: Tensor, share_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """Cross-entropy of the best response, [G]: `-sum_i share_i log softmax(s)_i` (Ziegler et al. 2019, eq. 1)."""
    same_BB = group_B[:, None] == group_B[None]
    normaliser_B = torch.where(same_BB, score_B[None], -torch.inf).logsumexp(1)
    loss_B = share_B.to(score_B.dtype) * (normaliser_B - score_B)
    return torch.zeros(groups, dtype=score_B.dtype, device=score_B.device).index_add(0, group_B, loss_B)


def accuracy_G(score_B: Tensor, rank_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """Share of each group's kept pairs that the scores order correctly; equal scores count 0.5. [G]; see `pairs_G`."""
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    return _mean_of_pairs_G(correct_P(score_B[winner_P], score_B[loser_P]), group_P, groups)


def correct_P(winner_score_P: Tensor, loser_score_P: Tensor) -> Tensor:
    """1 where the winner scores higher, 0.5 where the scores are equal, else 0. Shape [P]."""
    return (torch.sign(winner_score_P.detach() - loser_score_P.detach()) + 1) / 2
