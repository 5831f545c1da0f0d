"""What methods in rounds end at, exactly: tabular policies, enumerated laws, the real losses, hooks and selections.

Formulas: methods sheet 3.2 to 3.4, 5.1, 5.2, 5.4 and 9. `losses_oracles.tabular` has the policy and the minimiser.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.chance import beyond, follows, shifted
from torch import Tensor, nn

from losses_oracles.tabular import (
    ASK,
    World,
    all_pairs,
    answers,
    bradley_terry,
    draw,
    law_of_pairs,
    minimise,
    pair,
    tilt,
    tv,
)
from losses_oracles.toy import F64, same
from tiltyard.errors import ConfigError
from tiltyard.methods import iterative_dpo, online_dpo, rest, rft, rso
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.rounds import Rounds
from tiltyard.training.source import Online, generator
from tiltyard.types import Group, Prompt, Response

K, BETA = 5, 0.7
REF, REWARD, THETA = draw(3, K)
SCORE = FunctionScorer(lambda prompt, response: float(REWARD[response.ids[0]]))


def rounds(**changes: Any) -> Rounds:
    given: dict[str, Any] = {
        "size": 2,
        "prompts_per_step": 2,
        "every": 6,
        "samples_per_prompt": 64,
        "settings": SampleSettings(),
    }
    return Rounds([ASK], NativeSampler(), SCORE, **(given | changes))


def online(**changes: Any) -> Online:
    return Online([ASK], NativeSampler(), SCORE, 1, **({"samples_per_prompt": 2} | changes))


def scored(*items: int) -> Group:
    return Group(ASK, answers(*items), scores=tuple(float(REWARD[i]) for i in items))


def counted(groups: Sequence[Group]) -> Tensor:
    """The law of the answers of these groups."""
    count = Counter(r.ids[0] for g in groups for r in g.responses)
    table = torch.tensor([count[i] for i in range(K)], dtype=F64)
    return table / table.sum()


# ------------------------------------------------------------------------------------------------------ iterative DPO


class Logits(nn.Module):
    def __init__(self, theta: Tensor):
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


def trained_rounds(ref_update: Any, count: int) -> list[Tensor]:
    """log pi after each round: the round's own hooks, then the minimum over all pairs under the reference as it is."""
    algorithm = iterative_dpo(rounds(), beta=BETA, ref_update=ref_update)
    policy, ref = (SimpleNamespace(module=Logits(REF), binding=None) for _ in range(2))
    models: Any = Models(policy=policy, ref=ref)  # type: ignore[arg-type]
    found = []
    for _ in range(count):
        for begin in algorithm.source.begin:  # type: ignore[attr-defined]
            begin(models)
        frozen = torch.log_softmax(ref.module.theta.detach(), 0)
        world = World(algorithm, frozen, all_pairs(bradley_terry(REWARD)))
        end = world.optimum(policy.module.theta.detach())
        policy.module.theta.data = end
        found.append(end)
    return found


def test_rounds_with_a_fixed_reference_all_end_at_the_same_tilt() -> None:
    for end in trained_rounds("fixed", 3):
        assert tv(end, tilt(REF, REWARD, BETA)) < 1e-10


def test_rounds_with_a_renewed_reference_add_up() -> None:
    """pi0 exp(t r/beta) after t: the mean reward and the KL to the start rise with every round."""
    ends = trained_rounds("previous", 4)
    means, kls = [float(REF.exp() @ REWARD)], [0.0]
    for t, end in enumerate(ends, 1):
        assert tv(end, tilt(REF, t * REWARD, BETA)) < 1e-9
        means.append(float(end.exp() @ REWARD))
        kls.append(float(end.exp() @ (end - REF)))
    assert all(b > a + 1e-3 for a, b in itertools.pairwise(means))
    assert all(b > a + 1e-3 for a, b in itertools.pairwise(kls))
    assert tv(ends[1], ends[0]) > 0.05


@pytest.mark.parametrize(("loss", "push"), [("dpo", BETA / 2), ("ipo", 1 / 0.7), ("hinge", BETA)])
def test_the_first_gradient_of_each_loss(loss: Any, push: float) -> None:
    """At pi = pi_ref a sure pair pushes its two logits apart: beta/2, 1/tau (summed, tau = beta), gamma = beta."""
    for algorithm in (iterative_dpo(rounds(), beta=BETA, loss=loss), online_dpo(online(), beta=BETA, loss=loss)):
        world = World(algorithm, REF, [sampled(pair(1, 3))])
        same(world.slope(REF), torch.tensor([0, -push, 0, push, 0], dtype=F64), 1e-12)


def sampled(group: Group) -> Group:
    """The group with log-probs as a sampler leaves them."""
    return replace(group, responses=tuple(replace(r, logps=(-1.0,) * len(r.ids)) for r in group.responses))


# --------------------------------------------------------------------------------------------------------- online DPO


def own_pairs(law: Tensor, p: Tensor) -> tuple[list[Group], Tensor]:
    """Every ordered pair with its exact label, and how likely the policy is to draw it."""
    groups, weights = [], []
    for i, j in itertools.product(range(K), repeat=2):
        groups.append(sampled(pair(i, j, float(p[i, j]))))
        weights.append(law[i] * law[j])
    return groups, torch.stack(weights)


def test_the_first_step_of_online_dpo_is_policy_gradient_on_beating_oneself() -> None:
    """E grad L = -2 beta grad of P(y > y'), y ~ pi and y' ~ a frozen copy, at pi = pi_ref (sheet 5.4)."""
    p = bradley_terry(2 * REWARD)
    groups, weights = own_pairs(REF.exp(), p)
    found = World(online_dpo(online(), beta=BETA), REF, groups, weights).slope(REF)
    theta = REF.clone().requires_grad_()
    wins = torch.softmax(theta, 0) @ p @ REF.exp()
    (grad,) = torch.autograd.grad(wins, theta)
    assert float(grad.abs().max()) > 0.01
    same(found, -2 * BETA * grad, 1e-12)


def test_hard_labels_say_the_same_in_expectation() -> None:
    """Of the score alone (the higher wins for sure) the first step follows the chance of a higher score."""
    p = (REWARD[:, None] > REWARD).to(F64) + 0.5 * torch.eye(K, dtype=F64)
    pairs = itertools.product(range(K), repeat=2)
    groups = [sampled(scored(i, j)) for i, j in pairs]  # labelled by `RanksFromScores`; (i, i) is a tie and is left out
    weights = (REF.exp()[:, None] * REF.exp()).flatten()
    world = World(online_dpo(online(), beta=BETA), REF, groups, weights)
    kept = world.batch["kept_G"]
    assert kept.sum() == K * (K - 1)
    theta = REF.clone().requires_grad_()
    loss = (weights * kept * world.items(theta)[0]).sum()
    (found,) = torch.autograd.grad(loss, theta)
    wins = torch.softmax(theta, 0) @ p @ REF.exp()
    same(found, -2 * BETA * torch.autograd.grad(wins, theta)[0], 1e-12)


def test_online_dpo_rests_at_pi_star_and_nowhere_near() -> None:
    """No pair has a gradient there; at the reference and between the two the law of its own pairs does pull."""
    p, best = bradley_terry(REWARD), tilt(REF, REWARD, BETA)
    for share, rests in ((1.0, True), (0.0, False), (0.5, False), (1.5, False)):
        at = torch.log_softmax(REF + share * (best - REF), 0)
        groups, weights = own_pairs(at.exp(), p)
        world = World(online_dpo(online(), beta=BETA), REF, groups, weights)
        assert (float(world.slope(at).abs().max()) < 1e-12) is rests
        if rests:
            each = torch.func.jacrev(lambda theta, world=world: world.items(theta)[0])(at)
            assert float(each.abs().max()) < 1e-12


def test_a_pair_of_equal_answers_says_nothing() -> None:
    world = World(online_dpo(online(), beta=BETA), REF, [sampled(scored(2, 2))])
    assert world.batch["kept_G"].tolist() == [0.0]
    assert world.batch.metrics["tied_groups"] == (1.0, 1.0)


def test_online_dpo_is_about_two_answers() -> None:
    with pytest.raises(ConfigError, match="a pair is two responses"):
        online_dpo(online(samples_per_prompt=4))


def test_two_greedy_answers_are_no_pair() -> None:
    with pytest.raises(ConfigError, match=r"online_dpo\.temperature: the two responses of a prompt are the same"):
        online_dpo(online(settings=SampleSettings(temperature=0)))


# --------------------------------------------------------------------------------------------------------------- ReST

SCALED = (REWARD - REWARD.min()) / (REWARD.max() - REWARD.min())


def improved(thresholds: list[float], phase: int, pool: list[Group] | None = None) -> list[Group]:
    algorithm = rest(rounds(every=6), thresholds=thresholds)
    return list(algorithm.source.phase(pool or [scored(i) for i in range(K)], phase))  # type: ignore[attr-defined]


def learnt(groups: Sequence[Group], law: Tensor) -> Tensor:
    """log pi at the minimum of SFT's own loss over these one-answer groups, each as likely as the law says."""
    algorithm = rft(rounds(), pool="last")  # a plain negative log-likelihood
    weights = torch.stack([law[g.responses[0].ids[0]] for g in groups])
    world = World(algorithm, REF, groups, weights / weights.sum())
    return torch.log_softmax(minimise(world.loss, THETA), 0)


@pytest.mark.parametrize("tau", [0.2, 0.5])
def test_an_improve_step_restricts_the_law_to_what_is_above(tau: float) -> None:
    """pi_g 1[R > tau], and KL(pi_tau || pi_g) = -log P_g(R > tau).

    That law lies at infinity in logits, so instead of a minimiser the whole loss is compared: it is the divergence from
    that law, up to a constant, wherever it is looked at.
    """
    inside = tau < SCALED
    kept = improved([tau], 0)
    assert {g.responses[0].ids[0] for g in kept} == set(torch.nonzero(inside).flatten().tolist())
    mass = float(REF.exp()[inside].sum())
    law = torch.where(inside, REF.exp(), torch.zeros(K, dtype=F64)) / mass
    world = World(rest(rounds(), thresholds=[tau]), REF, kept, torch.stack([law[g.responses[0].ids[0]] for g in kept]))
    # the loss is the cross-entropy from that law: smallest at it (Gibbs), by exactly its KL elsewhere
    for theta in (THETA, REF, torch.zeros(K, dtype=F64)):
        log = torch.log_softmax(theta, 0)
        entropy = float((law[inside] * law[inside].log()).sum())
        divergence = float((law[inside] * (law[inside].log() - log[inside])).sum())
        assert float(world.loss(theta)) + entropy == pytest.approx(divergence, abs=1e-12)
    near = torch.where(inside, REF, torch.full((K,), -60.0, dtype=F64))
    assert float(world.slope(near).abs().max()) < 1e-12
    end = torch.log_softmax(near, 0)
    assert float((end.exp() * (end - REF)).sum()) == pytest.approx(-math.log(mass), abs=1e-12)


def test_the_first_gradient_of_improve_is_that_of_the_log_mass_above() -> None:
    """Averaged over the kept answers alone: -grad log P_theta(R > tau) at theta = theta_g (sheet 3.2)."""
    kept = improved([0.5], 0)
    law = REF.exp()
    weights = torch.stack([law[g.responses[0].ids[0]] for g in kept])
    found = World(rest(rounds(), thresholds=[0.5]), REF, kept, weights / weights.sum()).slope(REF)
    theta = REF.clone().requires_grad_()
    mass = torch.softmax(theta, 0)[SCALED > 0.5].sum()
    same(found, -torch.autograd.grad(mass.log(), theta)[0], 1e-12)


def test_only_the_last_threshold_counts_and_low_ones_change_nothing() -> None:
    for thresholds in ([0.5], [0.2, 0.5], [0.0, 0.1, 0.5]):
        last = improved(thresholds, len(thresholds) - 1)
        assert [g.responses for g in last] == [g.responses for g in improved([0.5], 0)]
    everything = improved([0.0, 0.5], 0)
    assert [g.responses for g in everything] == [answers(i) for i in range(K)]  # the worst answer too
    full = learnt(everything, REF.exp())
    assert tv(full, REF) < 1e-10  # SFT on the samples: nothing changes


def test_thresholds_are_on_scores_scaled_over_the_whole_round() -> None:
    """Not prompt by prompt: a prompt of bad answers loses all of them, and an equal score is not above."""
    good = Group(ASK, answers(0, 1), scores=(10.0, 8.0))
    bad = Group(Prompt(id="bad", ids=(9,)), answers(2, 3), scores=(1.0, 0.0))
    assert [g.responses for g in improved([0.5], 0, [good, bad])] == [good.responses]
    assert [g.responses for g in improved([0.8], 0, [good, bad])] == [answers(0)]


def test_pairs_of_rest_have_a_better_answer_above_the_threshold() -> None:
    algorithm = rest(rounds(every=6), thresholds=[0.3, 0.6], loss="dpo", beta=BETA)
    group = scored(*range(K))
    for phase, tau in enumerate((0.3, 0.6)):
        pairs = algorithm.source.phase([group], phase)  # type: ignore[attr-defined]
        found = {tuple(r.ids[0] for r in g.responses) for g in pairs}
        order = itertools.permutations(range(K), 2)
        assert found == {(i, j) for i, j in order if SCALED[i] > tau and SCALED[i] > SCALED[j]}
    world = World(algorithm, REF, list(pairs))
    assert float(world.loss(REF)) == pytest.approx(math.log(2), abs=1e-12)


def test_rates_fall_from_phase_to_phase() -> None:
    algorithm = rest(rounds(every=5), thresholds=[0.1, 0.2], lr_decay=0.25)
    scale = algorithm.lr_scale
    assert scale is not None
    assert [scale(step) for step in range(10)] == [1, 1, 1, 0.25, 0.25] * 2


@pytest.mark.parametrize(("taus", "what"), [([0.5, 0.5], "rise"), ([0.6, 0.5], "rise"), ([0.1, 0.2, 0.3], "fewer")])
def test_thresholds_that_make_no_sense(taus: list[float], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        rest(rounds(every=2), thresholds=taus)


# ---------------------------------------------------------------------------------------------------------------- RFT


def best_of(law: Tensor, n: int) -> Tensor:
    """F^n - F_-^n: the law of the best of n, no ties."""
    order = REWARD.argsort()
    cumulated = law[order].cumsum(0)
    below = cumulated - law[order]
    return torch.zeros(K, dtype=F64).index_add(0, order, cumulated**n - below**n)


def selected_law(law: Tensor, n: int) -> tuple[list[Group], Tensor]:
    """All n-tuples through the method's own selection, and how likely each is."""
    algorithm = rft(rounds(samples_per_prompt=n), pool="last")
    tuples = list(itertools.product(range(K), repeat=n))
    chosen = algorithm.source.select([scored(*t) for t in tuples], generator(0))  # type: ignore[attr-defined]
    return list(chosen), torch.stack([law[list(t)].prod() for t in tuples])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_sft_on_the_best_of_n_is_the_law_of_the_best_of_n(n: int) -> None:
    groups, weights = selected_law(REF.exp(), n)
    world = World(rft(rounds(samples_per_prompt=n), pool="last"), REF, groups, weights)
    end = torch.log_softmax(minimise(world.loss, THETA), 0)
    same(end.exp(), best_of(REF.exp(), n), 1e-10)
    bound = math.log(n) - (n - 1) / n
    assert float((end.exp() * (end - REF)).sum()) <= bound + 1e-12


def test_the_best_of_the_best() -> None:
    """Best of 2, learnt, then best of 3 of that: best of 6."""
    first = REF.exp()
    for n in (2, 3):
        groups, weights = selected_law(first, n)
        end = minimise(World(rft(rounds(samples_per_prompt=n), pool="last"), REF, groups, weights).loss, THETA)
        first = torch.softmax(end, 0)
    same(first, best_of(REF.exp(), 6), 1e-10)


# ---------------------------------------------------------------------------------------------------------------- RSO


@pytest.mark.parametrize("law", ["uniform", "skewed"])
def test_rso_fits_the_tilt_by_gamma_whatever_the_law_of_pairs(law: str) -> None:
    """With Bradley-Terry labels; beta, the sampler's temperature, is not in it."""
    algorithm = rso(rounds(), rejection_beta=0.1, beta=BETA)
    w = torch.ones(K, K, dtype=F64)
    if law == "skewed":
        w = torch.rand(K, K, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.05
    world = World(algorithm, REF, all_pairs(bradley_terry(REWARD)), law_of_pairs(w))
    assert tv(world.optimum(THETA), tilt(REF, REWARD, BETA)) < 1e-10


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_the_normalised_hinge_does_not_estimate_odds(p: float) -> None:
    """Of one pair: h* = sign(p - 1/2)/gamma, whatever p is. Found by looking everywhere."""
    gamma = 0.4
    world = World(rso(rounds(), beta=gamma, loss="hinge_norm"), REF[:2] * 0, [pair(0, 1, p)])
    h = torch.linspace(-6, 6, 2401, dtype=F64)
    losses = torch.stack([world.loss(torch.stack([x / 2, -x / 2])) for x in h])
    assert float(h[losses.argmin()]) == pytest.approx(math.copysign(1 / gamma, p - 0.5), abs=1e-9)


def test_the_plain_hinge_is_on_log_probs() -> None:
    world = World(rso(rounds(), beta=0.4, loss="hinge"), REF, [pair(0, 1)])
    h = float(torch.log_softmax(THETA, 0)[0] - torch.log_softmax(THETA, 0)[1])
    assert float(world.loss(THETA)) == pytest.approx(max(0.0, 1 - 0.4 * h), abs=1e-12)


def chosen_by_rso(groups: list[Group], **settings: Any) -> list[Group]:
    return list(rso(rounds(), **settings).source.select(groups, generator(5)))  # type: ignore[attr-defined]


def test_sampling_sft_keeps_everything() -> None:
    """n answers, n kept, each in one pair: the scores have no say in who plays."""
    scores = torch.randn(8, generator=torch.Generator().manual_seed(0)).tolist()
    group = Group(ASK, tuple(Response(ids=(i,)) for i in range(8)), scores=tuple(1000 * s for s in scores))
    pairs = chosen_by_rso([group], sample_from="sft", rejection_beta=0.01, accepted=8)
    assert sorted(r.ids[0] for g in pairs for r in g.responses) == list(range(8))
    assert all(scores[g.responses[0].ids[0]] > scores[g.responses[1].ids[0]] for g in pairs)
    strict = chosen_by_rso([group], sample_from="rso", rejection_beta=0.0, accepted=4)
    best = sorted(range(8), key=lambda i: -scores[i])[:4]
    assert {r.ids[0] for g in strict for r in g.responses} == set(best)  # beta = 0: the best of all


def of_two_that_differ(p: Tensor) -> dict[frozenset[int], float]:
    """Law of the pair made of two independent draws, given that they are not the same."""
    law = {frozenset(c): float(p[c[0]] * p[c[1]]) for c in itertools.combinations(range(K), 2)}
    return {cell: w / sum(law.values()) for cell, w in law.items()}


@pytest.mark.statistical
def test_accepted_answers_follow_the_tilt() -> None:
    """One pair of 64 candidates for each of 3,000 prompts: the first two accepted follow pi0 exp(r/beta)/Z."""
    stream = torch.Generator().manual_seed(shifted(4))
    ids = torch.multinomial(REF.exp(), 64 * 3000, replacement=True, generator=stream).view(3000, 64).tolist()
    pairs = chosen_by_rso([scored(*row) for row in ids], rejection_beta=BETA, accepted=2)
    kept = [g for g in pairs if g.responses[0].ids != g.responses[1].ids]
    assert len(kept) == len(pairs)  # equal answers are ties and give no pair
    found = Counter(frozenset(r.ids[0] for r in g.responses) for g in pairs)
    law, plain = (of_two_that_differ(p.exp()) for p in (tilt(REF, REWARD, BETA), REF))
    follows(found, law)
    # 0.1 from the law without the tilt; a total variation from K pairs' counts has a standard error below this
    apart = 0.5 * sum(abs(found[cell] / len(pairs) - p) for cell, p in plain.items())
    beyond(apart, 0.1, 0.5 / math.sqrt(len(pairs)))


@pytest.mark.parametrize("ranking", ["first_round", "tournament"])
def test_how_many_pairs_a_ranking_gives(ranking: Any) -> None:
    group = Group(ASK, tuple(Response(ids=(i,)) for i in range(16)), scores=tuple(map(float, range(16))))
    pairs = chosen_by_rso([group], accepted=8, ranking=ranking, rejection_beta=1e9)
    assert len(pairs) == (4 if ranking == "first_round" else 7)


def test_more_accepted_than_sampled() -> None:
    with pytest.raises(ConfigError, match="more responses are to be accepted than sampled"):
        rso(rounds(samples_per_prompt=4), accepted=5)
