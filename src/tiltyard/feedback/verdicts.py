"""The protocols of judges, their results, and a wrapper that removes the effect of the order of the responses.

A `Judge` compares: for each pair it returns the probability that the first response is the better one. A `ScoreJudge`
grades single responses. A missing verdict is `None` with its reason, never an imputed number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol

from tiltyard.data.turns import turn_text, turns_of
from tiltyard.errors import DataError, TiltyardError
from tiltyard.types import Group, Prompt, Response

Debias = Literal["probabilities", "logits", "none"]
Cause = Literal["cut", "empty", "refused", "filtered", "unreadable", "too long", "no reply"]


class JudgeError(TiltyardError, RuntimeError):
    """A judge or a teacher does not reply, refuses, or replies with something that is no verdict or answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's result for one pair.

    `p`: probability that the first response is the better one; None if missing, with the `reason`.
    `logit`: of p, where it is known to more digits than p holds. `text`: what the judge generated (untrusted).
    `same_position`: both orders were queried, and the same position (not the same response) was preferred.
    `cause`: the kind of reason by which missing verdicts are counted; "" where there is a verdict.
    `orders`: p in the order of the responses and with the two swapped, where both were queried; None where an order
    has no verdict.
    """

    p: float | None
    reason: str = ""
    logit: float | None = None
    text: str = ""
    same_position: bool | None = None
    cause: Cause | Literal[""] = ""
    orders: tuple[float | None, float | None] | None = None

    def swapped(self) -> Verdict:
        """Returns the verdict on the same pair with its responses in the other order."""
        p = None if self.p is None else 1 - self.p
        logit = None if self.logit is None else -self.logit
        orders = self.orders
        if orders is not None:
            one, two = (None if x is None else 1 - x for x in orders[::-1])
            orders = one, two
        return replace(self, p=p, logit=logit, orders=orders)


@dataclass(frozen=True, slots=True)
class Grade:
    """The score of one response; None if missing, with the `reason` and its `cause`.

    `texts`: what the judge generated, one text a sample. `points`: the score in each, None where it has none.
    `soft`: from log-probabilities.
    """

    score: float | None
    reason: str = ""
    texts: tuple[str, ...] = ()
    points: tuple[float | None, ...] = ()
    cause: Cause | Literal[""] = ""
    soft: bool = False


@dataclass
class Usage:
    """The cost of a judge so far: queries, tokens in and out, price, replies from the cache (not counted as `calls`),
    and repeated requests.

    `unmetered`: replies for which the server reported no tokens, whose cost is unknown. `soft`, `hard`: verdicts from
    log-probabilities, and verdicts read from words where log-probabilities were requested.
    """

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    cached: int = 0
    retries: int = 0
    unmetered: int = 0
    soft: int = 0
    hard: int = 0

    def taken(self) -> Usage:
        """Returns the usage since the last call and resets it.

        It is no difference of two sums, whose last bits would depend on earlier costs.
        """
        used = replace(self)
        for f in fields(self):
            setattr(self, f.name, f.default)
        return used

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


class Judge(Protocol):
    """A judge that compares: one verdict per group of two responses, in their order."""

    @property
    def usage(self) -> Usage: ...

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]: ...


class ScoreJudge(Protocol):
    """A judge that grades: one grade per response; higher is better, on the judge's own scale."""

    @property
    def usage(self) -> Usage: ...

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]: ...


@dataclass
class PositionCounts:
    """Counts of position bias over pairs with verdicts in both orders.

    `same`: pairs where the judge preferred the same position in both orders; `first` of them, the first position.
    """

    pairs: int = 0
    same: int = 0
    first: int = 0

    @property
    def same_rate(self) -> float:
        """Share of the pairs: about 0 for a judge without position bias, 1 for one that decides by position alone."""
        return self.same / self.pairs if self.pairs else 0.0


@dataclass
class Debiased:
    """Queries any judge in both orders, un-swaps and averages (Lee et al. 2023, section 2.1).

    With `probabilities` p = (p12 + 1 - p21) / 2: unbiased on average, shrunk towards 1/2. With `logits` the log-odds
    are averaged, which cancels an additive bias of the log-odds exactly; certain verdicts (0 or 1) are limits of finite
    log-odds, so two that contradict each other give 1/2. `none` queries once, in the order of the responses.

    Each pair is brought into a canonical order first, and equal pairs of a call are queried once: so
    p(a, b) + p(b, a) = 1 even for a stochastic judge. Two responses with the same text are a tie without a query.
    """

    judge: Judge
    how: Debias = "probabilities"
    position_counts: PositionCounts = field(default_factory=PositionCounts)
    ties: int = 0

    @property
    def usage(self) -> Usage:
        return self.judge.usage

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        """Returns one verdict per pair; see the class."""
        keys, swapped, fresh = self._distinct(pairs)
        results = dict(zip(fresh, self._both_orders(list(fresh.values())), strict=True))
        self.ties += sum(key not in fresh for key in keys)
        verdicts = [results.get(key, Verdict(0.5, "both responses are the same", 0.0)) for key in keys]
        return [v.swapped() if swap else v for v, swap in zip(verdicts, swapped, strict=True)]

    def asked(self, pairs: Sequence[Group]) -> list[Group]:
        """Returns the pairs that the judge is asked about, each in the orders in which it is."""
        fresh = list(self._distinct(pairs)[2].values())
        return fresh if self.how == "none" else [*fresh, *map(_swapped, fresh)]

    def _distinct(self, pairs: Sequence[Group]) -> tuple[list[tuple], list[bool], dict[tuple, Group]]:
        """Returns each pair's key and if it is swapped, and the distinct pairs of two responses by their keys."""
        for pair in pairs:
            _check_pair(pair)
        texts = [tuple(response_text(r) for r in pair.responses) for pair in pairs]
        keys = [_key(pair.prompt, *both) for pair, both in zip(pairs, texts, strict=True)]
        swapped = [self.how != "none" and a > b for a, b in texts]
        if self.how != "none":
            keys = [(*k[:-2], *reversed(k[-2:])) if swap else k for k, swap in zip(keys, swapped, strict=True)]
        fresh = {
            key: _swapped(pair) if swap else pair
            for key, pair, swap, (a, b) in zip(keys, pairs, swapped, texts, strict=True)
            if a != b
        }
        return keys, swapped, fresh

    def _both_orders(self, pairs: list[Group]) -> list[Verdict]:
        if self.how == "none":
            return self._checked(pairs)
        both = self._checked([*pairs, *map(_swapped, pairs)]) if pairs else []
        return [self._merged(one, two) for one, two in zip(both[: len(pairs)], both[len(pairs) :], strict=True)]

    def _checked(self, pairs: list[Group]) -> list[Verdict]:
        """Queries the judge and checks that there is one verdict per pair, each p a probability."""
        verdicts = list(self.judge(pairs)) if pairs else []
        bad = [v.p for v in verdicts if v.p is not None and not 0 <= v.p <= 1]
        if bad or len(verdicts) != len(pairs):
            raise JudgeError(
                "the judge gave no verdicts",
                where=type(self.judge).__name__,
                got=f"p = {bad[0]}" if bad else f"{len(verdicts)} verdicts",
                expected=f"{len(pairs)} verdicts, each with p between 0 and 1 or None",
            )
        return verdicts

    def _merged(self, one: Verdict, two: Verdict) -> Verdict:
        """Merges the verdicts on both orders into one on the first; `two` is the one with the responses swapped."""
        text = "\n\n".join(filter(None, (one.text, two.text)))
        orders = one.p, None if two.p is None else 1 - two.p
        if one.p is None or two.p is None:
            which = [f"{name} order: {v.reason or 'no verdict'}" for name, v in (("first", one), ("second", two))]
            missing = [reason for reason, v in zip(which, (one, two), strict=True) if v.p is None]
            cause = one.cause if one.p is None else two.cause
            return Verdict(None, "; ".join(missing), text=text, cause=cause, orders=orders)
        same = (one.p - 0.5) * (two.p - 0.5) > 0
        self.position_counts.pairs += 1
        self.position_counts.same += same
        self.position_counts.first += same and one.p > 0.5
        if self.how == "probabilities":
            return Verdict((one.p + (1 - two.p)) / 2, text=text, same_position=same, orders=orders)
        logits = logit_of(one), -logit_of(two)
        opposed = math.isinf(logits[0]) and logits[0] == -logits[1]
        logit = 0.0 if opposed else sum(logits) / 2
        return Verdict(sigmoid(logit), logit=logit, text=text, same_position=same, orders=orders)


def logit_of(verdict: Verdict) -> float:
    """Returns the log-odds of a verdict that has a p."""
    p = verdict.p
    if verdict.logit is not None:
        return verdict.logit
    if p is None or p <= 0 or p >= 1:
        return math.inf if p else -math.inf
    return math.log(p) - math.log1p(-p)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def response_text(response: Response) -> str:
    """Returns the response as judges read it: its text; of several turns, all of them with their roles."""
    turns = turns_of(response)
    if len(turns) == 1:
        return turn_text(turns[0])
    return "\n\n".join(f"{turn.role.capitalize()}: {turn_text(turn)}" for turn in turns)


def _key(prompt: Prompt, a: str, b: str) -> tuple:
    return prompt.messages, prompt.text, repr(prompt.meta), a, b  # a simulated judge reads meta; an id says nothing


def _swapped(pair: Group) -> Group:
    """Returns the pair in the other order, without its scores and preference."""
    return Group(pair.prompt, pair.responses[::-1], origin=pair.origin)


def _check_pair(pair: Group) -> None:
    if len(pair.responses) != 2:
        raise DataError(
            "a judge compares two responses",
            where=pair.origin or pair.prompt.id,
            got=f"{len(pair.responses)} responses",
            expected="groups of two",
        )
