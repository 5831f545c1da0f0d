"""methods.md §1.1 Bradley-Terry and §1.2 K-wise ranking."""

from itertools import combinations, permutations
from math import exp, log

import pytest
import torch
from torch.nn.functional import softplus

from tiltyard.losses.reward import accuracy_G, correct_P, kwise_loss_G, pairs_G, ranking_pairs

from .toy import F64, grad, same


def one_group(scores, ranks):
    s = torch.tensor(scores, dtype=F64, requires_grad=True)
    loss_G = kwise_loss_G(s, torch.tensor(ranks), torch.zeros(len(scores), dtype=torch.long), 1)
    return loss_G[0], grad(loss_G[0], s)


def test_pair_gradient_is_one_minus_sigma_of_the_difference():
    loss, g = one_group([0.3, 1.5], [1, 2])
    p = 1 / (1 + exp(1.2))
    assert loss.item() == pytest.approx(-log(p), abs=1e-12)
    same(g, torch.tensor([-(1 - p), 1 - p], dtype=F64))
    loss, g = one_group([0.0, 0.0], [2, 1])
    assert loss.item() == pytest.approx(log(2), abs=1e-15)
    same(g, torch.tensor([0.5, -0.5], dtype=F64))


@pytest.mark.parametrize("k", [2, 3, 4, 9])
def test_gradient_at_equal_scores(k):
    loss, g = one_group([0.7] * k, list(range(1, k + 1)))
    assert loss.item() == pytest.approx(log(2), abs=1e-12)
    same(g, torch.tensor([(2 * i - 1 - k) / (k * (k - 1)) for i in range(1, k + 1)], dtype=F64))
    if k == 4:
        same(g, torch.tensor([-1 / 4, -1 / 12, 1 / 12, 1 / 4], dtype=F64))


def test_kwise_is_the_mean_of_the_pairwise_losses_of_each_prompt():
    torch.manual_seed(0)
    sizes = [2, 4, 9, 1, 5]
    group_B = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    score_B = torch.randn(len(group_B), dtype=F64)
    rank_B = torch.randint(1, 5, (len(group_B),))  # ties are common
    shuffle = torch.randperm(len(group_B))  # groups need not be contiguous
    loss_G = kwise_loss_G(score_B[shuffle], rank_B[shuffle], group_B[shuffle], 6)
    count_G = pairs_G(rank_B[shuffle], group_B[shuffle], 6)
    hits_G = accuracy_G(score_B[shuffle], rank_B[shuffle], group_B[shuffle], 6)
    for group in range(6):
        losses, hits = [], []
        for i, j in combinations((group_B == group).nonzero()[:, 0].tolist(), 2):
            w, v = (i, j) if rank_B[i] < rank_B[j] else (j, i)
            if rank_B[i] != rank_B[j]:
                losses.append(softplus(score_B[v] - score_B[w]).item())
                hits.append(float(score_B[w] > score_B[v]))
        assert count_G[group] == len(losses)
        assert loss_G[group].item() == pytest.approx(sum(losses) / max(len(losses), 1), abs=1e-12)
        assert hits_G[group].item() == pytest.approx(sum(hits) / max(len(hits), 1), abs=1e-12)


def test_groups_without_a_pair_give_zero_and_are_counted():
    score_B = torch.randn(5, dtype=F64, requires_grad=True)
    rank_B, group_B = torch.tensor([1, 1, 1, 1, 2]), torch.tensor([0, 0, 1, 3, 3])
    loss_G = kwise_loss_G(score_B, rank_B, group_B, 4)
    assert pairs_G(rank_B, group_B, 4).tolist() == [0, 0, 0, 1]
    assert loss_G[:3].tolist() == [0, 0, 0]
    assert grad(loss_G.sum(), score_B)[:3].tolist() == [0, 0, 0]
    empty = torch.zeros(0, dtype=torch.long)
    assert kwise_loss_G(torch.zeros(0, dtype=F64), empty, empty, 2).tolist() == [0, 0]


def test_pairs_are_ordered_and_ties_left_out():
    w, v, g = ranking_pairs(torch.tensor([2, 1, 1, 3, 1]), torch.tensor([5, 5, 5, 0, 0]))
    assert list(zip(w.tolist(), v.tolist(), g.tolist(), strict=True)) == [(4, 3, 0), (1, 0, 5), (2, 0, 5)]


def test_prompts_weigh_the_same_whatever_their_k():
    """A prompt's gradient does not shrink because its neighbour has 36 pairs."""
    lone = one_group([0.1, -0.4], [1, 2])[1]
    s = torch.cat([torch.tensor([0.1, -0.4], dtype=F64), torch.randn(9, dtype=F64)]).requires_grad_()
    ranks, groups = torch.cat([torch.tensor([1, 2]), torch.arange(9)]), torch.tensor([0] * 2 + [1] * 9)
    same(grad(kwise_loss_G(s, ranks, groups, 2).sum(), s)[:2], lone)


def test_shift_of_one_prompts_scores_changes_nothing():
    a, g = one_group([0.3, -0.2, 1.1], [2, 1, 3])
    b, _ = one_group([10.3, 9.8, 11.1], [2, 1, 3])
    assert a.item() == pytest.approx(b.item(), abs=1e-12)
    assert abs(g.sum().item()) < 1e-15


def test_no_overflow_far_out():
    loss, g = one_group([-1e4, 1e4], [1, 2])
    assert loss.item() == 2e4
    same(g, torch.tensor([-1.0, 1.0], dtype=F64))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_consistent_with_plackett_luce(k):
    """Rankings ~ PL(r_true): the exact expected gradient over all K! rankings vanishes at r_true, and not elsewhere."""
    torch.manual_seed(k)
    r = torch.randn(k, dtype=F64)

    def expected(scores):
        total = torch.zeros(k, dtype=F64)
        mass = 0.0
        for order in permutations(range(k)):
            s = r[list(order)]
            p = torch.exp(sum(s[i] - torch.logsumexp(s[i:], 0) for i in range(k)))
            ranks = [order.index(i) + 1 for i in range(k)]
            total += p * one_group(scores.tolist(), ranks)[1]
            mass += p.item()
        assert mass == pytest.approx(1, abs=1e-12)
        return total

    same(expected(r), torch.zeros(k, dtype=F64))
    assert expected(1.5 * r).abs().max() > 1e-3


def test_population_optimum_is_the_true_reward_and_its_loss_the_entropy():
    torch.manual_seed(1)
    r = torch.randn(4, dtype=F64)
    s = torch.zeros(4, dtype=F64, requires_grad=True)

    def population(scores):
        """Mean over the six pairs of the Bernoulli-weighted loss, both labels."""
        total = torch.zeros((), dtype=F64)
        for i, j in combinations(range(4), 2):
            p = torch.sigmoid(r[i] - r[j])
            pair, one = scores[[i, j]], torch.zeros(2, dtype=torch.long)
            total = total + p * kwise_loss_G(pair, torch.tensor([1, 2]), one, 1)[0]
            total = total + (1 - p) * kwise_loss_G(pair, torch.tensor([2, 1]), one, 1)[0]
        return total / 6

    optimiser = torch.optim.LBFGS([s], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    optimiser.step(lambda: (optimiser.zero_grad(), (loss := population(s)).backward(), loss)[-1])
    same(s.detach() - s.detach().mean(), r - r.mean(), 1e-6)
    p = torch.tensor([torch.sigmoid(r[i] - r[j]) for i, j in combinations(range(4), 2)], dtype=F64)
    same(population(s).detach(), -(p * p.log() + (1 - p) * (1 - p).log()).mean())


def test_accuracy_counts_a_tie_in_score_half():
    assert correct_P(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 0.5, 0]
    assert accuracy_G(torch.zeros(3), torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.long), 1).tolist() == [0.5]
