"""Judges that are language models in this process: verdicts from the log-probabilities of labels, or written points.

Labels are encoded by the judge's own chat as answers to the question, so that "1" is the very token that stands at the
head of an answer there, be it "1" or " 1".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from tiltyard.batch.batch import split_by_tokens
from tiltyard.batch.forest import pack
from tiltyard.errors import DataError
from tiltyard.feedback.prompts import (
    CHOICES,
    PAIR_ENDING,
    RATINGS,
    REASON_ENDING,
    Exemplar,
    asked,
    expected_rating,
    pair_question,
    points_question,
    read_points,
    score_question,
)
from tiltyard.feedback.simulated import stream
from tiltyard.feedback.verdicts import Grade, Usage, Verdict, sigmoid
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings, sample
from tiltyard.types import Group, Message, Prompt, Response

Style = Literal["chat", "text"]
TooLong = Literal["error", "skip"]


@dataclass
class _Local:
    """What the three judges share.

    Args:
        model: who judges.
        instruction: the head of the question; empty takes the one of `feedback.prompts`.
        style: `chat` asks in the model's chat template, `text` has a base model go on with the plain question.
        too_long: a question that the context cannot hold is an `error`, or (`skip`) has no verdict, with the reason.
            It is never cut: half an answer would be judged as a whole one.
        budget: packed tokens computed at a time.
    """

    model: LanguageModel
    instruction: str = ""
    style: Style = "chat"
    too_long: TooLong = "error"
    budget: int = 16384
    usage: Usage = field(default_factory=Usage)

    def _fitting(self, prompts: Sequence[Prompt], origins: Sequence[str], room: int) -> tuple[list[int], list[str]]:
        """Places of the prompts that leave `room` tokens, and for every prompt the reason why it does not fit."""
        limit = self.model.chat.max_length
        reasons = []
        for prompt, origin in zip(prompts, origins, strict=True):
            size = len(prompt.ids) + room
            reasons.append(
                "" if limit is None or size <= limit else f"{size} tokens, the judge's context holds {limit}"
            )
            if reasons[-1] and self.too_long == "error":
                raise DataError(
                    "the question with its answers is longer than the judge's context",
                    where=origin or prompt.id,
                    got=f"{size} tokens",
                    expected=f"at most {limit}",
                    fix="take shorter answers or a judge with a longer context, or set judge.too_long=skip",
                )
        return [i for i, reason in enumerate(reasons) if not reason], reasons

    def _label_logits(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> list[list[float]]:
        self.usage.calls += len(prompts)
        self.usage.tokens_in += sum(len(p.ids) for p in prompts)
        return label_logits(self.model, prompts, labels, self.budget)

    def _written(self, prompts: Sequence[Prompt], n: int, law: SampleSettings, seed: int) -> list[Group]:
        groups = sample(self.model, prompts, n, law, seed=seed) if prompts else []
        self.usage.calls += len(prompts) * n
        self.usage.tokens_in += sum(len(p.ids) for p in prompts)  # computed once for all n
        self.usage.tokens_out += sum(len(r.ids) for g in groups for r in g.responses)
        return groups


@dataclass
class ModelJudge(_Local):
    """P(first) = softmax over the log-probs of the labels "1" and "2" after the question (Lee et al. 2023).

    With `reasoning` > 0 the model first writes up to that many tokens about both answers (greedily), and decides in a
    second step that has read them.
    """

    exemplars: Sequence[Exemplar] = ()
    reasoning: int = 0

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        """A verdict a pair, in the order it stands in: wrap the judge in `Debiased`."""
        ending = REASON_ENDING if self.reasoning else PAIR_ENDING
        questions = [pair_question(self.instruction, self.exemplars, g.prompt, g.responses, ending) for g in pairs]
        prompts = self.model.chat.encode_prompts([asked(q, self.style) for q in questions])
        origins = [g.origin for g in pairs]
        said = [""] * len(pairs)
        if self.reasoning:
            fits, reasons = self._fitting(prompts, origins, self.reasoning)
            law = SampleSettings(temperature=0, max_tokens=self.reasoning)
            thoughts = self._written([prompts[i] for i in fits], 1, law, 0)
            for place, thought in zip(fits, thoughts, strict=True):
                said[place] = thought.responses[0].text
            earlier = [(Message("user", q), Message("assistant", s)) for q, s in zip(questions, said, strict=True)]
            later = [asked(PAIR_ENDING, self.style, turns) for turns in earlier]
            prompts = [p if why else new for p, new, why in zip(prompts, later, reasons, strict=True)]
            prompts = self.model.chat.encode_prompts(prompts)
        fits, reasons = self._fitting(prompts, origins, 2)
        verdicts = [Verdict(None, reason, said=words) for reason, words in zip(reasons, said, strict=True)]
        for place, (one, two) in zip(fits, self._label_logits([prompts[i] for i in fits], CHOICES), strict=True):
            verdicts[place] = Verdict(sigmoid(one - two), logit=one - two, said=said[place])
        return verdicts


@dataclass
class ModelScoreJudge(_Local):
    """Direct RLAIF: the expected rating from 1 to 10 over the ten labels' probabilities (renormalised), on [-1, 1]."""

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """One grade a response."""
        questions = [asked(score_question(self.instruction, g.prompt, r), self.style) for g, r in _each(groups)]
        prompts = self.model.chat.encode_prompts(questions)
        fits, reasons = self._fitting(prompts, [g.origin for g, _ in _each(groups)], 3)
        grades = [Grade(None, reason) for reason in reasons]
        for place, logits in zip(fits, self._label_logits([prompts[i] for i in fits], RATINGS), strict=True):
            grades[place] = Grade(expected_rating(logits))
        return _by_group(groups, grades)


@dataclass
class ModelPointsJudge(_Local):
    """The additive judge: the model writes its reasons and ends with "Score: n"; the mean of several such samples.

    A sample without a score that can be read does not count; with none left the grade is None. Draws depend on the
    seed and on the questions of the call.
    """

    samples: int = 3
    temperature: float = 1.0
    max_tokens: int = 256
    seed: int = 0

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """One grade a response."""
        questions = [points_question(self.instruction, g.prompt, r) for g, r in _each(groups)]
        prompts = self.model.chat.encode_prompts([asked(q, self.style) for q in questions])
        fits, reasons = self._fitting(prompts, [g.origin for g, _ in _each(groups)], self.max_tokens)
        law = SampleSettings(temperature=self.temperature, max_tokens=self.max_tokens)
        written = self._written([prompts[i] for i in fits], self.samples, law, stream(self.seed, questions))
        grades = [Grade(None, reason) for reason in reasons]
        for place, group in zip(fits, written, strict=True):
            grades[place] = mean_points([r.text for r in group.responses])
        return _by_group(groups, grades)


@torch.no_grad()
def label_logits(
    model: LanguageModel, prompts: Sequence[Prompt], labels: Sequence[str], budget: int = 16384
) -> list[list[float]]:
    """For each encoded prompt the log-probability that the answer begins with each label, up to a common constant.

    A label is followed to the first token that tells it from the others. Where one is the beginning of another ("1" of
    "10", with digits that are tokens of their own) it has what the longer one leaves.
    """
    answers = tuple(Response(text=label) for label in labels)
    groups = model.chat.encode_groups([Group(p, answers) for p in prompts])
    found: list[list[float]] = []
    training = model.module.training
    model.module.eval()
    try:
        for part in split_by_tokens(groups, budget):
            forest = pack(part, model.device)
            logp_R = model.logp_R(forest)[0].double().tolist()
            at = 0
            for group in part:
                ids = [r.ids for r in group.responses]
                rows = []
                for label in ids:
                    rows.append(logp_R[at : at + len(label)])
                    at += len(label)
                found.append(_masses(ids, rows))
    finally:
        model.module.train(training)
    return found


def _masses(labels: Sequence[tuple[int, ...]], logps: Sequence[Sequence[float]]) -> list[float]:
    """Log-mass of each label from the log-probs of its tokens; the end tokens that all share are left out."""
    end = 0
    while all(len(ids) > end + 1 and ids[-1 - end] == labels[0][-1 - end] for ids in labels):
        end += 1
    words = [ids[: len(ids) - end] for ids in labels]
    masses = []
    for own, logp in zip(words, logps, strict=True):
        others = [ids for ids in words if ids != own]
        size = next((n for n in range(1, len(own)) if not any(o[:n] == own[:n] for o in others)), len(own))
        mass = sum(logp[:size])
        # what goes on to longer labels is theirs
        longer = {o[size]: row[size] for o, row in zip(words, logps, strict=True) if o[:size] == own and len(o) > size}
        taken = min(sum(map(math.exp, longer.values())), 1 - 1e-12)
        masses.append(mass + math.log1p(-taken))
    return masses


def mean_points(texts: Sequence[str]) -> Grade:
    """The mean of the scores that can be read; None where there is none."""
    points = [p for p in map(read_points, texts) if p is not None]
    if not points:
        return Grade(None, f"no readable score in {len(texts)} samples", tuple(texts))
    return Grade(sum(points) / len(points), said=tuple(texts))


def _each(groups: Sequence[Group]) -> list[tuple[Group, Response]]:
    return [(group, response) for group in groups for response in group.responses]


def _by_group(groups: Sequence[Group], grades: Sequence[Grade]) -> list[tuple[Grade, ...]]:
    left = iter(grades)
    return [tuple(next(left) for _ in group.responses) for group in groups]
