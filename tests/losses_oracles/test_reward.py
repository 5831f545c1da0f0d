"""methods.md §1.1 Bradley-Terry, §1.2 K-wise ranking, §1.3 Plackett-Luce, §1.4 margins, §1.5 centring, §1.8 noise."""

from itertools import combinations, permutations
from math import exp, lgamma, log, sqrt

import pytest
import torch
from torch.nn.functional import softplus

from tiltyard.batch.batch import Batch
from tiltyard.losses.reward import (
    accuracy_G,
    best_loss_G,
    correct_P,
    kwise_loss_G,
    listwise_loss_G,
    pairs_G,
    ranking_pairs,
)
from tiltyard.methods import reward_model
from tiltyard.training.algorithm import Forward, Models
from tiltyard.types import Group, Preference

from .tabular import ASK, SOURCE, answers, minimise
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


# ------------------------------------------------------------------------------------------------- the method, whole


class Scorer:
    """A reward model that gives answer i the i-th score, and counts what it is asked."""

    def __init__(self, score):
        self.score, self.rows = score, []

    def score_B(self, forest):
        self.rows.append(forest.B)
        return self.score[forest.target_R[forest.offset_B]]


def method_loss(score, groups, **settings):
    """(loss of each group, metrics, the batch, the scorer) of the real method with its prepare steps."""
    algorithm, scorer = reward_model(SOURCE, **settings), Scorer(score)
    batch = Batch.of(groups, range(len(groups)), len(groups))
    for prepare in algorithm.prepare:
        batch = prepare(Models(), batch)
    loss_G, metrics = algorithm.loss(Forward(Models(reward=scorer), batch, 1.0), batch)
    return loss_G, metrics, batch, scorer


@pytest.mark.parametrize("form", ["pairs", "listwise", "best"])
def test_a_ranking_of_k_costs_k_forward_rows(form):
    """Once through the model for each answer, not once for each of its pairs."""
    score = torch.randn(9, dtype=F64)
    groups = [Group(ASK, answers(*range(k)), preference=Preference(ranks=tuple(range(1, k + 1)))) for k in (9, 2, 4)]
    assert method_loss(score, groups, form=form)[3].rows == [15]


def test_soft_labels_reach_the_pairs_and_their_ties_are_neither_right_nor_wrong():
    """q = share_i / (share_i + share_j); a group whose shares are all equal has no right order to be measured by."""
    score = torch.tensor([0.4, -0.3, 1.1], dtype=F64)
    soft = Group(ASK, answers(0, 1, 2), preference=Preference(shares=(0.5, 0.3, 0.2)))
    even = Group(ASK, answers(0, 2), preference=Preference(shares=(0.5, 0.5)))
    loss_G, metrics, batch, _ = method_loss(score, [soft, even])
    pair = lambda q, d: q * softplus(-d) + (1 - q) * softplus(d)  # noqa: E731
    three = [pair(q, score[i] - score[j]) for q, i, j in ((5 / 8, 0, 1), (5 / 7, 0, 2), (3 / 5, 1, 2))]
    same(loss_G, torch.stack([sum(three) / 3, pair(0.5, score[0] - score[2])]), 1e-14)
    assert batch["ranked_G"].tolist() == [1, 1]
    assert metrics["accuracy"][0] / metrics["accuracy"][1] == pytest.approx(1 / 3)


# --------------------------------------------------------------------------------------------- margins, centring, noise


def pair_optimum(p, **settings):
    """D at the minimum of the expected K-wise loss of two scores, the first preferred with probability p."""

    def loss(s):
        one = torch.zeros(2, dtype=torch.long)
        first = kwise_loss_G(s, torch.tensor([1, 2]), one, 1, **settings)[0]
        return p * first + (1 - p) * kwise_loss_G(s, torch.tensor([2, 1]), one, 1, **settings)[0]

    s = minimise(loss, torch.tensor([0.1, -0.3], dtype=F64), flat=0 if settings.get("centre") else 1)
    return float(s[0] - s[1]), s


@pytest.mark.parametrize("p", [0.5, 0.7, 0.95])
def test_margins_break_calibration_by_a_known_amount(p):
    """D* = log u, u = [(2p-1)M + sqrt((2p-1)^2 M^2 + 4p(1-p))] / (2(1-p)), M = e^m; softplus(m) at D = 0."""
    found = []
    for m in (0.0, 1 / 3, 1.0, 3.0):
        skew = (2 * p - 1) * exp(m)
        found.append(pair_optimum(p, grade_B=torch.tensor([m, 0.0], dtype=F64))[0])
        assert found[-1] == pytest.approx(log((skew + sqrt(skew**2 + 4 * p * (1 - p))) / (2 * (1 - p))), abs=1e-9)
    assert found[0] == pytest.approx(log(p / (1 - p)), abs=1e-9)
    if p == 0.5:
        assert found == pytest.approx([0] * 4, abs=1e-9)
    else:
        assert found == sorted(found)
    even, one = torch.zeros(2, dtype=F64), torch.zeros(2, dtype=torch.long)
    for grades in ([3.0, 0.0], [0.0, 3.0]):
        harder = kwise_loss_G(even, torch.tensor([1, 2]), one, 1, grade_B=torch.tensor(grades))
        assert harder.item() == pytest.approx(log(1 + exp(3)), abs=1e-14)  # more than ln 2; +m would be less


@pytest.mark.parametrize("p", [0.6, 0.9])
def test_centring_a_pair_keeps_its_difference(p):
    d, s = pair_optimum(p, centre=0.2)
    assert d == pytest.approx(log(p / (1 - p)), abs=1e-9)
    same(s, torch.tensor([d / 2, -d / 2], dtype=F64), 1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_centring_a_ranking_is_a_ridge_besides_and_shrinks_differences(k):
    """sum over pairs of (r_i + r_j)^2 = (K-2) sum r^2 + (sum r)^2; so the optimum is that of the ridge, and smaller."""
    torch.manual_seed(k)
    r, one = torch.randn(k, dtype=F64), torch.zeros(k, dtype=torch.long)
    ranks, pairs = torch.arange(1, k + 1), k * (k - 1) / 2
    both = [kwise_loss_G(r, ranks, one, 1, centre=c)[0] for c in (0.0, 0.3)]
    ridge = lambda s: (k - 2) * (s**2).sum() + s.sum() ** 2  # noqa: E731
    same(both[1] - both[0], 0.3 / pairs * ridge(r), 1e-13)

    def population(s, centre):
        total = centre / pairs * ridge(s)
        for i, j in combinations(range(k), 2):
            p = torch.sigmoid(r[i] - r[j])
            total = total + (p * softplus(s[j] - s[i]) + (1 - p) * softplus(s[i] - s[j])) / pairs
        return total

    def ours(s, centre):  # soft labels p for every pair, one group a pair
        first, second = zip(*combinations(range(k), 2), strict=True)
        pair_B = torch.tensor([x for ij in zip(first, second, strict=True) for x in ij])
        group_B = torch.arange(len(first)).repeat_interleave(2)
        share_B = torch.softmax(r[pair_B].view(-1, 2), 1).flatten()
        ranks, soft_G = torch.tensor([1, 2] * len(first)), torch.ones(len(first))
        return kwise_loss_G(s[pair_B], ranks, group_B, len(first), share_B=share_B, soft_G=soft_G, centre=centre).mean()

    free, held = (minimise(lambda s, c=c: ours(s, c), r + 0.1, flat=f) for c, f in ((0.0, 1), (0.3, 0)))
    same(free - free.mean(), r - r.mean(), 1e-8)
    same(held, minimise(lambda s: population(s, 0.3), torch.zeros(k, dtype=F64), flat=0), 1e-8)
    same(held.sum(), torch.zeros((), dtype=F64), 1e-8)
    assert (held**2).sum() < ((r - r.mean()) ** 2).sum()


@pytest.mark.parametrize("noise", [0.1, 0.3])
@pytest.mark.parametrize("p", [1.0, 0.8, 0.3])
def test_smoothed_and_robust_reward_models(p, noise):
    """Conservative: logit(p(1-e) + (1-p)e), finite at p = 1. Robust under flips at rate e: logit(p), exactly."""
    seen = (1 - 2 * noise) * p + noise
    assert pair_optimum(p, noise=noise)[0] == pytest.approx(log(seen / (1 - seen)), abs=1e-8)
    if p == 1:
        assert log(seen / (1 - seen)) == pytest.approx(log((1 - noise) / noise))
    else:
        robust = pair_optimum(seen, noise=noise, noise_kind="robust")[0]
        assert robust == pytest.approx(log(p / (1 - p)), abs=1e-8)


# ------------------------------------------------------------------------------------------------------- Plackett-Luce


def listwise(scores, ranks):
    return listwise_loss_G(scores, torch.tensor(ranks), torch.zeros(len(ranks), dtype=torch.long), 1)[0]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_plackett_luce(k):
    """K = 2 is BT; ln K! and 1/K + 1/(K-1) + ... - 1 at equal scores; probabilities of all orders add up to 1."""
    s = torch.full((k,), 0.4, dtype=F64, requires_grad=True)
    ranks = list(range(1, k + 1))
    same(listwise(s, ranks).detach(), torch.tensor(lgamma(k + 1), dtype=F64), 1e-13)
    expected = [sum(1 / (k - j + 1) for j in range(1, i + 1)) - 1 for i in ranks]
    same(grad(listwise(s, ranks), s), torch.tensor(expected, dtype=F64), 1e-14)
    torch.manual_seed(k)
    r = torch.randn(k, dtype=F64)
    same(sum(listwise(r, order).neg().exp() for order in permutations(ranks)), torch.ones((), dtype=F64), 1e-13)
    if k == 2:
        same(listwise(r, [1, 2]), softplus(r[1] - r[0]), 1e-14)
        same(listwise(r, [2, 1]), softplus(r[0] - r[1]), 1e-14)


@pytest.mark.parametrize("k", [3, 4])
def test_plackett_luce_finds_the_true_reward(k):
    torch.manual_seed(k)
    r = torch.randn(k, dtype=F64)
    orders = list(permutations(range(1, k + 1)))
    p = [float(listwise(r, ranks).neg().exp()) for ranks in orders]
    found = minimise(lambda s: sum(q * listwise(s, o) for q, o in zip(p, orders, strict=True)), torch.zeros(k).double())
    same(found - found.mean(), r - r.mean(), 1e-8)


def test_plackett_luce_from_the_worst_place_is_another_law():
    """Its probabilities add up to one as well, and it is BT at K = 2 with the sign turned: only the signs tell."""

    def worst_first(s, ranks):
        order = sorted(range(len(ranks)), key=lambda i: -ranks[i])
        s = s[order]
        return sum(torch.logsumexp(s[i:], 0) - s[i] for i in range(len(s)))

    r = torch.tensor([0.5, -1.0, 0.2], dtype=F64)
    same(sum(worst_first(r, o).neg().exp() for o in permutations((1, 2, 3))), torch.ones((), dtype=F64), 1e-13)
    same(worst_first(r[:2], [1, 2]), softplus(r[0] - r[1]), 1e-14)  # BT of the opposite label
    ours, theirs = listwise(r, [1, 3, 2]), worst_first(r, [1, 3, 2])
    e = r.exp()
    same(ours, -torch.log(e[0] / e.sum() * e[2] / (e[1] + e[2])), 1e-14)
    same(theirs, -torch.log(e[1] / e.sum() * e[2] / (e[0] + e[2])), 1e-14)
    assert ours + 1 < theirs


def test_plackett_luce_of_ties_and_of_several_groups():
    """Breslow: the tied stand in each other's denominators. Groups do not see each other."""
    r = torch.tensor([0.5, -1.0, 0.2, 2.0, 0.7], dtype=F64)
    loss_G = listwise_loss_G(r, torch.tensor([1, 2, 1, 2, 1]), torch.tensor([0, 0, 0, 1, 1]), 2)
    both = 2 * torch.logsumexp(r[:3], 0) - r[0] - r[2]
    same(loss_G, torch.stack([both, softplus(r[3] - r[4])]), 1e-14)


@pytest.mark.parametrize("share", [[1.0, 0, 0, 0], [0.5, 0.2, 0.3, 0], [0.5, 0, 0, 0.5]])
def test_best_of_k_is_cross_entropy(share):
    """Gradient softmax(r) - share (onehot(best) for a hard label); one best of two is BT."""
    torch.manual_seed(2)
    r = torch.randn(4, dtype=F64, requires_grad=True)
    one, share = torch.zeros(4, dtype=torch.long), torch.tensor(share, dtype=F64)
    loss = best_loss_G(r, share, one, 1)[0]
    same(grad(loss, r), (r.softmax(0) - share).detach(), 1e-14)
    two = best_loss_G(r[:2], torch.tensor([0.0, 1.0]), one[:2], 1)[0]
    same(two, softplus(r[0] - r[1]), 1e-14)


def test_who_is_best_is_read_from_ranks_or_shares():
    """Those who share the first place have equal parts; soft labels are taken as they are."""
    score = torch.tensor([0.3, -0.5, 1.2], dtype=F64)
    groups = [
        Group(ASK, answers(0, 1, 2), preference=Preference(ranks=(1, 2, 1))),
        Group(ASK, answers(0, 1, 2), preference=Preference(shares=(0.6, 0.1, 0.3))),
    ]
    loss_G = method_loss(score, groups, form="best")[0]
    logp = score.log_softmax(0)
    expected = [-(logp[0] + logp[2]) / 2, -(0.6 * logp[0] + 0.1 * logp[1] + 0.3 * logp[2])]
    same(loss_G, torch.stack(expected), 1e-14)
