"""Judges behind an API: verdicts from the log-probs of the generated label, or parsed from the generated text."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tiltyard.feedback.budget import Forecast
from tiltyard.feedback.client import Client, Problem
from tiltyard.feedback.completions import Answer, is_cut, no_answer
from tiltyard.feedback.constrain import (
    FIELDS,
    JSON_TOKENS,
    PROBE,
    WAYS,
    Constrain,
    Way,
    choice_fields,
    probe_payload,
    written_choice,
)
from tiltyard.feedback.local import Sample, _by_group, _each, mean_points
from tiltyard.feedback.prompts import (
    CHOICES,
    RATINGS,
    Exemplar,
    pair_question,
    points_question,
    score_question,
    to_unit,
)
from tiltyard.feedback.replies import answer_part, read_choice, read_points, read_rating
from tiltyard.feedback.verdicts import Cause, Grade, JudgeError, Usage, Verdict, sigmoid
from tiltyard.types import Group


class Read(Protocol):
    """A result that was read from an answer: the cause and the reason where it is no verdict."""

    @property
    def cause(self) -> Cause | Literal[""]: ...

    @property
    def reason(self) -> str: ...


_ALONE = re.compile(r"\W*[12]\W*")  # the label and nothing else
_SPLIT = 0.01  # share of the labels' mass that "1" may have where "10" is not listed


@dataclass
class _Remote:
    """The parts that the three judges share.

    Args:
        client: sends the requests and stores the answers.
        instruction: the beginning of the question; empty: the one of `feedback.prompts`.
        logprobs: request log-probs; where the server returns none, the text is parsed.
        max_tokens: limit of the generated tokens.
        extra: fields of the request that are added or replaced; null leaves one out.
        constrain: lets the server write nothing but a label, see `feedback.constrain`.
        sample: number of this repetition: the same questions under another number are asked again.
    """

    client: Client
    instruction: str = ""
    logprobs: bool = True
    max_tokens: int = 8
    extra: Mapping[str, Any] = field(default_factory=dict)
    constrain: Constrain = "none"
    sample: int = field(default=0, kw_only=True)
    _way: Way | None = field(default=None, init=False)

    @property
    def usage(self) -> Usage:
        return self.client.usage

    @property
    def way(self) -> Way:
        """The way in which this server writes nothing but a label, tried once; empty if it has none.

        Raises:
            JudgeError: `constrain: choice`, and the server knows neither of its ways.
        """
        if self._way is None:
            self._way = self._found_way()
        return self._way

    def _found_way(self) -> Way:
        if any(key in self.extra for key in FIELDS):
            return ""  # the user's own constraint
        if self.constrain == "json_schema":
            return "json_schema"
        for way in WAYS[self.constrain]:
            if way == "json_schema" and self.max_tokens < JSON_TOKENS:
                continue
            payload = probe_payload(self.client.endpoint.model, way, self.max_tokens, self.extra)
            kept = self.client.keeps_to(payload, lambda text: written_choice(text).strip() in PROBE)
            if kept:
                return way
            if kept is None:
                break  # no reply: the questions themselves name the error
        else:
            if self.constrain == "choice":
                raise JudgeError(
                    "the judge's server has no structured choice",
                    where="judge.constrain",
                    got="neither structured_outputs nor guided_choice kept the reply to the choices",
                    expected="a server like vLLM's",
                    fix="set judge.constrain=auto, json_schema or none",
                )
        return ""

    @property
    def _stored_way(self) -> Way:
        """The way that was found before; without asking the server anything, empty if it is not known."""
        if self._way is not None or any(key in self.extra for key in FIELDS):
            return self._way or ""
        if self.constrain == "json_schema":
            return "json_schema"
        tried = (
            (way, probe_payload(self.client.endpoint.model, way, self.max_tokens, self.extra))
            for way in WAYS[self.constrain]
        )
        return next((way for way, payload in tried if self.client.is_kept(payload)), "")

    @property
    def constraint_line(self) -> str:
        """A line about it, once a question was asked; empty before that and where none was wanted."""
        if self._way is None or self.constrain == "none":
            return ""
        return f"labels alone, by {self._way}" if self._way else "the server has no structured choice: replies are read"

    @property
    def snapshot(self) -> str:
        """The version that answered the last questions, as the server names it; several are joined."""
        return "+".join(sorted(self.client.served))

    def _payload(
        self, question: str, temperature: float, logprobs: bool, choices: Sequence[str] = (), way: Way | None = None
    ) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.client.endpoint.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.max_tokens,
            "temperature": temperature,
        }
        payload |= {"logprobs": True, "top_logprobs": 20} if logprobs else {}
        if choices and self.constrain != "none":
            payload |= choice_fields(self.way if way is None else way, choices)
        return {key: value for key, value in (payload | dict(self.extra)).items() if value is not None}

    def _counted(self, soft: Sequence[bool]) -> None:
        """Counts the verdicts from log-probs and from words, where log-probs were requested."""
        if self.logprobs:
            self.usage.soft += sum(soft)
            self.usage.hard += len(soft) - sum(soft)


@dataclass
class ApiJudge(_Remote):
    """P(first) over the labels "1" and "2" where the first generated token is one; otherwise 1 or 0 from the text."""

    exemplars: Sequence[Exemplar] = ()

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        """Returns one verdict per pair, in the order of its responses: wrap the judge in `Debiased`."""
        payloads = self._payloads(pairs)
        answers = self.client.complete(payloads, [self.sample] * len(payloads), _problem(verdict_of))
        verdicts = [verdict_of(answer) for answer in answers]
        self._counted([v.logit is not None for v in verdicts if v.p is not None])
        return verdicts

    def forecast(self, pairs: Sequence[Group]) -> Forecast:
        """Estimates what these questions cost, without asking anything."""
        payloads = self._payloads(pairs, self._stored_way)
        return self.client.forecast(payloads, [self.sample] * len(payloads))

    def _payloads(self, pairs: Sequence[Group], way: Way | None = None) -> list[dict[str, Any]]:
        questions = [pair_question(self.instruction, self.exemplars, g.prompt, g.responses) for g in pairs]
        return [self._payload(q, 0.0, self.logprobs, CHOICES, way) for q in questions]


@dataclass
class ApiScoreJudge(_Remote):
    """Direct RLAIF: the expected rating from 1 to 10 on [-1, 1], or the generated one without log-probs."""

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns one grade per response."""
        payloads = self._payloads(groups)
        answers = self.client.complete(payloads, [self.sample] * len(payloads), _problem(grade_of))
        grades = [grade_of(answer) for answer in answers]
        self._counted([g.soft for g in grades if g.score is not None])
        return _by_group(groups, grades)

    def forecast(self, groups: Sequence[Group]) -> Forecast:
        """Estimates what these questions cost, without asking anything."""
        payloads = self._payloads(groups, self._stored_way)
        return self.client.forecast(payloads, [self.sample] * len(payloads))

    def _payloads(self, groups: Sequence[Group], way: Way | None = None) -> list[dict[str, Any]]:
        questions = [score_question(self.instruction, g.prompt, r) for g, r in _each(groups)]
        return [self._payload(q, 0.0, self.logprobs, RATINGS, way) for q in questions]


@dataclass
class ApiPointsJudge(_Remote):
    """The additive judge: the mean of `samples` generated judgements, of those whose last "Score: n" can be parsed."""

    samples: int = 3
    temperature: float = 1.0

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns one grade per response."""
        answers = self.client.complete(*self._payloads(groups), _problem(points_of))
        samples = [points_of(answer) for answer in answers]
        starts = range(0, len(samples), self.samples)
        return _by_group(groups, [mean_points(samples[at : at + self.samples]) for at in starts])

    def forecast(self, groups: Sequence[Group]) -> Forecast:
        """Estimates what these questions cost, without asking anything."""
        return self.client.forecast(*self._payloads(groups))

    def _payloads(self, groups: Sequence[Group]) -> tuple[list[dict[str, Any]], list[int]]:
        """The requests and the number of the sample of each."""
        questions = [points_question(self.instruction, g.prompt, r) for g, r in _each(groups)]
        payloads = [self._payload(q, self.temperature, logprobs=False) for q in questions for _ in range(self.samples)]
        numbers = [self.sample * self.samples + k for k in range(self.samples)] * len(questions)
        return payloads, numbers


def verdict_of(answer: Answer) -> Verdict:
    """Returns the verdict in an answer to a pair's question.

    The text must make a choice. Its probability is that of the label's token where the server lists alternatives to it
    (a label that is not among them has no mass, so p can be exactly 0 or 1), else 1. A cut answer has a verdict only if
    it is the label alone, with alternatives: what would have followed is unknown.
    """
    text = written_choice(str(answer["text"]))
    missing = no_answer(answer)
    choice = None if missing else read_choice(text)
    if choice is not None and not (is_cut(answer) and not _ALONE.fullmatch(text)):
        row = _label_row(answer, str(choice), CHOICES)
        one, two = (_mass(row, label) for label in CHOICES)
        if max(one, two) > -math.inf:
            return Verdict(sigmoid(one - two), logit=one - two, text=text)
    if missing is None and choice is not None and not is_cut(answer):
        return Verdict(float(choice == 1), text=text)
    cause, reason = missing or _unread(answer, "neither 1 nor 2 is chosen")
    return Verdict(None, reason, text=text, cause=cause)


def grade_of(answer: Answer) -> Grade:
    """Returns the grade in an answer to a rating's question, which must be a rating; see `verdict_of`.

    Where a server's tokens are single digits, the mass of "1" includes that of "10": then the written rating counts.
    """
    text = written_choice(str(answer["text"]))
    missing = no_answer(answer)
    rating = None if missing else read_rating(text)
    if rating is not None:
        row = _label_row(answer, str(rating), RATINGS)
        masses = [_mass(row, label) for label in RATINGS]
        weights = [math.exp(mass) for mass in masses]
        if sum(weights) > 0 and (masses[-1] > -math.inf or weights[0] < _SPLIT * sum(weights)):
            score = to_unit(sum(i * w for i, w in enumerate(weights, 1)) / sum(weights))
            return Grade(score, texts=(text,), soft=True)
        if not is_cut(answer):
            return Grade(to_unit(rating), texts=(text,), soft=False)
    cause, reason = missing or _unread(answer, "no rating from 1 to 10")
    return Grade(None, reason, (text,), cause=cause)


def points_of(answer: Answer) -> Sample:
    """Returns the points in an answer to a question of points; None with the reason if it has none."""
    text = str(answer["text"])
    missing = no_answer(answer)
    points = None if missing or is_cut(answer) else read_points(text)
    if points is not None:
        return Sample(text, points)
    cause, reason = missing or _unread(answer, "no score from 0 to 5 after the last 'Score:'")
    return Sample(text, None, cause, reason)


def _unread(answer: Answer, what: str) -> tuple[Cause, str]:
    text = str(answer["text"])
    if is_cut(answer):
        return "cut", f"the reply was cut (finish_reason {answer['finish']!r}): ...{text[-80:]!r}; see judge.max_tokens"
    if answer_part(text) is None:
        return "unreadable", f"the reasoning has no end: ...{text[-80:]!r}"
    return "unreadable", f"{what} in {text[:80]!r}"


def _problem(read: Callable[[Answer], Read]) -> Problem:
    """Returns the function by which the client recognises answers without a verdict."""

    def problem(answer: Answer) -> tuple[Cause, str] | None:
        result = read(answer)
        return (result.cause, result.reason) if result.cause else None

    return problem


def _label_row(answer: Answer, written: str, labels: Sequence[str]) -> Sequence[Sequence[Any]]:
    """Returns the token that is the written label, with its alternatives; empty if there is none.

    It is the first token that is a label, if only blanks and punctuation precede it ("1\n\nResponse 1 is ..."); after
    words it must be the only one.
    """
    rows = [row for row in answer["top"] if row]
    tokens = [_label(row[0][0]) for row in rows]
    indices = [index for index, token in enumerate(tokens) if token in labels]
    words = next((i for i, token in enumerate(tokens) if any(map(str.isalnum, token))), len(tokens))
    if not indices or (indices[0] != words and len(indices) > 1):
        return ()
    row = rows[indices[0]]
    return row if tokens[indices[0]] == written and len(row) > 1 else ()


def _label(token: Any) -> str:
    return unicodedata.normalize("NFKC", str(token)).strip()


def _mass(tokens: Sequence[Sequence[Any]], label: str) -> float:
    """Returns the log of the summed probability of the label with and without blanks around it."""
    total = sum(math.exp(min(float(logp), 0.0)) for token, logp in tokens if _label(token) == label)
    return math.log(total) if total > 0 else -math.inf
