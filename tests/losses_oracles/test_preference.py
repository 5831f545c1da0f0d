"""Losses of direct alignment: closed-form values and gradients (methods 4.1-4.5 and the papers named there)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tiltyard.data import Row, parse_row
from tiltyard.losses.preference import kto_B, likelihood_rank, log_odds, rank_hinge_G
from tiltyard.methods import click, cpo, dpo, ipo, kto, orpo, rrhf, simpo, slic
from tiltyard.types import Group, Preference

from .tabular import ASK, SOURCE, World, answers, draw, pair
from .toy import F64, grad, same

K = 5
LENGTH = (1, 3, 2, 4, 2)
REF, REWARD, THETA = draw(0, K)
PAIRED = {
    "dpo": dpo(SOURCE, beta=0.3),
    "ipo": ipo(SOURCE, beta=0.4, length_norm=False),
    "ipo averaged": ipo(SOURCE, beta=0.4),
    "slic": slic(SOURCE, lam=0.0, delta=1.7),
    "simpo": simpo(SOURCE),
    "cpo": cpo(SOURCE, nll=0.0),
}


def score_function(theta: Tensor) -> Tensor:
    """d log pi(y) / d theta of every answer, a row each: e_y - pi."""
    return torch.eye(len(theta), dtype=F64) - theta.softmax(0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ratio(i: int, j: int) -> float:
    x = torch.log_softmax(THETA, 0) - REF
    return float(x[i] - x[j])


# --------------------------------------------------------------------------------------------------- pairs, one by one


def test_dpo_at_the_start_and_its_gradient() -> None:
    """ln 2 and -+beta/2 on the two logits, 0 elsewhere: the normaliser cancels. T2: (-beta/2, beta/2)."""
    world = World(dpo(SOURCE, beta=0.3), REF, [pair(1, 3, length=LENGTH)], length=LENGTH)
    assert float(world.loss(REF)) == pytest.approx(math.log(2), abs=1e-15)
    same(world.slope(REF), torch.tensor([0, -0.15, 0, 0.15, 0], dtype=F64), 1e-15)
    two = torch.tensor([0.4, -0.1], dtype=F64)
    same(World(dpo(SOURCE, beta=0.3), two, [pair(0, 1)]).slope(two), torch.tensor([-0.15, 0.15], dtype=F64), 1e-15)
    h = ratio(1, 3)
    assert float(world.loss(THETA)) == pytest.approx(math.log1p(math.exp(-0.3 * h)), abs=1e-14)
    push = 0.3 * sigmoid(-0.3 * h)
    same(world.slope(THETA), torch.tensor([0, -push, 0, push, 0], dtype=F64), 1e-15)


def test_ipo_at_the_start_and_beyond_its_goal() -> None:
    """1/(4 tau^2) and -+1/tau; what went past 1/(2 tau) is pulled back, where DPO still pushes and a hinge rests."""
    tau = 0.4
    world = World(ipo(SOURCE, beta=tau, length_norm=False), REF, [pair(1, 3)])
    assert float(world.loss(REF)) == pytest.approx(1 / (4 * tau**2), abs=1e-14)
    same(world.slope(REF), torch.tensor([0, -1 / tau, 0, 1 / tau, 0], dtype=F64), 1e-13)
    goal = 1 / (2 * tau)
    slopes = {}
    for name, algorithm in {"ipo": world.algorithm, "dpo": dpo(SOURCE), "slic": slic(SOURCE, lam=0, delta=0.1)}.items():
        far = REF.clone()
        far[1] += 2 * goal + (REF[3] - REF[1]).relu()
        slopes[name] = float(World(algorithm, REF, [pair(1, 3)]).slope(far)[1])
    assert slopes["ipo"] == pytest.approx(2 * (2 * goal + float((REF[3] - REF[1]).relu()) - goal), abs=1e-12)
    assert slopes["dpo"] < 0
    assert slopes["slic"] == 0


def test_averaged_ipo_divides_each_answer_by_its_own_length() -> None:
    x = torch.log_softmax(THETA, 0) - REF
    h = float(x[1] / 3 - x[3] / 4)
    world = World(ipo(SOURCE, beta=0.4), REF, [pair(1, 3, length=LENGTH)], length=LENGTH)
    assert float(world.loss(THETA)) == pytest.approx((h - 1.25) ** 2, abs=1e-13)
    s = score_function(THETA)
    same(world.slope(THETA), 2 * (h - 1.25) * (s[1] / 3 - s[3] / 4), 1e-13)


def test_slic_switches_at_delta() -> None:
    """Its gradient flips exactly at D = delta, and the target's likelihood stands outside the max."""
    lam, s = 0.3, score_function(THETA)
    world = lambda delta: World(  # noqa: E731
        slic(SOURCE, delta=delta, lam=lam, target="chosen"), REF, [pair(1, 3, length=LENGTH)], length=LENGTH
    )
    flipped = torch.tensor([0.0, 3.0, 0, 0, 0], dtype=F64) + THETA  # D > 0 is needed for a delta > 0
    d = float(flipped[1] - flipped[3])
    s = score_function(flipped)
    same(world(d - 1e-6).slope(flipped), -lam * s[1], 1e-15)
    same(world(d + 1e-6).slope(flipped), s[3] - s[1] - lam * s[1], 1e-15)
    nll = -float(torch.log_softmax(flipped, 0)[1])
    assert float(world(d + 0.5).loss(flipped)) == pytest.approx(0.5 + lam * nll, abs=1e-13)


def test_slic_learns_everything_there_is_to_learn_at_zero_loss() -> None:
    """A chain of three with delta between neighbours: loss 0, and a ratio of e^(2 delta) between the ends."""
    chain = torch.tensor([2.0, 1.0, 0.0], dtype=F64)
    world = World(slic(SOURCE, lam=0, delta=1.0), chain, [pair(0, 1), pair(1, 2), pair(0, 2)])
    assert float(world.loss(chain)) == pytest.approx(0, abs=1e-15)
    assert float(world.loss(0.9 * chain)) == pytest.approx((0.1 + 0.1 + 0) / 3, abs=1e-12)


def test_simpo_gradient_and_margin() -> None:
    """-beta sigmoid(gamma - beta h)(grad s_w - grad s_l), s averaged over tokens; gamma makes the start harder."""
    beta, gamma = 2.0, 1.0
    logp, s = torch.log_softmax(THETA, 0), score_function(THETA)
    h = float(logp[1] / 3 - logp[3] / 4)
    world = World(simpo(SOURCE, beta=beta, gamma_ratio=0.5), REF, [pair(1, 3, length=LENGTH)], length=LENGTH)
    assert float(world.loss(THETA)) == pytest.approx(math.log1p(math.exp(gamma - beta * h)), abs=1e-13)
    same(world.slope(THETA), -beta * sigmoid(gamma - beta * h) * (s[1] / 3 - s[3] / 4), 1e-13)
    even = World(simpo(SOURCE, beta=beta, gamma_ratio=0.5), REF, [pair(0, 1)])
    zero = torch.zeros(K, dtype=F64)
    assert float(even.loss(zero)) == pytest.approx(math.log1p(math.e), abs=1e-15)


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_orpo_gradient(lam: float) -> None:
    """-lam sigmoid(-d)(grad s_w/(1-P_w) - grad s_l/(1-P_l)) beside SFT's a token; lam = 0 is SFT alone."""
    logp, s = torch.log_softmax(THETA, 0), score_function(THETA)
    (s_w, s_l), (g_w, g_l) = (float(logp[1]) / 3, float(logp[3]) / 4), (s[1] / 3, s[3] / 4)
    p_w, p_l = math.exp(s_w), math.exp(s_l)
    d = math.log(p_w / (1 - p_w)) - math.log(p_l / (1 - p_l))
    world = World(orpo(SOURCE, lam=lam), REF, [pair(1, 3, length=LENGTH)], length=LENGTH)
    assert float(world.loss(THETA)) == pytest.approx(-s_w + lam * math.log1p(math.exp(-d)), abs=1e-13)
    same(world.slope(THETA), -g_w - lam * sigmoid(-d) * (g_w / (1 - p_w) - g_l / (1 - p_l)), 1e-13)


def test_log_odds_are_finite_to_the_edge() -> None:
    x = torch.tensor([-1e-9, -1e-6, -0.5, -40.0, -800.0], dtype=F64)
    found = log_odds(x)
    assert found.isfinite().all()
    exact = [math.log(math.exp(v) / -math.expm1(v)) for v in (-1e-6, -0.5, -40.0)]
    same(found[1:4], torch.tensor(exact, dtype=F64), 1e-9)
    assert float(found[4]) == -800.0


@pytest.mark.parametrize("per_token", [True, False])
def test_cpo_gradient(per_token: bool) -> None:
    """DPO's with a uniform reference, and the likelihood of the chosen answer, averaged or summed."""
    beta, nll = 0.3, 0.6
    logp, s = torch.log_softmax(THETA, 0), score_function(THETA)
    h, per = float(logp[1] - logp[3]), 3 if per_token else 1
    algorithm = cpo(SOURCE, beta=beta, nll=nll, nll_per_token=per_token)
    world = World(algorithm, REF, [pair(1, 3, length=LENGTH)], length=LENGTH)
    assert float(world.loss(THETA)) == pytest.approx(
        math.log1p(math.exp(-beta * h)) - nll * float(logp[1]) / per, abs=1e-13
    )
    same(world.slope(THETA), -beta * sigmoid(-beta * h) * (s[1] - s[3]) - nll * s[1] / per, 1e-13)
    uniform = torch.full((K,), -math.log(K), dtype=F64)
    with_ref = World(dpo(SOURCE, beta=beta), uniform, [pair(1, 3)])
    bare = World(cpo(SOURCE, beta=beta, nll=0.0), REF, [pair(1, 3)])
    same(bare.loss(THETA), with_ref.loss(THETA), 1e-14)


@pytest.mark.parametrize("method", [dpo, simpo])
@pytest.mark.parametrize("q", [None, 0.75])
def test_the_likelihood_term_is_that_of_the_preferred_answer(method: Callable, q: float | None) -> None:
    """nll times -log pi a token, on both answers by their shares where the label is soft; noise does not touch it."""
    s, share = score_function(THETA), 1.0 if q is None else q
    for noise in (0.0, 0.2):
        plain, held = (
            World(method(SOURCE, noise=noise, nll=nll), REF, [pair(1, 3, q, LENGTH)], length=LENGTH)
            for nll in (0.0, 0.6)
        )
        added = -0.6 * (share * s[1] / 3 + (1 - share) * s[3] / 4)
        same(held.slope(THETA) - plain.slope(THETA), added, 1e-14)


# --------------------------------------------------------------------------------------- what every loss of pairs obeys


@pytest.mark.parametrize("name", PAIRED)
def test_soft_labels_are_the_expectation_of_hard_ones(name: str) -> None:
    soft = World(PAIRED[name], REF, [pair(1, 3, 0.8, LENGTH)], length=LENGTH)
    weights = torch.tensor([0.8, 0.2], dtype=F64)
    hard = World(PAIRED[name], REF, [pair(1, 3, length=LENGTH), pair(3, 1, length=LENGTH)], weights, LENGTH)
    same(soft.loss(THETA), hard.loss(THETA), 1e-13)
    same(soft.slope(THETA), hard.slope(THETA), 1e-13)


@pytest.mark.parametrize("name", PAIRED)
def test_swapping_the_answers_with_the_label_changes_nothing(name: str) -> None:
    one = World(PAIRED[name], REF, [pair(1, 3, 0.75, LENGTH)], length=LENGTH)
    two = World(PAIRED[name], REF, [pair(3, 1, 0.25, LENGTH)], length=LENGTH)
    same(one.loss(THETA), two.loss(THETA), 1e-14)
    same(one.slope(THETA), two.slope(THETA), 1e-14)
    wrong = World(PAIRED[name], REF, [pair(3, 1, 0.75, LENGTH)], length=LENGTH)
    assert abs(float(wrong.loss(THETA) - one.loss(THETA))) > 1e-3


@pytest.mark.parametrize("name", PAIRED)
def test_a_coin_toss_asks_for_nothing_where_the_two_are_equal(name: str) -> None:
    """q = 1/2 at h = 0: no gradient, whatever the loss; q = 0.6 pushes the first answer up."""
    even = torch.zeros(K, dtype=F64)
    world = World(PAIRED[name], even, [pair(1, 3, 0.5)])
    same(world.slope(even), torch.zeros(K, dtype=F64), 1e-15)
    tilted = World(PAIRED[name], even, [pair(1, 3, 0.6)])
    assert float(tilted.slope(even)[1]) < -1e-3


@pytest.mark.parametrize("name", PAIRED)
def test_ties_are_left_out_of_the_mean_and_coin_tosses_are_not(name: str) -> None:
    kept = [pair(1, 3, length=LENGTH), pair(0, 2, 0.3, LENGTH)]
    tied = Group(ASK, answers(1, 2, length=LENGTH), preference=Preference(ranks=(1, 1)))
    without = World(PAIRED[name], REF, kept, length=LENGTH)
    with_tie = World(PAIRED[name], REF, [*kept, tied], length=LENGTH)
    same(with_tie.mean(THETA), without.mean(THETA), 1e-14)
    assert with_tie.batch.metrics["tied_groups"] == (1.0, 3.0)
    toss = World(PAIRED[name], REF, [*kept, pair(1, 2, 0.5, LENGTH)], length=LENGTH)
    assert toss.batch["kept_G"].tolist() == [1, 1, 1]
    assert abs(float(toss.mean(THETA) - without.mean(THETA))) > 1e-3


# ---------------------------------------------------------------------------------------------------------------- RRHF


def test_rrhf_by_hand() -> None:
    """r = (1, .2, .8), p = (-.8, -.5, -.9): .3 (2 over 1) + 0 (3 over 1 is right) + .4 (2 over 3) = .70."""
    p = torch.tensor([-0.8, -0.5, -0.9], dtype=F64, requires_grad=True)
    one = torch.zeros(3, dtype=torch.long)
    loss = rank_hinge_G(p, torch.tensor([1.0, 3.0, 2.0]), one, 1)[0]
    assert loss.item() == pytest.approx(0.70, abs=1e-15)
    same(grad(loss, p), torch.tensor([-1, 2, -1], dtype=F64))
    wrong_way = rank_hinge_G(p, torch.tensor([3.0, 1.0, 2.0]), one, 1)[0]
    assert wrong_way.item() == pytest.approx(0.1, abs=1e-15)
    ordered = torch.tensor([-0.1, -0.4, -0.2], dtype=F64)
    assert rank_hinge_G(ordered, torch.tensor([1.0, 3.0, 2.0]), one, 1).tolist() == [0]


def test_rrhf_weighs_each_token_by_one_over_the_length() -> None:
    """Answers of 3 and 4 tokens: the hinge moves 1/3 and 1/4 of the summed log-probs, the best one's -log pi all."""
    s = score_function(THETA)
    logp = torch.log_softmax(THETA, 0)
    worse_is_likelier = float(logp[3] / 4) > float(logp[1] / 3)
    win, lose = (1, 3) if worse_is_likelier else (3, 1)
    for power, sft in ((1.0, 0.0), (1.0, 0.7), (0.0, 0.7)):
        algorithm = rrhf(SOURCE, sft_weight=sft, rank_weight=1.5, length_penalty=power)
        world = World(algorithm, REF, [pair(win, lose, length=LENGTH)], length=LENGTH)
        n = [length**power for length in LENGTH]
        apart = (logp[lose] / n[lose] - logp[win] / n[win]).relu()
        same(world.loss(THETA), 1.5 * apart - sft * logp[win], 1e-14)
        pull = 1.5 * (s[lose] / n[lose] - s[win] / n[win]) * float(apart > 0)
        same(world.slope(THETA), pull - sft * s[win], 1e-14)


def test_rrhf_of_a_single_answer_is_its_likelihood_and_shares_it_among_the_best() -> None:
    logp = torch.log_softmax(THETA, 0)
    lone = World(
        rrhf(SOURCE), REF, [Group(ASK, answers(2, length=LENGTH), preference=Preference(ranks=(1,)))], length=LENGTH
    )
    same(lone.loss(THETA), -logp[2], 1e-14)
    two = World(
        rrhf(SOURCE, rank_weight=0), REF, [Group(ASK, answers(0, 1, 2), preference=Preference(ranks=(1, 1, 2)))]
    )
    same(two.loss(THETA), -(logp[0] + logp[1]) / 2, 1e-14)


@pytest.mark.parametrize("name", ["cube", "exp", "tiny steps", "places"])
def test_rrhf_knows_the_order_of_rewards_and_nothing_else(name: str) -> None:
    """Any increasing map of the scores in the row leaves loss and gradient bitwise as they were; a decreasing not."""
    scores = [1.0, 0.2, 0.8, 0.2, -3.0]
    change = {
        "cube": lambda x: x**3,
        "exp": math.exp,
        "tiny steps": lambda x: 5 + 1e-9 * x,
        "places": lambda x: sorted(set(scores)).index(x),
    }[name]

    def world(values: list[float]) -> World:
        row = Row({"prompt": "?", "responses": list("abcde"), "scores": values}, "x.jsonl:1")
        group = parse_row(row, "comparisons")
        return World(rrhf(SOURCE), REF, [replace(group, prompt=ASK, responses=answers(*range(K)))])

    before, after = world(scores), world([change(x) for x in scores])
    assert torch.equal(before.loss(THETA), after.loss(THETA))
    assert torch.equal(before.slope(THETA), after.slope(THETA))
    assert not torch.equal(before.loss(THETA), world([-x for x in scores]).loss(THETA))


# --------------------------------------------------------------------------------------------------------------- CLICK

LABELLED = Group(ASK, answers(0, 1, 2, 3, length=LENGTH), scores=(0.0, 1.0, 0.0, 1.0))


def test_click_pairs_by_hand() -> None:
    """logp = -1 (bad), -2 (good), -3 (bad), -4 (good): each bad one with the likeliest good one below it."""
    assert likelihood_rank([False, True, False, True], [-1, -2, -3, -4]) == [1, -1, 3, -1]
    assert likelihood_rank([False, True, True], [-5, -2, -3]) == [-1, -1, -1]  # less likely than every good one
    assert likelihood_rank([False, False], [-1, -2]) == [-1, -1]
    assert likelihood_rank([True, False, True, True], [-9, -1, -4, -2]) == [-1, 3, -1, -1]


def test_click_adds_to_the_language_modelling_gradient_only_where_a_pair_is_active() -> None:
    """Inactive: SFT's, bitwise. Active: weight (grad log pi(bad) - grad log pi(good)) more. Weight 0: SFT's."""
    ref = torch.tensor([-1.0, -2.0, -3.0, -4.0, -1.5], dtype=F64)  # the pairs are (0, 1) and (2, 3)
    theta = torch.tensor([-3.0, -1.0, -1.0, -1.5, -2.0], dtype=F64)  # good over bad by 2, and by -0.5
    s, logp = score_function(theta), torch.log_softmax(theta, 0)
    world = lambda weight, margin: World(  # noqa: E731
        click(SOURCE, weight=weight, margin=margin), ref, [LABELLED], length=LENGTH
    )
    assert world(0.5, 1.0).batch["positive_index_B"].tolist() == [1, -1, 3, -1]
    lm = -(s[1] + s[3]) / (LENGTH[1] + LENGTH[3])  # the mean over the good answers' tokens
    plain = world(0.0, 1.0)
    same(plain.slope(theta), lm, 1e-15)
    same(plain.loss(theta), -(logp[1] + logp[3]) / 7, 1e-15)
    one = world(0.6, 1.0)  # the first pair has reached the margin; the mean is over both
    same(one.slope(theta), lm + 0.6 * (s[2] - s[3]) / 2, 1e-14)
    assert one.items(theta)[1]["active"] == (1.0, 2.0)
    same(one.loss(theta) - plain.loss(theta), torch.tensor(0.6 * 1.5 / 2, dtype=F64), 1e-14)
    both = world(0.6, 3.0)
    same(both.slope(theta), lm + 0.6 * (s[0] - s[1] + s[2] - s[3]) / 2, 1e-14)
    rested = torch.tensor([-3.0, -1.0, -3.0, -1.5, -2.0], dtype=F64)
    assert torch.equal(world(0.6, 1.0).slope(rested), plain.slope(rested))


def test_click_pairs_within_each_group_and_takes_the_mean_over_groups() -> None:
    """A group is paired with its own answers; one without a pair counts as 0; without lm there is the hinge alone."""
    groups = [
        Group(ASK, answers(4, 2, length=LENGTH), scores=(1.0, 1.0)),
        LABELLED,
        Group(ASK, answers(3, 1, length=LENGTH), scores=(1.0, 0.0)),  # the good one is the less likely
    ]
    ref = torch.tensor([-1.0, -2.0, -3.0, -4.0, -1.5], dtype=F64)
    data: Any = SOURCE
    world = World(click(SOURCE, data, weight=0.6, margin=9.0), ref, groups, length=LENGTH)
    assert world.batch["positive_index_B"].tolist() == [-1, -1, 1, -1, 3, -1, -1, 0]
    logp = torch.log_softmax(THETA, 0)
    over = lambda bad, good: 9 - logp[good] + logp[bad]  # noqa: E731
    expected = [0 * logp[0], 0.6 * (over(0, 1) + over(2, 3)) / 2, 0.6 * over(1, 3)]
    same(world.items(THETA)[0], torch.stack(expected), 1e-14)
    same(world.mean(THETA), torch.stack(expected).mean(), 1e-14)


# ----------------------------------------------------------------------------------------------------------------- KTO


def test_kto_at_the_start() -> None:
    """pi = ref: z = 0, loss w/2, gradient -w_D beta/4 on good and +w_U beta/4 on bad log-probs."""
    r = torch.zeros(2, dtype=F64, requires_grad=True)
    loss = kto_B(r, torch.tensor([1, 0], dtype=F64), torch.tensor(0.0), 0.4, 1.5, 0.8)
    same(loss.detach(), torch.tensor([0.75, 0.4], dtype=F64), 1e-15)
    same(grad(loss.sum(), r), torch.tensor([-1.5 * 0.1, 0.8 * 0.1], dtype=F64), 1e-15)
    groups = [Group(ASK, answers(1), scores=(1.0,)), Group(ASK, answers(2), scores=(0.0,))]
    world = World(kto(SOURCE, beta=0.4, desirable=1.5, undesirable=0.8), REF, groups)
    assert world.batch.metrics["kl"] == (0.0, 1.0)
    s = score_function(REF)
    same(world.slope(REF), 0.5 * 0.1 * (0.8 * s[2] - 1.5 * s[1]), 1e-15)


def test_kto_reference_point_is_that_of_the_other_prompts_answers() -> None:
    """The mean of log pi/ref of the answers put to the next prompt, at least 0, and no gradient flows into it."""
    groups = [Group(ASK, answers(i, length=LENGTH), scores=(float(i < 3),)) for i in (1, 2, 3)]
    x = torch.log_softmax(THETA, 0) - REF
    world = World(kto(SOURCE, beta=0.4), REF, groups, length=LENGTH, policy=THETA)
    z = float(x[1:4].mean())
    assert z > 0.5
    same(world.batch["kl_B"], torch.full((3,), z, dtype=F64), 1e-13)
    push = [0.4 * sigmoid(0.4 * (float(x[i]) - z)) * sigmoid(-0.4 * (float(x[i]) - z)) for i in (1, 2, 3)]
    s = score_function(THETA)
    same(world.slope(THETA), (-push[0] * s[1] - push[1] * s[2] + push[2] * s[3]) / 3, 1e-13)
    below = World(kto(SOURCE), THETA, groups, length=LENGTH, policy=REF)  # the mean is -z: clamped
    assert below.batch["kl_B"].tolist() == [0.0] * 3


@pytest.mark.parametrize(("p", "sign"), [(0.3, 1), (0.4, 0), (0.5, -1), (0.9, -1)])
def test_kto_learns_a_sign_and_no_log_odds(p: float, sign: int) -> None:
    """An answer good with probability p: the slope has the sign of w_U (1-p) - w_D p wherever r is."""
    r = torch.linspace(-8, 8, 9, dtype=F64).requires_grad_()
    good, bad = (kto_B(r, torch.full((9,), y, dtype=F64), torch.tensor(0.3), 0.4, 1.5, 1.0) for y in (1.0, 0.0))
    slope = grad((p * good + (1 - p) * bad).sum(), r)
    if sign:
        assert (torch.sign(slope) == sign).all()
    else:
        same(slope, torch.zeros(9, dtype=F64), 1e-15)
