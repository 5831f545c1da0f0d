"""Judges beside people on the same pairs: agreement, biases, repeatability, with intervals.

The columns are those of AlpacaEval's table of evaluators (Dubois et al. 2023), with three annotators that cost nothing
beside every judge: `longest` prefers the longer response, `first` the first one of each pair, `random` neither. A judge
whose agreement is not shown to be above that of `longest` is of no use, whatever its agreement is.

A pair's vote is 1 where the first response is preferred, 0 for the other, 1/2 for a tie, NaN for none.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.agreement import Agreement, cohen_kappa
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.intervals import RARE, Estimate, by_cluster, mean_ci, rate_ci

Floats = NDArray[np.float64]

UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)
FREE = ("longest", "first", "random")


@dataclass(frozen=True)
class JudgedPairs:
    """One judge's verdicts on N pairs: probabilities that the first response is the better one; NaN: none.

    Attributes:
        p_N: the verdict that is used, of both orders where both were asked.
        orders_N2: in the order of the pair, and with the two swapped (still of the same first response); None: one
            order alone was asked.
        again_N: the verdict that is used, when the same was asked again; None: it was not.
        own_N: 1 where the first response alone is of the judge's own model, 0 where the second is, NaN elsewhere.
        price: of 1,000 pairs. seconds: of 1,000 pairs, one after the other. None: not known.
    """

    p_N: ArrayLike
    orders_N2: ArrayLike | None = None
    again_N: ArrayLike | None = None
    own_N: ArrayLike | None = None
    price: float | None = None
    seconds: float | None = None


class OrderCounts(NamedTuple):
    """A judge against known labels in both orders: counts, and Cohen's kappa of its two orders.

    `right`: of the first and of the second order; `both`: right in both; `same`: the two orders name the same response
    (two missing verdicts are equal too, as in LLMBar's statistics); `missing`: pairs that lack a verdict in an order.
    """

    n: int
    right: tuple[int, int]
    both: int
    same: int
    missing: int
    kappa: float

    @property
    def average(self) -> float:
        """Mean share of right verdicts of the two orders."""
        return sum(self.right) / 2 / self.n


@dataclass(frozen=True)
class JudgeRow:
    """One annotator in the table. Shares are in 0..1; an `Estimate` of n = 0 is not known.

    Attributes:
        agreement: with the majority of people; a tie of the annotator counts one half.
        kappa: Cohen's, with that majority.
        gain: agreement minus that of `longest` on the same pairs.
        longer: share of the longer response among decided pairs of unequal length. longer_excess: minus people's.
        repeat: the same response preferred when asked again.
        first: share of the response shown first among decided verdicts of both orders.
        disagree: pairs whose two orders prefer different responses.
        own_excess: own response preferred more often than people prefer it, of pairs with one own response.
        missing: pairs without a verdict, which count in nothing else.
        biases: `position`, `length`, `self-preference` where the interval of each lies off its neutral value.
    """

    name: str
    n: int
    missing: int
    agreement: Estimate
    kappa: Agreement
    gain: Estimate
    longer: Estimate = UNKNOWN
    longer_excess: Estimate = UNKNOWN
    repeat: Estimate = UNKNOWN
    first: Estimate = UNKNOWN
    disagree: Estimate = UNKNOWN
    own_excess: Estimate = UNKNOWN
    price: float | None = None
    seconds: float | None = None
    biases: tuple[str, ...] = field(default=())

    @property
    def beats_longest(self) -> bool:
        """True if the interval of the gain over `longest` lies above 0."""
        return self.gain.low > 0

    @property
    def useful(self) -> bool:
        """True if it beats `longest`, and its agreement is shown to be above one half, that of `random`."""
        return self.beats_longest and self.agreement.low > 0.5


def majority(votes: Sequence[float]) -> float:
    """Returns 1, 0, or 1/2 where the votes of people are even; NaN without votes."""
    if not votes:
        return math.nan
    mean = sum(votes) / len(votes)
    return 0.5 if abs(mean - 0.5) < 1e-9 else float(mean > 0.5)


def people_agreement(
    votes: Sequence[Sequence[float]], prompts: Sequence[Hashable], *, rounds: int = 1000, seed: int = 0
) -> Estimate:
    """Computes the agreement of one person with the majority of the others, over pairs with two votes or more.

    A tie on either side counts one half. The interval resamples prompts. Unknown where each pair has one vote.
    """
    agreed, clusters = [], []
    for given, prompt in zip(votes, prompts, strict=True):
        for k, vote in enumerate(given):
            others = [*given[:k], *given[k + 1 :]]
            if others:
                agreed.append(1 - abs(vote - majority(others)))
                clusters.append(prompt)
    return rate_ci(agreed, clusters, rounds=rounds, seed=seed) if agreed else UNKNOWN


def order_counts(first_N: ArrayLike, swapped_N: ArrayLike, truth_N: ArrayLike) -> OrderCounts:
    """Counts a judge's verdicts in both orders against known labels; a missing verdict is never right.

    Cohen's kappa is that of `first response` against anything else, as LLMBar's own statistics compute it.

    Raises:
        DataError: lists of different lengths.
    """
    one_N, two_N, truth = (np.asarray(x, dtype=float) for x in (first_N, swapped_N, truth_N))
    if not len(one_N) == len(two_N) == len(truth):
        raise DataError("each pair has two verdicts and a label", got=f"{len(one_N)}, {len(two_N)}, {len(truth)}")
    n, right_1, right_2 = len(truth), one_N == truth, two_N == truth
    none = np.isnan(one_N), np.isnan(two_N)
    same = (one_N == two_N) | (none[0] & none[1])
    chosen_1, chosen_2 = (one_N == 1).mean(), (two_N == 1).mean()
    observed = ((one_N == 1) == (two_N == 1)).mean()
    by_chance = chosen_1 * chosen_2 + (1 - chosen_1) * (1 - chosen_2)
    kappa = float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan
    counts = int((right_1 & right_2).sum()), int(same.sum()), int((none[0] | none[1]).sum())
    return OrderCounts(n, (int(right_1.sum()), int(right_2.sum())), *counts, kappa)


def calibration_table(
    judges: Mapping[str, JudgedPairs],
    people_N: ArrayLike,
    prompts: Sequence[Hashable],
    lengths_N2: ArrayLike,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[JudgeRow]:
    """Computes a row for each judge, and for `longest`, `first` and `random`, over pairs whose majority is decided.

    Args:
        people_N: [N] majority of people, see `majority`; pairs of 1/2 or NaN are left out.
        prompts: of each pair; intervals resample them. lengths_N2: [N, 2] lengths of the responses.

    Raises:
        DataError: lists of different lengths, or no pair that people decided.
    """
    truth_N, length_N2 = np.asarray(people_N, dtype=float), np.asarray(lengths_N2, dtype=float)
    n = len(truth_N)
    if len(prompts) != n or length_N2.shape != (n, 2):
        raise DataError(
            "each pair has a vote of people, a prompt and two lengths",
            got=f"{n}, {len(prompts)} and {length_N2.shape}",
        )
    longest_N = (np.sign(length_N2[:, 0] - length_N2[:, 1]) + 1) / 2
    free = {
        "longest": JudgedPairs(longest_N),
        "first": JudgedPairs(np.ones(n)),
        "random": JudgedPairs(np.full(n, 0.5)),
    }
    decided_N = np.isin(truth_N, [0.0, 1.0])
    if not decided_N.any():
        raise DataError("people decided none of these pairs", got=f"{n} pairs", fix="take pairs with a majority")
    facts = _People(truth_N, longest_N, decided_N, tuple(prompts), {"rounds": rounds, "seed": seed, "level": level})
    taken = [name for name in judges if name in free]
    if taken:
        raise DataError("this name is that of a judge that costs nothing", got=taken[0], fix="rename the judge")
    return [facts.row(name, judge) for name, judge in {**judges, **free}.items()]


@dataclass(frozen=True)
class _People:
    """The side of people, with which every row is compared."""

    truth_N: Floats
    longest_N: Floats
    decided_N: NDArray[np.bool_]
    prompts: tuple[Hashable, ...]
    how: Mapping[str, float]

    def row(self, name: str, judge: JudgedPairs) -> JudgeRow:
        p_N = _column(judge.p_N, len(self.truth_N), name)
        vote_N = (np.sign(p_N - 0.5) + 1) / 2
        on_N = self.decided_N & ~np.isnan(vote_N)
        agreed_N = 1 - np.abs(vote_N - self.truth_N)
        gain_N = agreed_N - (1 - np.abs(self.longest_N - self.truth_N))
        row = JudgeRow(
            name,
            int(on_N.sum()),
            int((self.decided_N & np.isnan(vote_N)).sum()),
            self._share(agreed_N, on_N),
            self._kappa(vote_N, on_N),
            self._mean(gain_N, on_N),
            **self._length(vote_N),  # type: ignore[arg-type]
            repeat=self._repeat(vote_N, judge),
            own_excess=self._own(vote_N, judge),
            price=judge.price,
            seconds=judge.seconds,
            **self._position(judge),  # type: ignore[arg-type]
        )
        return row if name in FREE else _with_biases(row)

    def _share(self, x_N: Floats, on_N: NDArray[np.bool_]) -> Estimate:
        return rate_ci(x_N[on_N], self._prompts(on_N), **self.how) if on_N.any() else UNKNOWN  # type: ignore[arg-type]

    def _mean(self, x_N: Floats, on_N: NDArray[np.bool_]) -> Estimate:
        """Mean of differences of shares, which lie in -1..1: the bootstrap's interval, but where nearly all are alike.

        There it is that of a rate, which has a width even if all are 0, -1 or 1; elsewhere that would be too wide.
        """
        if on_N.any():
            sums_C, counts_C = by_cluster(x_N[on_N], self._prompts(on_N))
            _, alike = np.unique(sums_C / counts_C, return_counts=True)
            if len(sums_C) - alike.max() >= RARE:
                return mean_ci(x_N[on_N], self._prompts(on_N), **self.how)  # type: ignore[arg-type]
        half = self._share((x_N + 1) / 2, on_N)
        return Estimate(2 * half.value - 1, 2 * half.low - 1, 2 * half.high - 1, half.n)

    def _prompts(self, on_N: NDArray[np.bool_]) -> list[Hashable]:
        return [prompt for prompt, on in zip(self.prompts, on_N, strict=True) if on]

    def _kappa(self, vote_N: Floats, on_N: NDArray[np.bool_]) -> Agreement:
        if not on_N.any():
            return Agreement(math.nan, math.nan, math.nan, 0, "no pair")
        rows = [
            (i, who, float(x_N[i])) for i in np.flatnonzero(on_N) for who, x_N in (("j", vote_N), ("p", self.truth_N))
        ]
        return cohen_kappa(Annotations.of(rows), ("j", "p"), **self.how)  # type: ignore[arg-type]

    def _length(self, vote_N: Floats) -> dict[str, Estimate]:
        on_N = np.isin(vote_N, [0.0, 1.0]) & (self.longest_N != 0.5)
        longer_N = (vote_N == self.longest_N).astype(float)
        both_N = on_N & self.decided_N
        excess_N = longer_N - (self.truth_N == self.longest_N)
        return {"longer": self._share(longer_N, on_N), "longer_excess": self._mean(excess_N, both_N)}

    def _repeat(self, vote_N: Floats, judge: JudgedPairs) -> Estimate:
        if judge.again_N is None:
            return UNKNOWN
        again_N = (np.sign(_column(judge.again_N, len(vote_N), "again") - 0.5) + 1) / 2
        return self._share((vote_N == again_N).astype(float), ~np.isnan(vote_N) & ~np.isnan(again_N))

    def _own(self, vote_N: Floats, judge: JudgedPairs) -> Estimate:
        if judge.own_N is None:
            return UNKNOWN
        own_N = _column(judge.own_N, len(vote_N), "own")
        on_N = self.decided_N & ~np.isnan(own_N) & ~np.isnan(vote_N)
        return self._mean(np.abs(self.truth_N - own_N) - np.abs(vote_N - own_N), on_N)

    def _position(self, judge: JudgedPairs) -> dict[str, Estimate]:
        if judge.orders_N2 is None:
            return {}
        one_N, two_N = np.asarray(judge.orders_N2, dtype=float).T
        both_N = ~np.isnan(one_N) & ~np.isnan(two_N)
        apart_N = ((one_N - 0.5) * (two_N - 0.5) < 0).astype(float)
        # the response shown first: the first of the pair, and with the two swapped the second
        shown = np.concatenate([np.sign(one_N - 0.5), np.sign(0.5 - two_N)])
        won = (shown > 0).astype(float)
        decided = ~np.isnan(shown) & (shown != 0)
        prompts = [p for p, on in zip((*self.prompts, *self.prompts), decided, strict=True) if on]
        first = rate_ci(won[decided], prompts, **self.how) if decided.any() else UNKNOWN  # type: ignore[arg-type]
        return {"first": first, "disagree": self._share(apart_N, both_N)}


def _column(values: ArrayLike, n: int, name: str) -> Floats:
    found = np.asarray(values, dtype=float)
    if found.shape != (n,):
        raise DataError("a judge has one verdict for each pair, or NaN", got=f"{name}: {found.shape} for {n} pairs")
    return found


def _with_biases(row: JudgeRow) -> JudgeRow:
    off = {
        "position": row.first.low > 0.5 or row.first.high < 0.5,
        "length": row.longer_excess.low > 0 or row.longer_excess.high < 0,
        "self-preference": row.own_excess.low > 0,
    }
    return replace(row, biases=tuple(name for name, there in off.items() if there))
