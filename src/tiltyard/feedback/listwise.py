"""Judges that rank a whole list of responses, asked in two opposite orders.

A reply is a ranking only if it names every response once; one that names some of them, or one twice, is none. The two
orders are merged by their mean ranks; their disagreement is kept as the share of pairs that they put in opposite order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, Protocol

from tiltyard.errors import DataError
from tiltyard.feedback.budget import Forecast
from tiltyard.feedback.completions import Answer, is_cut, no_answer
from tiltyard.feedback.local import _ModelJudge
from tiltyard.feedback.prompts import question_prompt, rank_question
from tiltyard.feedback.remote import _problem, _Remote, _unread
from tiltyard.feedback.replies import answer_part
from tiltyard.feedback.verdicts import Cause, Usage
from tiltyard.sampling import SampleSettings
from tiltyard.types import Group, dense_ranks

MOST = 9  # responses in a list: their numbers are one digit
_LINE = re.compile(
    r"(?:(?:final )?ranking|answer|order)?[\s:=]*([\[(<]?\d[\])>]?(?:\s*[>,=]\s*[\[(<]?\d[\])>]?)+)\.?", re.I
)


@dataclass(frozen=True, slots=True)
class Ranking:
    """A judge's ranking of a list: one rank a response, 1 is best; None where there is none, with reason and cause.

    `disagreement`: share of the pairs that the two orders put in opposite order; None where one order was asked.
    `orders`: the ranks of each order. `text`: what the judge generated.
    """

    ranks: tuple[int, ...] | None
    reason: str = ""
    text: str = ""
    cause: Cause | Literal[""] = ""
    disagreement: float | None = None
    orders: tuple[tuple[int, ...], ...] = ()


class ListJudge(Protocol):
    """A judge that ranks: one ranking per group, of its responses in their order."""

    @property
    def usage(self) -> Usage: ...

    def rank(self, groups: Sequence[Group]) -> list[Ranking]: ...


def read_ranking(text: str, count: int) -> tuple[int, ...] | None:
    """Parses a ranking of `count` responses (`2 > 1 > 3`, `[2] > [1] > [3]`, `2, 1, 3`); returns the rank of each.

    It is the last line that is one. `=` ties neighbours. None where a response is missing or named twice.
    """
    part = answer_part(text)
    for line in reversed((part or "").splitlines()):
        match = _LINE.fullmatch(unicodedata.normalize("NFKC", line).strip(" \t*`_$."))
        if match is None:
            continue
        places = [int(digit) for digit in re.findall(r"\d", match[1])]
        if sorted(places) != list(range(1, count + 1)):
            return None
        ties = re.findall(r"[>,=]", re.sub(r"[\[(<](\d)[\])>]", r"\1", match[1]))
        rank, ranks = 1, {places[0]: 1}
        for place, sign in zip(places[1:], ties, strict=True):
            rank += sign != "="
            ranks[place] = rank
        return tuple(ranks[k] for k in range(1, count + 1))
    return None


def ranking_of(answer: Answer, count: int) -> Ranking:
    """Returns the ranking in an answer to a list's question."""
    text, missing = str(answer["text"]), no_answer(answer)
    ranks = None if missing or is_cut(answer) else read_ranking(text, count)
    if ranks is not None:
        return Ranking(ranks, text=text)
    cause, reason = missing or _unread(answer, f"no ranking of all {count} responses")
    return Ranking(None, reason, text, cause)


@dataclass
class ApiListJudge(_Remote):
    """Rankings that a server's model generates, greedily."""

    def rank(self, groups: Sequence[Group]) -> list[Ranking]:
        """Returns one ranking per group, in the order of its responses: wrap the judge in `BothLists`."""
        rankings: list[Ranking] = [Ranking(None)] * len(groups)
        for count in sorted({len(g.responses) for g in groups}):  # the parser depends on the number of responses
            read = _reader(count)
            of_count = [i for i, g in enumerate(groups) if len(g.responses) == count]
            payloads = self._payloads([groups[i] for i in of_count])
            answers = self.client.complete(payloads, [self.sample] * len(payloads), _problem(read))
            for i, answer in zip(of_count, answers, strict=True):
                rankings[i] = read(answer)
        return rankings

    def forecast(self, groups: Sequence[Group]) -> Forecast:
        """Estimates what `rank` costs."""
        payloads = self._payloads(groups)
        return self.client.forecast(payloads, [self.sample] * len(payloads))

    def _payloads(self, groups: Sequence[Group]) -> list[dict[str, object]]:
        questions = [rank_question(self.instruction, g.prompt, g.responses) for g in groups]
        return [self._payload(q, 0.0, logprobs=False) for q in questions]


def _reader(count: int) -> Callable[[Answer], Ranking]:
    return lambda answer: ranking_of(answer, count)


@dataclass
class ModelListJudge(_ModelJudge):
    """Rankings that a model of this process generates, greedily."""

    max_tokens: int = 64

    def rank(self, groups: Sequence[Group]) -> list[Ranking]:
        """Returns one ranking per group, in the order of its responses: wrap the judge in `BothLists`."""
        questions = [rank_question(self.instruction, g.prompt, g.responses) for g in groups]
        prompts = self.model.chat.encode_prompts([question_prompt(q, self.style) for q in questions])
        fits, reasons = self._fitting_indices(prompts, [g.origin for g in groups], self.max_tokens)
        sampling = SampleSettings(temperature=0, max_tokens=self.max_tokens)
        rankings = [Ranking(None, reason, cause="too long") for reason in reasons]
        written = self._generate([prompts[i] for i in fits], 1, sampling, 0)
        for index, one in zip(fits, written, strict=True):
            (response,) = one.responses
            answer: dict[str, Any] = {
                "text": response.text,
                "finish": "length" if response.finish == "length" else "stop",
                "top": [],
            }
            rankings[index] = ranking_of(answer, len(groups[index].responses))
        return rankings


@dataclass
class BothLists:
    """Queries a judge of lists in the order of the responses and in the opposite one, and merges the two rankings.

    Merged ranks are those of the mean rank, equal means tie. Without a ranking in either order there is none.
    `how`: "none" asks once, in the order of the responses.
    """

    judge: ListJudge
    how: str = "probabilities"

    @property
    def usage(self) -> Usage:
        return self.judge.usage

    def rank(self, groups: Sequence[Group]) -> list[Ranking]:
        """Returns one ranking per group.

        Raises:
            DataError: a group of fewer than two responses, or of more than nine.
        """
        for group in groups:
            if not 2 <= len(group.responses) <= MOST:
                raise DataError(
                    "a judge of lists ranks 2 to 9 responses",
                    where=group.origin or group.prompt.id,
                    got=f"{len(group.responses)} responses",
                    fix="take ask=pair with pairs=random, or cut the group",
                )
        if self.how == "none":
            return self.judge.rank(groups)
        both = self.judge.rank([*groups, *map(_reversed, groups)])
        return [_merged(one, two) for one, two in zip(both[: len(groups)], both[len(groups) :], strict=True)]

    def forecast(self, groups: Sequence[Group]) -> Forecast | None:
        """Estimates the cost of a judge behind a server; None of others."""
        if not isinstance(self.judge, ApiListJudge):
            return None
        asked = [*groups, *map(_reversed, groups)] if self.how != "none" else list(groups)
        return self.judge.forecast(asked)


def _reversed(group: Group) -> Group:
    return replace(group, responses=group.responses[::-1], scores=None, preference=None)


def _merged(one: Ranking, two: Ranking) -> Ranking:
    """Merges the rankings of both orders; `two` is the one of the reversed list."""
    text = "\n\n".join(filter(None, (one.text, two.text)))
    if one.ranks is None or two.ranks is None:
        missing = [f"{name} order: {r.reason}" for name, r in (("first", one), ("second", two)) if r.ranks is None]
        return Ranking(None, "; ".join(missing), text, one.cause or two.cause)
    back = two.ranks[::-1]
    pairs = list(combinations(range(len(back)), 2))
    opposed = sum((one.ranks[i] - one.ranks[j]) * (back[i] - back[j]) < 0 for i, j in pairs)
    ranks = dense_ranks([-(a + b) for a, b in zip(one.ranks, back, strict=True)])
    return Ranking(ranks, text=text, disagreement=opposed / len(pairs), orders=(one.ranks, back))
