"""Judges that are language models in this process: verdicts from the log-probabilities of labels, or generated points.

Labels are encoded by the judge's own chat template as responses to the question, so that "1" is the token that begins a
response there, be it "1" or " 1".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
    expected_rating,
    pair_question,
    points_question,
    question_prompt,
    score_question,
)
from tiltyard.feedback.replies import read_points
from tiltyard.feedback.simulated import seed_from
from tiltyard.feedback.verdicts import Cause, Grade, Usage, Verdict, sigmoid
from tiltyard.models.adapters import weights_hash
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings, sample
from tiltyard.types import Group, Message, Prompt, Response

Style = Literal["chat", "text"]
TooLong = Literal["error", "skip"]


@dataclass
class _ModelJudge:
    """The parts that the three judges share.

    Args:
        model: the judge.
        instruction: the beginning of the question; empty: the one of `feedback.prompts`.
        style: `chat` uses the model's chat template, `text` has a base model continue the plain question.
        too_long: a question longer than the context is an `error`, or (`skip`) has no verdict, with the reason.
            It is never truncated: the judge would take a part of a response for all of it.
        budget: packed tokens computed at a time.
    """

    model: LanguageModel
    instruction: str = ""
    style: Style = "chat"
    too_long: TooLong = "error"
    budget: int = 16384
    usage: Usage = field(default_factory=Usage)

    @cached_property
    def snapshot(self) -> str:
        """Digest of the model's weights, its adapters among them."""
        return weights_hash(dict(self.model.module.named_parameters()))[:12]

    def _fitting_indices(
        self, prompts: Sequence[Prompt], origins: Sequence[str], reserve: int
    ) -> tuple[list[int], list[str]]:
        """Returns the indices of the prompts that leave `reserve` tokens, and the reason for each that does not fit."""
        limit = self.model.chat.max_length
        reasons = []
        for prompt, origin in zip(prompts, origins, strict=True):
            size = len(prompt.ids) + reserve
            reasons.append(
                "" if limit is None or size <= limit else f"{size} tokens, the judge's context holds {limit}"
            )
            if reasons[-1] and self.too_long == "error":
                raise DataError(
                    "the question with its responses is longer than the judge's context",
                    where=origin or prompt.id,
                    got=f"{size} tokens",
                    expected=f"at most {limit}",
                    fix="take shorter responses or a judge with a longer context, or set judge.too_long=skip",
                )
        return [i for i, reason in enumerate(reasons) if not reason], reasons

    def _label_logits(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> list[list[float]]:
        self.usage.calls += len(prompts)
        self.usage.tokens_in += sum(len(p.ids) for p in prompts)
        return label_logits(self.model, prompts, labels, self.budget)

    def _generate(self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seed: int) -> list[Group]:
        groups = sample(self.model, prompts, n, sampling, seed=seed) if prompts else []
        self.usage.calls += len(prompts) * n
        self.usage.tokens_in += sum(len(p.ids) for p in prompts)  # computed once for all n
        self.usage.tokens_out += sum(len(r.ids) for g in groups for r in g.responses)
        return groups


@dataclass
class ModelJudge(_ModelJudge):
    """P(first) = softmax over the log-probs of the labels "1" and "2" after the question (Lee et al. 2023).

    With `reasoning` > 0 the model first generates up to that many tokens about both responses (greedily), and decides
    in a second step after them.
    """

    exemplars: Sequence[Exemplar] = ()
    reasoning: int = 0

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        """Returns one verdict per pair, in the order of its responses: wrap the judge in `Debiased`."""
        ending = REASON_ENDING if self.reasoning else PAIR_ENDING
        questions = [pair_question(self.instruction, self.exemplars, g.prompt, g.responses, ending) for g in pairs]
        prompts = self.model.chat.encode_prompts([question_prompt(q, self.style) for q in questions])
        origins = [g.origin for g in pairs]
        texts = [""] * len(pairs)
        if self.reasoning:
            fits, reasons = self._fitting_indices(prompts, origins, self.reasoning)
            sampling = SampleSettings(temperature=0, max_tokens=self.reasoning)
            reasons_of = self._generate([prompts[i] for i in fits], 1, sampling, 0)
            for index, group in zip(fits, reasons_of, strict=True):
                texts[index] = group.responses[0].text
            earlier = [(Message("user", q), Message("assistant", s)) for q, s in zip(questions, texts, strict=True)]
            later = [question_prompt(PAIR_ENDING, self.style, turns) for turns in earlier]
            prompts = [p if why else new for p, new, why in zip(prompts, later, reasons, strict=True)]
            prompts = self.model.chat.encode_prompts(prompts)
        fits, reasons = self._fitting_indices(prompts, origins, 2)
        verdicts = [Verdict(None, why, text=text, cause="too long") for why, text in zip(reasons, texts, strict=True)]
        for index, (one, two) in zip(fits, self._label_logits([prompts[i] for i in fits], CHOICES), strict=True):
            verdicts[index] = Verdict(sigmoid(one - two), logit=one - two, text=texts[index])
        return verdicts


@dataclass
class ModelScoreJudge(_ModelJudge):
    """Direct RLAIF: the expected rating from 1 to 10 over the ten labels' probabilities (renormalised), on [-1, 1]."""

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns one grade per response."""
        questions = [
            question_prompt(score_question(self.instruction, g.prompt, r), self.style) for g, r in _each(groups)
        ]
        prompts = self.model.chat.encode_prompts(questions)
        fits, reasons = self._fitting_indices(prompts, [g.origin for g, _ in _each(groups)], 3)
        grades = [Grade(None, reason, cause="too long") for reason in reasons]
        for index, logits in zip(fits, self._label_logits([prompts[i] for i in fits], RATINGS), strict=True):
            grades[index] = Grade(expected_rating(logits))
        return _by_group(groups, grades)


@dataclass
class ModelPointsJudge(_ModelJudge):
    """The additive judge: the model generates reasons that end in "Score: n"; the grade is the mean of several samples.

    A sample without a score that can be parsed is left out; with none left the grade is None. The samples depend on the
    seed and on the questions of the call.
    """

    samples: int = 3
    temperature: float = 1.0
    max_tokens: int = 256
    seed: int = 0

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns one grade per response."""
        questions = [points_question(self.instruction, g.prompt, r) for g, r in _each(groups)]
        prompts = self.model.chat.encode_prompts([question_prompt(q, self.style) for q in questions])
        fits, reasons = self._fitting_indices(prompts, [g.origin for g, _ in _each(groups)], self.max_tokens)
        sampling = SampleSettings(temperature=self.temperature, max_tokens=self.max_tokens)
        generated = self._generate([prompts[i] for i in fits], self.samples, sampling, seed_from(self.seed, questions))
        grades = [Grade(None, reason, cause="too long") for reason in reasons]
        for index, group in zip(fits, generated, strict=True):
            grades[index] = mean_points([read_sample(r.text, cut=r.finish == "length") for r in group.responses])
        return _by_group(groups, grades)


@torch.no_grad()
def label_logits(
    model: LanguageModel, prompts: Sequence[Prompt], labels: Sequence[str], budget: int = 16384
) -> list[list[float]]:
    """Returns for each encoded prompt the log-probability that the response begins with each label, up to a constant.

    A label is scored up to the first token that distinguishes it from the others. Where one is a prefix of another ("1"
    of "10", with one token per digit) the longer one's probability is subtracted.
    """
    responses = tuple(Response(text=label) for label in labels)
    groups = model.chat.encode_groups([Group(p, responses) for p in prompts])
    masses: list[list[float]] = []
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
                masses.append(_masses(ids, rows))
    finally:
        model.module.train(training)
    return masses


def _masses(labels: Sequence[tuple[int, ...]], logps: Sequence[Sequence[float]]) -> list[float]:
    """Returns the log-mass of each label from the log-probs of its tokens; end tokens that all share are left out."""
    end = 0
    while all(len(ids) > end + 1 and ids[-1 - end] == labels[0][-1 - end] for ids in labels):
        end += 1
    stems = [ids[: len(ids) - end] for ids in labels]
    masses = []
    for stem, logp in zip(stems, logps, strict=True):
        others = [ids for ids in stems if ids != stem]
        size = next((n for n in range(1, len(stem)) if not any(o[:n] == stem[:n] for o in others)), len(stem))
        mass = sum(logp[:size])
        # longer labels that begin with this one have their own mass
        longer = {o[size]: row[size] for o, row in zip(stems, logps, strict=True) if o[:size] == stem and len(o) > size}
        taken = min(sum(map(math.exp, longer.values())), 1 - 1e-12)
        masses.append(mass + math.log1p(-taken))
    return masses


@dataclass(frozen=True)
class Sample:
    """A generated judgement, and its points from 0 to 5; None without any, with the reason."""

    text: str
    points: float | None
    cause: Cause | Literal[""] = ""
    reason: str = ""


def read_sample(text: str, *, cut: bool) -> Sample:
    """Returns a generated judgement with its points. One that was cut has none: what it ends with is no conclusion."""
    points = None if cut else read_points(text)
    if points is not None:
        return Sample(text, points)
    if cut:
        return Sample(text, None, "cut", f"the judgement was cut: ...{text[-80:]!r}; see judge.max_tokens")
    return Sample(text, None, "unreadable", f"no score from 0 to 5 after the last 'Score:' in ...{text[-80:]!r}")


def mean_points(samples: Sequence[Sample]) -> Grade:
    """Returns the mean of the points that samples have; None if none has any, with the first one's cause."""
    points = tuple(s.points for s in samples)
    texts = tuple(s.text for s in samples)
    known = [p for p in points if p is not None]
    if known:
        return Grade(sum(known) / len(known), texts=texts, points=points)
    reason = f"no readable score in {len(samples)} samples; the first: {samples[0].reason}"
    return Grade(None, reason, texts, points, samples[0].cause)


def _each(groups: Sequence[Group]) -> list[tuple[Group, Response]]:
    return [(group, response) for group in groups for response in group.responses]


def _by_group(groups: Sequence[Group], grades: Sequence[Grade]) -> list[tuple[Grade, ...]]:
    remaining = iter(grades)
    return [tuple(next(remaining) for _ in group.responses) for group in groups]
