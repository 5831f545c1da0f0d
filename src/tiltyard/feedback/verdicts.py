"""What a judge is, and the wrapper that takes the order of the answers out of its verdicts.

A `Judge` compares: pairs in, for each the probability that the first answer is the better one. A `ScoreJudge` reads one
answer at a time and gives numbers. A verdict that could not be had is `None` with its reason, never a made-up number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol

from tiltyard.data.formats import TURNS
from tiltyard.errors import DataError, TiltyardError
from tiltyard.types import Group, Prompt, Response

Debias = Literal["probabilities", "logits", "none"]


class JudgeError(TiltyardError, RuntimeError):
    """A judge that does not answer, refuses, or answers with something that is no verdict."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge made of one pair.

    `p`: probability that the first answer is the better one; None where there is none, and `reason` says why.
    `logit`: of p, where the judge knows it more exactly than p can say. `said`: the judge's words, if it wrote any
    (untrusted text). `same_place`: both orders were asked, and the same place (not the same answer) was preferred.
    """

    p: float | None
    reason: str = ""
    logit: float | None = None
    said: str = ""
    same_place: bool | None = None

    def swapped(self) -> Verdict:
        """The verdict on the same pair with its answers in the other order."""
        p = None if self.p is None else 1 - self.p
        logit = None if self.logit is None else -self.logit
        return Verdict(p, self.reason, logit, self.said, self.same_place)


@dataclass(frozen=True, slots=True)
class Grade:
    """One answer's number; None where there is none, and `reason` says why. `said`: the judge's words."""

    score: float | None
    reason: str = ""
    said: tuple[str, ...] = ()


@dataclass
class Usage:
    """What asking has cost so far: questions put to the judge, tokens read and written, money, answers that lay in the
    cache (they are no `calls`), and requests that had to be sent again."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    cached: int = 0
    retries: int = 0

    def taken(self) -> Usage:
        """What was used since this was called last; the count begins anew.

        No difference of two sums: that would depend on what came before, in the last bits of the cost.
        """
        used = replace(self)
        for f in fields(self):
            setattr(self, f.name, f.default)
        return used

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


class Judge(Protocol):
    """Compares: for each group of two responses a verdict, in their order."""

    @property
    def usage(self) -> Usage: ...

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]: ...


class ScoreJudge(Protocol):
    """Grades: for each group one grade a response. `score` higher is better; the scale is the judge's own."""

    @property
    def usage(self) -> Usage: ...

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]: ...


@dataclass
class Places:
    """What the order of the answers did, over pairs that were answered in both orders.

    `same`: pairs where the judge preferred the same place twice, whatever stood there; `first` of them, the first one.
    """

    asked: int = 0
    same: int = 0
    first: int = 0

    @property
    def same_rate(self) -> float:
        """Share of the pairs; about 0 for a judge that reads, 1 for one that only looks at the place."""
        return self.same / self.asked if self.asked else 0.0


@dataclass
class Debiased:
    """Asks any judge in both orders, un-swaps and averages (Lee et al. 2023, section 2.1).

    With `probabilities` p = (p12 + 1 - p21) / 2: right on average, drawn towards 1/2. With `logits` the log-odds are
    averaged, which cancels a bias that adds to them exactly; answers that are certain (0 or 1) count as the limit of
    ever surer ones, so two that contradict each other give 1/2. `none` asks once, in the order of the responses.

    Each pair is put in an order of its own before it is asked, and the same pair is asked once a call however often
    and however turned it stands there: so p(a, b) + p(b, a) = 1 even for a judge that would not repeat itself. Two
    answers with the same words are a tie and nobody is asked.
    """

    judge: Judge
    how: Debias = "probabilities"
    places: Places = field(default_factory=Places)
    ties: int = 0

    @property
    def usage(self) -> Usage:
        return self.judge.usage

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        """A verdict a pair; see the class."""
        for pair in pairs:
            _check_pair(pair)
        said = [tuple(shown(r) for r in pair.responses) for pair in pairs]
        keys = [_key(pair.prompt, *texts) for pair, texts in zip(pairs, said, strict=True)]
        turned = [self.how != "none" and a > b for a, b in said]
        if self.how != "none":
            keys = [(*k[:-2], *reversed(k[-2:])) if turn else k for k, turn in zip(keys, turned, strict=True)]
        fresh = {
            key: _turned(pair) if turn else pair
            for key, pair, turn, (a, b) in zip(keys, pairs, turned, said, strict=True)
            if a != b
        }
        found = dict(zip(fresh, self._asked(list(fresh.values())), strict=True))
        self.ties += len(pairs) - sum(a != b for a, b in said)
        verdicts = [found.get(key, Verdict(0.5, "both answers are the same", 0.0)) for key in keys]
        return [v.swapped() if turn else v for v, turn in zip(verdicts, turned, strict=True)]

    def _asked(self, pairs: list[Group]) -> list[Verdict]:
        if self.how == "none":
            return self._checked(pairs)
        both = self._checked([*pairs, *map(_turned, pairs)]) if pairs else []
        return [self._merged(one, two) for one, two in zip(both[: len(pairs)], both[len(pairs) :], strict=True)]

    def _checked(self, pairs: list[Group]) -> list[Verdict]:
        """What the judge says, one verdict a pair, each p a probability."""
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
        """The verdict on the first order from those on both; `two` was asked with the answers turned."""
        said = "\n\n".join(filter(None, (one.said, two.said)))
        if one.p is None or two.p is None:
            which = [f"{name} order: {v.reason or 'no verdict'}" for name, v in (("first", one), ("second", two))]
            lost = [text for text, v in zip(which, (one, two), strict=True) if v.p is None]
            return Verdict(None, "; ".join(lost), said=said)
        same = (one.p - 0.5) * (two.p - 0.5) > 0
        self.places.asked += 1
        self.places.same += same
        self.places.first += same and one.p > 0.5
        if self.how == "probabilities":
            return Verdict((one.p + (1 - two.p)) / 2, said=said, same_place=same)
        logits = logit_of(one), -logit_of(two)
        opposed = math.isinf(logits[0]) and logits[0] == -logits[1]
        logit = 0.0 if opposed else sum(logits) / 2
        return Verdict(sigmoid(logit), logit=logit, said=said, same_place=same)


def logit_of(verdict: Verdict) -> float:
    """Log-odds of a verdict that has a p."""
    p = verdict.p
    if verdict.logit is not None:
        return verdict.logit
    if p is None or p <= 0 or p >= 1:
        return math.inf if p else -math.inf
    return math.log(p) - math.log1p(-p)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def shown(response: Response) -> str:
    """The answer as a judge reads it: its words; of an answer of several turns, all of them with their speakers."""
    turns = response.meta.get(TURNS)
    if not turns:
        return response.text
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def _key(prompt: Prompt, a: str, b: str) -> tuple:
    return prompt.messages, prompt.text, prompt.id, a, b


def _turned(pair: Group) -> Group:
    """The pair in the other order; what was known about the first order is left behind."""
    return Group(pair.prompt, pair.responses[::-1], origin=pair.origin)


def _check_pair(pair: Group) -> None:
    if len(pair.responses) != 2:
        raise DataError(
            "a judge compares two answers",
            where=pair.origin or pair.prompt.id,
            got=f"{len(pair.responses)} responses",
            expected="groups of two",
        )
