"""Judges behind an API: verdicts from the log-probs of the generated label, or parsed from the generated text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiltyard.feedback.client import Client
from tiltyard.feedback.local import _by_group, _each, mean_points
from tiltyard.feedback.prompts import (
    CHOICES,
    RATINGS,
    Exemplar,
    pair_question,
    points_question,
    read_choice,
    read_rating,
    score_question,
    to_unit,
)
from tiltyard.feedback.verdicts import Grade, Usage, Verdict, sigmoid
from tiltyard.types import Group

Answer = Mapping[str, Any]


@dataclass
class _Remote:
    """The parts that the three judges share.

    Args:
        client: sends the requests and stores the answers.
        instruction: the beginning of the question; empty: the one of `feedback.prompts`.
        logprobs: request log-probs; where the server returns none, the text is parsed.
        max_tokens: limit of the generated tokens.
        extra: fields of the request that are added or replaced; null leaves one out.
    """

    client: Client
    instruction: str = ""
    logprobs: bool = True
    max_tokens: int = 8
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def usage(self) -> Usage:
        return self.client.usage

    def _payload(self, question: str, temperature: float, logprobs: bool) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.client.endpoint.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.max_tokens,
            "temperature": temperature,
        }
        payload |= {"logprobs": True, "top_logprobs": 20} if logprobs else {}
        return {key: value for key, value in (payload | dict(self.extra)).items() if value is not None}


@dataclass
class ApiJudge(_Remote):
    """P(first) over the labels "1" and "2" where the first generated token is one; otherwise 1 or 0 from the text."""

    exemplars: Sequence[Exemplar] = ()

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        """Returns one verdict per pair, in the order of its responses: wrap the judge in `Debiased`."""
        questions = [pair_question(self.instruction, self.exemplars, g.prompt, g.responses) for g in pairs]
        answers = self.client.complete([self._payload(q, 0.0, self.logprobs) for q in questions])
        return [verdict_of(answer) for answer in answers]


@dataclass
class ApiScoreJudge(_Remote):
    """Direct RLAIF: the expected rating from 1 to 10 on [-1, 1], or the generated one without log-probs."""

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns one grade per response."""
        questions = [score_question(self.instruction, g.prompt, r) for g, r in _each(groups)]
        answers = self.client.complete([self._payload(q, 0.0, self.logprobs) for q in questions])
        return _by_group(groups, [grade_of(answer) for answer in answers])


@dataclass
class ApiPointsJudge(_Remote):
    """The additive judge: the mean of `samples` generated judgements, of those whose last "Score: n" can be parsed."""

    samples: int = 3
    temperature: float = 1.0

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns one grade per response."""
        questions = [points_question(self.instruction, g.prompt, r) for g, r in _each(groups)]
        payloads = [self._payload(q, self.temperature, logprobs=False) for q in questions for _ in range(self.samples)]
        numbers = list(range(self.samples)) * len(questions)
        texts = [str(answer["text"]) for answer in self.client.complete(payloads, numbers)]
        starts = range(0, len(texts), self.samples)
        return _by_group(groups, [mean_points(texts[at : at + self.samples]) for at in starts])


def verdict_of(answer: Answer) -> Verdict:
    """Returns the verdict in an answer to a pair's question.

    A label that is not among the alternatives that the server lists has no mass, so p can be exactly 0 or 1.
    """
    text = str(answer["text"])
    index = _label_index(answer, CHOICES)
    if index is not None:
        one, two = (_mass(answer["top"][index], label) for label in CHOICES)
        if max(one, two) > -math.inf:
            return Verdict(sigmoid(one - two), logit=one - two, text=text)
    choice = read_choice(text)
    if choice is None:
        return Verdict(None, f"neither 1 nor 2 in {text[:80]!r}", text=text)
    return Verdict(float(choice == 1), text=text)


def grade_of(answer: Answer) -> Grade:
    """Returns the grade in an answer to a rating's question."""
    text = str(answer["text"])
    index = _label_index(answer, RATINGS)
    tokens = answer["top"]
    # where 10 is two tokens, "1" may be its first: then the listed mass of "1" is not that of the rating
    split = index is not None and index + 1 < len(tokens) and str(tokens[index + 1][0][0]).strip().isdigit()
    if index is not None and not split:
        masses = [_mass(tokens[index], label) for label in RATINGS]
        weights = [math.exp(mass) for mass in masses]
        if sum(weights) > 0:
            return Grade(to_unit(sum(i * w for i, w in enumerate(weights, 1)) / sum(weights)), texts=(text,))
    rating = read_rating(text)
    if rating is None:
        return Grade(None, f"no rating from 1 to 10 in {text[:80]!r}", (text,))
    return Grade(to_unit(rating), texts=(text,))


def _label_index(answer: Answer, labels: Sequence[str]) -> int | None:
    """Returns the index of the first generated token that is a label; only blanks and punctuation may precede it."""
    for index, tokens in enumerate(answer["top"]):
        generated = str(tokens[0][0]).strip() if tokens else ""
        if generated in labels:
            return index
        if any(letter.isalnum() for letter in generated):
            return None  # the answer begins with words: the label comes later
    return None


def _mass(tokens: Sequence[Sequence[Any]], label: str) -> float:
    """Returns the log of the summed probability of the label with and without blanks around it."""
    total = sum(math.exp(min(float(logp), 0.0)) for token, logp in tokens if str(token).strip() == label)
    return math.log(total) if total > 0 else -math.inf
