"""Losses that look alike have different optima. Here each is minimised exactly, on worlds small enough to enumerate.

The expected loss over every pair is the real method's, in float64; what it should reach comes from a closed form
(methods 4.1-4.6). A near-miss must be told apart by more than the closed forms themselves differ.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tiltyard.losses.preference import Hinge, Logistic
from tiltyard.methods import cpo, dpo, ipo, simpo, slic, spin
from tiltyard.methods.direct import PairLoss
from tiltyard.training.algorithm import Algorithm, Mean
from tiltyard.training.prepare import PairLabels, RefLogp
from tiltyard.types import Group, Preference

from .tabular import (
    SOURCE,
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
from .toy import F64, same

K, BETA = 5, 0.7
REF, REWARD, THETA = draw(0, K)
P = bradley_terry(REWARD)
TILT = tilt(REF, REWARD, BETA)
UNIFORM = torch.full((K,), 1 / K, dtype=F64)
SKEWED = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04], dtype=F64)
TWO = torch.tensor([0.3, -0.2], dtype=F64)  # a world of two answers: one h


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def best(algorithm: Algorithm, p: Tensor = P, mu: Tensor = UNIFORM, **more) -> Tensor:
    """log pi at the minimum of the expected loss over pairs drawn from mu, labelled with probability p."""
    return World(algorithm, REF, all_pairs(p, more.get("length")), law_of_pairs(mu[:, None] * mu), **more).optimum(REF)


def best_h(algorithm: Algorithm, q: float | None) -> float:
    """h at the minimum, for one pair of two answers."""
    logp = World(algorithm, TWO.log_softmax(0), [pair(0, 1, q)]).optimum(TWO) - TWO.log_softmax(0)
    return float(logp[0] - logp[1])


# ----------------------------------------------------------------------------------------- what depends on who is asked


@pytest.mark.parametrize("mu", [UNIFORM, SKEWED], ids=["uniform", "skewed"])
def test_dpo_finds_the_tilt_whatever_the_law_of_the_pairs(mu: Tensor) -> None:
    same(best(dpo(SOURCE, beta=BETA), mu=mu), TILT, 1e-9)
    shifted = World(dpo(SOURCE, beta=BETA), REF, all_pairs(bradley_terry(REWARD + 3)), law_of_pairs(mu[:, None] * mu))
    same(shifted.optimum(THETA), TILT, 1e-9)


def test_ipo_finds_another_law_for_every_law_of_the_pairs() -> None:
    """pi0 exp(p(y beats mu)/tau)/Z: two laws of pairs give two optima, and neither is DPO's at beta = tau."""
    tau = 0.2
    algorithm, tilted = ipo(SOURCE, beta=tau, length_norm=False), tilt(REF, REWARD, tau)
    exact = {name: tilt(REF, P @ mu, tau) for name, mu in {"uniform": UNIFORM, "skewed": SKEWED}.items()}
    found = {"uniform": best(algorithm), "skewed": best(algorithm, mu=SKEWED)}
    for name, logp in found.items():
        same(logp, exact[name], 1e-9)
        assert tv(exact[name], tilted) > 0.02
    assert tv(exact["uniform"], exact["skewed"]) > 0.01
    averaged = best(ipo(SOURCE, beta=tau), length=(3,) * K)  # a token's share of the margin is asked of every token
    same(averaged, tilt(REF, 3 * P @ UNIFORM, tau), 1e-9)


def test_ipo_of_a_total_order_is_finite_and_known() -> None:
    """Deterministic labels, mu uniform: p(y beats mu) = (place from the bottom - 1/2)/K."""
    place = (REWARD.argsort().argsort() + 1).to(F64)
    order = (place[:, None] > place).to(F64) + 0.5 * torch.eye(K, dtype=F64)
    found = best(ipo(SOURCE, beta=BETA, length_norm=False), order)
    same(found, tilt(REF, (place - 0.5) / K, BETA), 1e-9)


def test_ipo_of_pairs_that_are_no_product_is_a_weighted_least_squares() -> None:
    """Any law W of pairs: the Laplacian of W times s is the sum of W (p - 1/2)/tau; solved otherwise than by Newton."""
    g = torch.Generator().manual_seed(3)
    w = torch.rand(K, K, generator=g, dtype=F64)
    w = w + w.T
    w.fill_diagonal_(0)
    s = torch.linalg.pinv(torch.diag(w.sum(1)) - w) @ (w * (P - 0.5) / BETA).sum(1)
    world = World(ipo(SOURCE, beta=BETA, length_norm=False), REF, all_pairs(P), law_of_pairs(w))
    same(world.optimum(REF), torch.log_softmax(REF + s, 0), 1e-9)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8, 1.0])
def test_ipo_of_one_pair(p: float) -> None:
    assert best_h(ipo(SOURCE, beta=0.4, length_norm=False), p) == pytest.approx((p - 0.5) / 0.4, abs=1e-10)


def test_the_population_gradient_at_the_reference() -> None:
    """-beta sum of W (p - 1/2)(e_y - e_y'), over unordered pairs."""
    w = law_of_pairs(UNIFORM[:, None] * UNIFORM)
    expected = torch.zeros(K, dtype=F64)
    for weight, (i, j) in zip(w, torch.combinations(torch.arange(K)).tolist(), strict=True):
        expected[i] -= BETA * weight * (P[i, j] - 0.5)
        expected[j] += BETA * weight * (P[i, j] - 0.5)
    same(World(dpo(SOURCE, beta=BETA), REF, all_pairs(P), w).slope(REF), expected, 1e-15)


@pytest.mark.parametrize("algorithm", [dpo(SOURCE, beta=BETA), ipo(SOURCE, beta=BETA)], ids=["dpo", "ipo"])
def test_answers_that_nobody_compared_move_by_normalisation_alone(algorithm: Algorithm) -> None:
    """Pairs among the first three: the logits of the others have no gradient at all, their ratio stays the reference's.

    Yet their mass is not held: from log pi0, the compared logits move with their sum fixed, so Z changes.
    """
    ref = torch.tensor([0.5, 0.2, 0.1, 0.15, 0.05], dtype=F64).log()
    r = torch.tensor([-1.5, 0.3, 1.2, 9.0, -9.0], dtype=F64)  # the rewards of unseen answers are never asked for
    p = bradley_terry(r)
    world = World(algorithm, ref, [pair(i, j, float(p[i, j])) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert world.slope(THETA)[3:].tolist() == [0, 0]
    logits = minimise(world.loss, ref, flat=3)
    assert torch.equal(logits[3:], ref[3:])
    found = torch.log_softmax(logits, 0)
    same(found[3] - found[4], ref[3] - ref[4], 1e-14)
    s = r[:3] / BETA if algorithm.name == "dpo" else (p[:3, :3] @ torch.full((3,), 1 / 3, dtype=F64)) / BETA
    seen = (ref[:3] + s - s.mean()).exp()
    mass = float(ref[3:].exp().sum())
    leaked = mass / (mass + float(seen.sum()))
    assert float(found[3:].exp().sum()) == pytest.approx(leaked, abs=1e-10)
    assert abs(leaked - mass) > 0.01
    same(torch.log_softmax(found[:3], 0), torch.log_softmax(ref[:3] + s, 0), 1e-9)


# ---------------------------------------------------------------------------------------------------- hinges and coins


@pytest.mark.parametrize("p", [0.1, 0.45, 0.5, 0.55, 0.7, 0.99])
@pytest.mark.parametrize("name", ["slic", "rso hinge-norm", "spin hinge"])
def test_a_hinge_learns_a_sign_and_no_log_odds(name: str, p: float) -> None:
    """One pair, label "first" with probability p: the least loss is at delta sign(p - 1/2), however near 1/2 p is.

    The loss is convex and straight between -delta and delta, so its slopes tell all; at 1/2 it is flat in between.
    """
    delta, where = {
        "slic": (1.7, slic(SOURCE, delta=1.7, lam=0.0)),
        "rso hinge-norm": (1 / 0.4, _of_ratio(Hinge(1.0, 0.4))),
        "spin hinge": (1 / 0.4, spin(SOURCE, beta=0.4, loss="hinge")),
    }[name]
    ref = torch.zeros(2, dtype=F64) if name == "slic" else TWO  # SLiC-HF's D knows no reference
    world = World(where, ref, [pair(0, 1, p)])
    at = lambda h: float(world.slope(ref + torch.tensor([h, 0.0], dtype=F64))[0])  # noqa: E731
    left, middle, right = (at(delta * x) for x in (-1.5, 0.3, 1.5))
    scale = 1.0 if name == "slic" else 0.4
    assert left == pytest.approx(-scale * p, abs=1e-12)
    assert middle == pytest.approx(scale * (1 - 2 * p), abs=1e-12)
    assert right == pytest.approx(scale * (1 - p), abs=1e-12)
    grid = torch.linspace(-3 * delta, 3 * delta, 601, dtype=F64)
    losses = torch.stack([world.loss(ref + torch.stack([h, torch.zeros_like(h)])) for h in grid])
    if p == 0.5:
        assert (losses < losses.min() + 1e-12).sum() == 201  # all of [-delta, delta]
    else:
        assert float(grid[losses.argmin()]) == pytest.approx(delta * math.copysign(1, p - 0.5), abs=1e-12)


def _of_ratio(loss) -> Algorithm:
    """A loss of reference-normalised, summed log-ratios."""
    return Algorithm(
        "x", SOURCE, PairLoss(loss, "log_ratio"), prepare=(PairLabels("x"), RefLogp()), reduce=Mean("kept_G")
    )


def test_hinge_and_hinge_norm_are_one_loss_in_two_scales() -> None:
    """max(0, 1 - gamma D)/gamma = max(0, delta - D) with delta = 1/gamma."""
    d = torch.linspace(-5, 5, 41, dtype=F64)
    same(Hinge(1.0, 0.4)(d) / 0.4, Hinge(2.5)(d), 1e-14)


@pytest.mark.parametrize("p", [0.1, 0.45, 0.5, 0.7, 0.99])
def test_dpo_of_one_pair_is_the_log_odds(p: float) -> None:
    assert best_h(dpo(SOURCE, beta=0.3), p) == pytest.approx(logit(p) / 0.3, abs=1e-8)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8, 1.0])
def test_simpo_of_one_pair_is_pulled_beyond_the_log_odds(p: float) -> None:
    """h = u/beta with p sigmoid(gamma - u) = (1-p) sigmoid(gamma + u): the margin's closed form (methods 1.4)."""
    beta, gamma = 2.0, 1.0
    algorithm = simpo(SOURCE, beta=beta, gamma_ratio=gamma / beta)
    if p == 1.0:  # deterministic: still no finite optimum
        assert float(World(algorithm, TWO, [pair(0, 1)]).slope(torch.tensor([12.0, 0], dtype=F64))[0]) < -1e-12
        return
    logp = World(algorithm, TWO, [pair(0, 1, p)]).optimum(TWO)
    u, m = beta * float(logp[0] - logp[1]), math.exp(gamma)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert p * sigmoid(gamma - u) == pytest.approx((1 - p) * sigmoid(gamma + u), abs=1e-12)
    skew = (2 * p - 1) * m
    assert u == pytest.approx(math.log((skew + math.sqrt(skew**2 + 4 * p * (1 - p))) / (2 * (1 - p))), abs=1e-9)
    assert (p == 0.5) == (abs(u - logit(p)) < 1e-9)


def test_cpo_tilts_the_uniform_law_and_dpo_the_reference() -> None:
    found = best(cpo(SOURCE, beta=BETA, nll=0.0))
    exact = torch.log_softmax(REWARD / BETA, 0)
    same(found, exact, 1e-9)
    assert tv(found, TILT) == pytest.approx(tv(exact, TILT), abs=1e-9)
    assert tv(exact, TILT) > 0.1


# ------------------------------------------------------------------------------------------- noise, and labels without


@pytest.mark.parametrize(("noise", "beta"), [(0.1, 0.1), (0.25, 0.7)])
@pytest.mark.parametrize("p", [None, 0.3, 0.9])
def test_conservative_dpo_of_one_pair(noise: float, beta: float, p: float | None) -> None:
    """Hard labels: log((1-e)/e)/beta, finite; labels with p: logit((1-2e) p + e)/beta, nearer to 0 than logit(p)."""
    found = best_h(dpo(SOURCE, beta=beta, noise=noise), p)
    expected = math.log((1 - noise) / noise) if p is None else logit((1 - 2 * noise) * p + noise)
    assert found == pytest.approx(expected / beta, abs=1e-7)
    if (noise, beta, p) == (0.1, 0.1, None):
        assert found == pytest.approx(21.9722, abs=5e-5)
    if p is not None:
        assert abs(found) < abs(logit(p) / beta)


def test_hard_labels_have_no_optimum_and_the_margin_grows_like_the_logarithm_of_the_steps() -> None:
    """Gradient steps on -log sigmoid(u), u = beta h: with G(u) = u + e^u, each step adds c to c e^(c/2) to G.

    The lower bound is convexity of G, the upper that a step is at most c/2 from u = 0 on. So G(u_T) >= c T + 1 passes
    every bound in time, and the gradient is never zero. Both bounds are checked at every bound of u from 1 to 7.
    """
    beta, c = 0.1, 1.0
    loss, u, step = Logistic(beta), torch.zeros((), dtype=F64), 0
    for bound in range(1, 8):
        while float(u) <= bound:
            h = (u / beta).requires_grad_()
            slope = torch.autograd.grad(loss(h), h)[0]
            assert float(slope) < 0
            u, step = u - c / beta * slope, step + 1
        grown = float(u + u.exp()) - 1
        assert c * step <= grown <= c * step * math.exp(c / 2)
    far = torch.tensor(300.0 / beta, dtype=F64, requires_grad=True)
    assert -1e-120 < float(torch.autograd.grad(loss(far), far)[0]) < 0
    world = World(dpo(SOURCE, beta=beta), TWO, [pair(0, 1)])
    for h in (0.0, 50.0, 300.0):
        expected = -beta / (1 + math.exp(beta * h))
        same(world.slope(TWO + torch.tensor([h, 0.0], dtype=F64))[0], torch.tensor(expected, dtype=F64), 1e-12)


def test_robust_dpo_undoes_flips_exactly_and_the_others_do_not() -> None:
    """Labels flipped at rate e: robust finds pi*; plain DPO and cDPO have a slope at pi*, known in closed form."""
    noise = 0.2
    flipped, kept = (1 - 2 * noise) * P + noise, all_pairs((1 - 2 * noise) * P + noise)
    same(best(dpo(SOURCE, beta=BETA, noise=noise, noise_kind="robust"), flipped), TILT, 1e-8)
    smooth = dpo(SOURCE, beta=BETA, noise=noise)
    for seen, algorithm in ((noise, dpo(SOURCE, beta=BETA)), (2 * noise * (1 - noise), smooth)):
        world = World(algorithm, REF, kept)
        # -beta W (q' - p) per pair, q' = (1 - 2s) p + s being what is believed: s = e, or 2e(1-e) smoothed besides
        push = -BETA * seen * (1 - 2 * P) / len(kept)
        same(world.slope(TILT), push.sum(1), 1e-14)
        found = world.optimum(REF) - REF
        spread = float(found.max() - found.min())
        assert spread < float(REWARD.max() - REWARD.min()) / BETA  # shrunk toward indifference
    clean = World(dpo(SOURCE, beta=BETA, noise=noise), REF, all_pairs(P)).slope(TILT)
    same(clean, -BETA * noise * (1 - 2 * P).sum(1) / len(kept), 1e-14)  # cDPO misses pi* on clean labels too


# ------------------------------------------------------------------------------------------ which thing is normalised


def test_a_log_ratio_averaged_over_tokens_is_not_one_normalised_by_the_reference() -> None:
    """Two losses go by "sigmoid-norm": log pi/ref summed (RSO; DPO with gamma) and averaged over tokens (TRL).

    The first finds pi*. The second asks for log pi/ref = |y| (r + c)/beta, c making it a law: equal lengths n give pi*
    at beta/n, others do not.
    """
    length = (1, 2, 3, 1, 2)
    summed = best(dpo(SOURCE, beta=BETA), length=length)
    same(summed, TILT, 1e-9)
    averaged = Algorithm(
        "x",
        SOURCE,
        PairLoss(Logistic(BETA), "log_ratio_per_token"),
        prepare=(PairLabels("x"), RefLogp()),
        reduce=Mean("kept_G"),
    )
    n = torch.tensor(length, dtype=F64)
    low, high = -20.0, 20.0  # the total is increasing in c
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if float((REF + n * (REWARD + c) / BETA).exp().sum()) < 1 else (low, c)
    exact = REF + n * (REWARD + c) / BETA
    world = World(averaged, REF, all_pairs(P, length), length=length)
    same(world.slope(exact), torch.zeros(K, dtype=F64), 1e-14)
    near = torch.log_softmax(minimise(world.loss, exact + 0.05 * THETA), 0)
    same(near, exact, 1e-8)
    assert tv(exact, TILT) > 0.05
    same(best(averaged, length=(3,) * K), tilt(REF, 3 * REWARD, BETA), 1e-9)


# ---------------------------------------------------------------------------------------------------------------- SPIN

# the sheet's toy (methods 4.6)
OPPONENT = torch.tensor([0.20237342, 0.15637853, 0.3385958, 0.19820157, 0.10445068], dtype=F64).log().log_softmax(0)
DATA = torch.tensor([0.0730863, 0.16272855, 0.17106337, 0.34450364, 0.24861815], dtype=F64).log().log_softmax(0)


def duel(opponent: Tensor, lam: float | list[float], iteration: int = 0, **more) -> World:
    """SPIN's expected loss: the data's answer against the opponent's own, both distributions enumerated."""
    groups = []
    for i, j in product(range(K), range(K)):
        data, sampled = answers(i, j)
        groups.append(
            Group(
                pair(i, j).prompt,
                (data, replace(sampled, policy_version=iteration)),
                preference=Preference(ranks=(1, 2)),
            )
        )
    weights = (DATA[:, None] + opponent).exp().reshape(-1)
    return World(spin(SOURCE, beta=lam, **more), opponent, groups, weights)


def iterate(opponent: Tensor, lam: float) -> Tensor:
    """log of pi (p_data/pi)^(1/lam), normalised."""
    return torch.log_softmax(opponent + (DATA - opponent) / lam, 0)


@pytest.mark.parametrize("lam", [0.5, 1.0, 2.0, 5.0])
def test_spin_iterates_are_known_exactly(lam: float) -> None:
    """One inner optimum is pi_t (p_data/pi_t)^(1/lam), so log(pi/p_data) is multiplied by 1 - 1/lam each iteration."""
    now = OPPONENT
    for _ in range(2):
        found = duel(now, lam).optimum(now)
        same(found, iterate(now, lam), 1e-8)
        before, after = ((x - DATA) - (x - DATA).mean() for x in (now, found))
        same(after, (1 - 1 / lam) * before, 1e-8)
        now = found
    distance = tv(now, DATA)
    if lam == 1.0:
        assert distance < 1e-8  # there after one iteration
    elif lam == 0.5:
        same(now, OPPONENT, 1e-7)  # back where it began: period 2
    else:
        assert distance < tv(iterate(OPPONENT, lam), DATA) < tv(OPPONENT, DATA)


def test_spin_with_the_published_lam_diverges_when_each_iteration_is_finished() -> None:
    """lam = 0.1: a factor of -9 an iteration; TV to the data .297 -> .675 -> .927."""
    first = duel(OPPONENT, 0.1).optimum(OPPONENT)
    same(first, iterate(OPPONENT, 0.1), 1e-7)
    distances = [tv(x, DATA) for x in (OPPONENT, first, iterate(first, 0.1))]
    assert distances == pytest.approx([0.2968, 0.6754, 0.9269], abs=5e-5)


def test_spin_begins_as_half_lam_of_sft_and_rests_at_the_data() -> None:
    """E over the opponent's own answers of grad log pi is 0, so lam/2 (logistic) or lam (hinge) of SFT's is left."""
    sft = OPPONENT.exp() - DATA.exp()  # gradient of -sum of p_data log pi
    for kind, factor in (("logistic", 0.5), ("hinge", 1.0)):
        for lam in (0.1, 1.0, 3.0):
            same(duel(OPPONENT, lam, loss=kind).slope(OPPONENT), factor * lam * sft, 1e-15)
            same(duel(DATA, lam, loss=kind).slope(DATA), torch.zeros(K, dtype=F64), 1e-15)
    assert float(duel(DATA, 0.3).loss(DATA)) == pytest.approx(math.log(2), abs=1e-15)


def test_spin_takes_the_lam_of_its_iteration() -> None:
    for iteration, lam in ((0, 0.1), (1, 5.0), (7, 5.0)):
        world = duel(OPPONENT, [0.1, 5.0], iteration)
        same(world.slope(THETA), duel(OPPONENT, lam).slope(THETA), 1e-15)


def test_a_reference_left_behind_is_told_apart() -> None:
    """The opponent renewed, the reference not (plain DPO with synthetic losers): the second optimum is another one."""
    second = iterate(OPPONENT, 2.0)
    groups = [
        Group(pair(i, j).prompt, answers(i, j), preference=Preference(ranks=(1, 2))) for i in range(K) for j in range(K)
    ]
    weights = (DATA[:, None] + second).exp().reshape(-1)
    stale = World(spin(SOURCE, beta=2.0), OPPONENT, groups, weights).optimum(OPPONENT)
    same(stale, torch.log_softmax(OPPONENT + (DATA - second) / 2, 0), 1e-8)
    assert tv(stale, iterate(second, 2.0)) > 0.02
