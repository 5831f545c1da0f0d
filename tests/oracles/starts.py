"""The loss of each method and its gradient where training starts, by formulas in plain numbers.

`a` and `b` are the log-probabilities of the two answers of a pair, `m` and `n` their tokens, and `q` the probability
that the first is preferred. Each returns the loss and its derivative by each of what it is a function of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.types import Group, ranks_of, shares_of

from .worlds import doubles

BETA, LAM = 0.3, 0.7
Known = tuple[float, Tensor]
LN2 = math.log(2)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def tokens(batch: Batch, x_R: Tensor) -> Known:
    """The mean over tokens of -x."""
    return -float(x_R.mean()), torch.full_like(x_R, -1 / len(x_R))


def over_pairs(one: Callable[[float, float, int, int, float], tuple[float, float, float]]) -> Any:
    """The mean of `one(a, b, m, n, q) -> (loss, dloss/da, dloss/db)` over pairs that are no ties."""

    def start(batch: Batch, x_B: Tensor) -> Known:
        found, x, sizes = [], x_B.view(-1, 2).tolist(), batch.forest.count_B.view(-1, 2).tolist()
        for group, (a, b), (m, n) in zip(batch.groups, x, sizes, strict=True):
            first, second = ranks_of(group.preference) or (0, 0)
            q = shares_of(group.preference)[0] if shares_of(group.preference) else float(first < second)
            tied = shares_of(group.preference) is None and first == second
            found.append((0.0, 0.0, 0.0, 0.0) if tied else (1.0, *one(a, b, m, n, q)))
        table = doubles(found)
        count = float(table[:, 0].sum())
        return float(table[:, 1].sum()) / count, table[:, 2:].flatten() / count

    return start


def even(loss: float, slope: float) -> Any:
    """At h = 0: the same loss for every label, and a slope for a sure one that shrinks to nothing at one half."""
    return over_pairs(lambda a, b, m, n, q: (loss, (2 * q - 1) * slope, (1 - 2 * q) * slope))


@over_pairs
def cpo(a: float, b: float, m: int, n: int, q: float) -> tuple[float, float, float]:
    h = BETA * (a - b)
    loss = q * softplus(-h) + (1 - q) * softplus(h) - q * a / m - (1 - q) * b / n
    return loss, BETA * (sigma(h) - q) - q / m, -BETA * (sigma(h) - q) - (1 - q) / n


@over_pairs
def simpo(a: float, b: float, m: int, n: int, q: float) -> tuple[float, float, float]:
    h, gamma = 2.0 * (a / m - b / n), 1.0
    slope = 2.0 * ((1 - q) * sigma(gamma + h) - q * sigma(gamma - h))
    return q * softplus(gamma - h) + (1 - q) * softplus(gamma + h), slope / m, -slope / n


@over_pairs
def orpo(a: float, b: float, m: int, n: int, q: float) -> tuple[float, float, float]:
    one, other = math.exp(a / m), math.exp(b / n)
    h = math.log(one / (1 - one)) - math.log(other / (1 - other))
    slope = LAM * (sigma(h) - q)
    loss = LAM * (q * softplus(-h) + (1 - q) * softplus(h)) - q * a / m - (1 - q) * b / n
    return loss, slope / (1 - one) / m - q / m, -slope / (1 - other) / n - (1 - q) / n


@over_pairs
def slic(a: float, b: float, m: int, n: int, q: float) -> tuple[float, float, float]:
    """Its margin is wide, so that some pairs have reached it and some have not."""
    delta, h = 4.0, a - b
    slope = (1 - q) * (h > -delta) - q * (h < delta)
    return q * max(0.0, delta - h) + (1 - q) * max(0.0, delta + h), slope, -slope


def ranker(batch: Batch, score_B: Tensor) -> Known:
    """ln 2, and half a unit on either order; a row counts alike however many comparisons it gave."""
    share = doubles([1.0 if shares_of(g.preference) is None else shares_of(g.preference)[0] for g in batch.groups])
    weight = doubles([1 / g.responses[0].meta["pairs_of_row"] for g in batch.groups])
    slope = weight * (0.5 - share) / weight.sum()
    return LN2, torch.stack([slope, -slope], 1).flatten()


def reward(batch: Batch, score_B: Tensor) -> Known:
    """ln 2 a ranking, and (answers above - answers below) / 2 over its untied pairs: (2i-1-K)/(K(K-1)) without ties."""
    slopes, kept = [], 0
    for group in batch.groups:
        ranks = ranks_of(group.preference) or ()
        untied = sum(x < y for x in ranks for y in ranks)
        kept += untied > 0
        slopes += [0.5 * sum((y < x) - (y > x) for y in ranks) / max(untied, 1) for x in ranks]
    return LN2, doubles(slopes) / kept


def kto(batch: Batch, logp_B: Tensor) -> Known:
    """z = 0: half of each weight, and a quarter of weight times beta, up for the good and down for the bad."""
    good = [score > 0 for g in batch.groups for score in g.scores or ()]
    weight = doubles([1.5 if g else 0.8 for g in good]) / len(good)
    sign = doubles([1.0 if g else -1.0 for g in good])
    return float(weight.sum()) / 2, -sign * weight * BETA / 4


def rrhf(batch: Batch, logp_B: Tensor) -> Known:
    loss, slopes = 0.0, []
    for group, x, size in by_group(batch, logp_B):
        ranks, p = ranks_of(group.preference) or (), [a / n for a, n in zip(x, size, strict=True)]
        best = [r == min(ranks) for r in ranks]
        own = [-b / sum(best) for b in best]
        loss += sum(a * b for a, b in zip(x, own, strict=True))
        for i, j in ((i, j) for i in range(len(x)) for j in range(len(x)) if ranks[i] < ranks[j] and p[i] < p[j]):
            loss += LAM * (p[j] - p[i])
            own[i] -= LAM / size[i]
            own[j] += LAM / size[j]
        slopes += own
    return loss / batch.forest.G, doubles(slopes) / batch.forest.G


def click(batch: Batch, logp_B: Tensor) -> Known:
    """Each bad answer against the likeliest good one below it, and the good ones' likelihood a token."""
    loss, slopes = 0.0, []
    for group, x, size in by_group(batch, logp_B):
        good = [score > 0 for score in group.scores or ()]
        words = sum(n for n, g in zip(size, good, strict=True) if g)
        own = [-g / max(words, 1) for g in good]
        loss += sum(a * b for a, b in zip(x, own, strict=True))
        below = [[i for i, g in enumerate(good) if g and x[i] < x[j]] for j in range(len(x))]
        held = [(max(low, key=lambda i: x[i]), j) for j, low in enumerate(below) if low and not good[j]]
        for i, j in held:  # the bad answer is the likelier one: the hinge is at work
            loss += LAM * (1.0 - x[i] + x[j]) / len(held)
            own[i] -= LAM / len(held)
            own[j] += LAM / len(held)
        slopes += own
    return loss / batch.forest.G, doubles(slopes) / batch.forest.G


def by_group(batch: Batch, x_B: Tensor) -> list[tuple[Group, list[float], list[int]]]:
    sizes = [len(g.responses) for g in batch.groups]
    parts = zip(x_B.split(sizes), batch.forest.count_B.split(sizes), strict=True)
    return [(g, x.tolist(), n.tolist()) for g, (x, n) in zip(batch.groups, parts, strict=True)]


def mlm(batch: Batch, logp_R: Tensor) -> Known:
    masked_R = batch["masked_R"]
    return -float((masked_R * logp_R).sum() / masked_R.sum()), -masked_R / masked_R.sum()


def ppo(batch: Batch, logp_R: Tensor) -> Known:
    """No KL yet and every ratio 1: the loss is the value's error less the mean advantage, GAE written out."""
    loss, slopes, values = 0.0, [], batch["old_value_R"].split(batch.forest.count_B.tolist())
    for group, value_t in zip(batch.groups, values, strict=True):
        (score,), (response,), v = group.scores or (), group.responses, [*value_t.tolist(), 0.0]
        rewards = [0.0] * (len(v) - 2) + [score - (response.finish == "length")]
        deltas = [r + v[t + 1] - v[t] for t, r in enumerate(rewards)]
        for t in range(len(deltas)):
            advantage = sum(0.95**k * d for k, d in enumerate(deltas[t:]))
            loss += 0.1 * 0.5 * advantage**2 - advantage  # the return is value + advantage
            slopes.append(-advantage)
    return loss / len(slopes), doubles(slopes) / len(slopes)
