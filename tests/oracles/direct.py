"""Where the methods of direct alignment end in worlds of a few tokens: tilts, moved mass, and laws at rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tiltyard.methods import (
    click,
    cpo,
    dpo,
    ipo,
    kto,
    orpo,
    rrhf,
    simpo,
    slic,
)
from tiltyard.training.algorithm import Models
from tiltyard.types import Group, Preference, Response

from .worlds import (
    ASK,
    BANDIT,
    COIN,
    TREE,
    Answer,
    Toy,
    Toys,
    beats,
    demos,
    doubles,
    given,
    law,
    pair,
    pairs,
    policy,
    root,
    shares,
    tilted,
    to_law,
)
from .worlds import REWARD as R


def uneven(i: int, j: int) -> int:
    """A law of pairs that is not a product and has nothing to do with rewards."""
    return 1 + (2 * i + j) % 3


# ------------------------------------------------------------------------------------- tilts: pi* and what resembles it


def tilt(support: Sequence[Answer], groups: Sequence[Group], steps: int = 150, **settings: Any) -> Toy:
    """DPO: pi0 exp(r/beta)/Z."""
    models, r = tilted(support), R[: len(support)]
    best = (law(models["ref"], support) + r / 0.7).softmax(0)
    return Toy(dpo(given(groups), beta=0.7, **settings), models, to_law(support, best), steps=steps)


def conservative() -> Toy:
    """A sure label that is believed to be wrong one time in ten: h = log((1-e)/e)/beta instead of infinity."""
    models = tilted(COIN)
    best = (law(models["ref"], COIN) + doubles([math.log(9) / 0.7, 0])).softmax(0)
    return Toy(dpo(given([pair(*COIN, 1.0)]), beta=0.7, noise=0.1), models, to_law(COIN, best))


def flipped() -> list[Group]:
    """Bradley-Terry labels, one in ten flipped."""
    return pairs(BANDIT, 0.8 * beats(R[:6]) + 0.1)


DPO: Toys = {
    "pi*": lambda: tilt(BANDIT, pairs(BANDIT, beats(R[:6]))),
    "pi*, another law of pairs": lambda: tilt(BANDIT, pairs(BANDIT, beats(R[:6]), uneven)),
    "pi*, sequences": lambda: tilt(TREE, pairs(TREE, beats(R)), steps=300),
    "pi*, flipped labels, robust": lambda: tilt(BANDIT, flipped(), noise=0.1, noise_kind="robust"),
    "one pair, conservative": conservative,
}


def uniform_tilt() -> Toy:
    """CPO without its likelihood term: the reference is uniform. Every answer is compared, so no mass is free."""
    algorithm = cpo(given(pairs(BANDIT, beats(R[:6]))), beta=0.7, nll=0.0)
    return Toy(algorithm, Models(policy=policy(BANDIT)), to_law(BANDIT, (R[:6] / 0.7).softmax(0)))


def uniform_tilt_of_some() -> Toy:
    """Only ratios among compared answers are determined: their law is compared after the rest is cut away."""
    some = BANDIT[1:5]
    best = (R[:4] / 0.7).softmax(0)

    def gap(models: Models) -> float:
        return 0.5 * float((law(models["policy"], some).softmax(0) - best).abs().sum())

    return Toy(cpo(given(pairs(some, beats(R[:4]))), beta=0.7, nll=0.0), Models(policy=policy(BANDIT)), gap)


CPO: Toys = {"tilt of the uniform law": uniform_tilt, "some answers compared": uniform_tilt_of_some}


def identity(mu: Sequence[int]) -> Toy:
    """IPO: pi0 exp(p(y beats mu)/tau)/Z for pairs drawn from mu, here mu in whole numbers."""
    models, p = tilted(BANDIT), beats(R[:6])
    best = (law(models["ref"], BANDIT) + p @ shares(mu) / 0.3).softmax(0)
    groups = pairs(BANDIT, p, lambda i, j: mu[i] * mu[j])
    return Toy(ipo(given(groups), beta=0.3, length_norm=False), models, to_law(BANDIT, best))


IPO: Toys = {"uniform mu": lambda: identity((1,) * 6), "another mu": lambda: identity((1, 1, 3, 1, 2, 1))}


def margin() -> Toy:
    """SimPO, one pair preferred with p = 0.8: p sigmoid(gamma - u) = (1-p) sigmoid(gamma + u), h = u/beta."""
    p, gamma = 0.8, 1.0
    u = root(lambda u: (1 - p) / (1 + math.exp(-gamma - u)) - p / (1 + math.exp(u - gamma)), 0, 20)
    best = doubles([u / 2, 0]).softmax(0)
    return Toy(simpo(given([pair(*COIN, p)])), Models(policy=policy(COIN)), to_law(COIN, best))


SIMPO: Toys = {"one pair": margin}


def odds() -> Toy:
    """ORPO, one pair, x the log odds of the first: sigmoid(x) + 2 lam sigmoid(2x) = (1+2 lam) p."""
    p, lam = 0.8, 0.7
    x = root(lambda x: 1 / (1 + math.exp(-x)) + 2 * lam / (1 + math.exp(-2 * x)) - (1 + 2 * lam) * p, 0, 20)
    best = doubles([x, 0]).softmax(0)
    return Toy(orpo(given([pair(*COIN, p)]), lam=lam), Models(policy=policy(COIN)), to_law(COIN, best))


def winners() -> Toy:
    """ORPO at lam = 0 is SFT on what is preferred: the law of the winner of a random pair."""
    p = beats(R[:6])
    best = (p.sum(1) - 0.5) / 15
    return Toy(orpo(given(pairs(BANDIT, p)), lam=0.0), Models(policy=policy(BANDIT)), to_law(BANDIT, best))


ORPO: Toys = {"one pair": odds, "lam = 0": winners}


# --------------------------------------------------------- hinges: mass moves at a fixed price until the margin is won


DATA = (2, 3, 6, 4, 3, 2)  # demonstrations in twentieths
GOOD, BAD = 1, 2


def moved(mass: float) -> Tensor:
    """The law of the data after this much has gone from the bad to the good answer."""
    p = shares(DATA)
    p[GOOD] += mass
    p[BAD] -= mass
    return p


def until(margin: float) -> float:
    """How much mass makes the good answer so much likelier than the bad one."""
    p = shares(DATA)
    return root(lambda u: math.log((p[GOOD] + u) / (p[BAD] - u)) - margin, 0, float(p[BAD]) - 1e-9)


def calibrated(share: float, delta: float, lam: float, mass: float, lr: float = 3e-2) -> Toy:
    """SLiC: lam * cross-entropy to the targets + a hinge of slope 2q-1: mass (2q-1)/lam goes to the winner."""
    algorithm = slic(given([pair(BANDIT[GOOD], BANDIT[BAD], share)]), given(demos(BANDIT, DATA)), delta=delta, lam=lam)
    return Toy(algorithm, Models(policy=policy(BANDIT)), to_law(BANDIT, moved(mass)), lr=lr)


def stops() -> Toy:
    """SLiC without targets on sure labels: it ends where every pair has its margin, and not a step further."""
    order = torch.where(R[:6, None] > R[None, :6], 1.0, 0.0)

    def gap(models: Models) -> float:
        ranked = law(models["policy"], BANDIT)[R[:6].argsort()]
        return float(torch.relu(0.3 - ranked.diff()).max())

    algorithm = slic(given(pairs(BANDIT, order)), delta=0.3, lam=0.0)
    return Toy(algorithm, Models(policy=policy(BANDIT)), gap, within=1e-9)


def sign() -> Toy:
    """SLiC, one pair preferred with p = 0.7: h = delta, whatever p > 1/2. Near a kink steps must be short."""
    best = doubles([0.5, 0]).softmax(0)
    algorithm = slic(given([pair(*COIN, 0.7)]), delta=0.5, lam=0.0)
    return Toy(algorithm, Models(policy=policy(COIN)), to_law(COIN, best), steps=200, lr=5e-3)


SLIC: Toys = {
    "sure label": lambda: calibrated(1.0, 5.0, 10.0, 0.1),
    "Bernoulli label": lambda: calibrated(0.8, 5.0, 4.0, 0.15),
    "margin won": lambda: calibrated(1.0, 0.2, 4.0, until(0.2), lr=1e-2),
    "one pair, h = delta": sign,
    "lam = 0": stops,
}


def contrasted(weight: float, margin: float, mass: float, lr: float = 3e-2) -> Toy:
    """CLICK: cross-entropy to the data + weight * hinge: mass `weight` goes from the bad to the good answer."""
    both = Group(ASK, (Response(ids=BANDIT[GOOD]), Response(ids=BANDIT[BAD])), scores=(1.0, 0.0))
    algorithm = click(given([both]), given(demos(BANDIT, DATA)), weight=weight, margin=margin, pairing="random")
    return Toy(algorithm, Models(policy=policy(BANDIT)), to_law(BANDIT, moved(mass)), lr=lr)


CLICK: Toys = {
    "weight moves": lambda: contrasted(0.12, 5.0, 0.12),
    "margin won": lambda: contrasted(0.25, 0.2, until(0.2), lr=1e-2),
    "weight 0": lambda: contrasted(0.0, 5.0, 0.0),
}


def ranked(rank_weight: float) -> Toy:
    """RRHF on two answers, the first better 8 times in 10: the ranking term only takes, 2 of 10, until h = 0."""
    groups = [Group(ASK, (Response(ids=COIN[0]), Response(ids=COIN[1])), preference=Preference(ranks=(1, 2)))] * 8
    groups += [replace(groups[0], preference=Preference(ranks=(2, 1)))] * 2
    best = shares((0.8 - 0.2 * rank_weight, 0.2 + 0.2 * rank_weight))
    return Toy(rrhf(given(groups), rank_weight=rank_weight), Models(policy=policy(COIN)), to_law(COIN, best))


def in_order() -> Toy:
    """Without the likelihood term it stops where the averaged log-probs are in the order of the ranks."""
    places = R[:6].argsort(descending=True).argsort()
    group = Group(
        ASK, tuple(Response(ids=y) for y in BANDIT), preference=Preference(ranks=tuple(1 + int(i) for i in places))
    )

    def gap(models: Models) -> float:
        return float(torch.relu(-law(models["policy"], BANDIT)[R[:6].argsort()].diff()).max())

    return Toy(rrhf(given([group]), sft_weight=0.0), Models(policy=policy(BANDIT)), gap, within=1e-9)


RRHF: Toys = {"likelihood and order": lambda: ranked(1.0), "weight 0": lambda: ranked(0.0), "order alone": in_order}


def prospect() -> Toy:
    """KTO, answers all good often enough: c s'(beta (rho - z)) / pi is the same for all, c = w_D good - w_U bad.

    rho = log(pi/pi0) and z the mean of it over the step's answers; found by iteration. An answer with c < 0 has no
    place in a law that is at rest.
    """
    good, bad, beta, models = (4, 3, 2, 3, 2, 1), (1, 1, 0, 2, 1, 1), 0.4, tilted(BANDIT)
    c, often = 1.5 * doubles(good) - 0.8 * doubles(bad), shares([g + b for g, b in zip(good, bad, strict=True)])
    ref = law(models["ref"], BANDIT)
    best = shares(c.tolist())
    for _ in range(500):
        rho = best.log() - ref
        s = torch.sigmoid(beta * (rho - float((often * rho).sum().clamp(min=0))))
        best = 0.5 * best + 0.5 * (c * s * (1 - s)) / (c * s * (1 - s)).sum()
    groups = [replace(g, scores=(1.0,)) for g in demos(BANDIT, good)]
    groups += [replace(g, scores=(0.0,)) for g in demos(BANDIT, bad)]
    algorithm = kto(given(groups), beta=beta, desirable=1.5, undesirable=0.8)
    return Toy(algorithm, models, to_law(BANDIT, best))


KTO: Toys = {"answers at rest": prospect}
