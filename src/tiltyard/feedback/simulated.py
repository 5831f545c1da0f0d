"""A judge made of the rules of the embedded world, with settings for its weights, its noise and its position bias."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.feedback.prompts import expected_rating, to_unit
from tiltyard.feedback.verdicts import Grade, Usage, Verdict, sigmoid
from tiltyard.types import Group, Prompt
from tiltyard.world import gold

RATING_VALUES = tuple(to_unit(i) for i in range(1, 11))  # where the ratings 1 to 10 lie on [-1, 1]
ATTRIBUTES = ("gold", "helpful", "truthful", "harmless", "length")
_FACTS = frozenset({"kind", "form", "ask", "facts"})  # what the world's prompts carry in their meta


@dataclass
class SimulatedJudge:
    """Prefers the first response with probability sigmoid((u_1 - u_2) / temperature + position_bias).

    The utility is u = sum of weight * value, where the values are the world's `gold` total, `helpful`, `truthful`,
    `harmless` and `length` in tens of words. {"gold": 1, "length": -1} is a judge that prefers shorter responses. It is
    a `Judge` and a `ScoreJudge` (the score is u).

    Args:
        instruction: weights; empty means {"gold": 1}.
        temperature: scale of the logistic noise.
        votes: 0 returns the probability itself; otherwise the share among that many votes sampled with it. The samples
            depend only on the seed and the text of the question (order included).
        position_bias: added to the log-odds of the response that is shown first.
    """

    instruction: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 0.5
    votes: int = 0
    position_bias: float = 0.0
    seed: int = 0
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        for name in self.instruction:
            if name not in ATTRIBUTES:
                raise ConfigError(
                    "unknown weight of the simulated judge",
                    where="judge.instruction",
                    got=name,
                    expected=f"weights on {', '.join(ATTRIBUTES)}",
                    fix=nearest(name, ATTRIBUTES),
                )
        if not self.temperature > 0:
            raise ConfigError("out of range", where="judge.temperature", got=self.temperature, expected="> 0")

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        self.usage.calls += len(pairs)
        return [self._verdict(pair) for pair in pairs]

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns the utility of every response, without noise."""
        self.usage.calls += sum(len(g.responses) for g in groups)
        return [tuple(Grade(self.utility(g.prompt, r.text)) for r in g.responses) for g in groups]

    def utility(self, prompt: Prompt, text: str) -> float:
        """Returns the utility u of a response."""
        if not prompt.meta.keys() >= _FACTS:
            raise DataError(
                "the simulated judge needs prompts of the embedded world",
                where=prompt.id,
                got=f"meta with {', '.join(map(str, prompt.meta)) or 'nothing'}",
                expected="prompts that the stage `world` wrote",
                fix="set judge.kind to model or api",
            )
        score = gold(prompt.meta, text)
        values = {
            "gold": score.total,
            "helpful": score.helpful,
            "truthful": score.truthful,
            "harmless": score.harmless,
            "length": score.length / 10,
        }
        return sum(weight * values[name] for name, weight in (self.instruction or {"gold": 1.0}).items())

    def _verdict(self, pair: Group) -> Verdict:
        one, two = (r.text for r in pair.responses)
        gap = self.utility(pair.prompt, one) - self.utility(pair.prompt, two)
        logit = gap / self.temperature + self.position_bias
        p = sigmoid(logit)
        if not self.votes:
            return Verdict(p, logit=logit)
        rng = random.Random(seed_from(self.seed, _words(pair.prompt), one, two))
        return Verdict(sum(rng.random() < p for _ in range(self.votes)) / self.votes)


@dataclass
class SimulatedRater(SimulatedJudge):
    """Rates single responses from 1 to 10, like a model judge with `ask: score`; grades are on [-1, 1].

    P(i) is proportional to exp(-(x_i - u)^2 / (2 temperature^2)) with x_i = (2i - 11)/9: a normal distribution around
    the utility, restricted to the scale. The grade is the expectation of x_i (Lee et al. 2023, direct RLAIF); with
    `votes` the mean of that many ratings sampled from P. The samples depend only on the seed and the text of the
    question: errors are fixed for a question and do not average out over repeated queries.
    """

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """Returns the rating of every response."""
        self.usage.calls += sum(len(g.responses) for g in groups)
        return [tuple(Grade(self._rating(g.prompt, r.text)) for r in g.responses) for g in groups]

    def _rating(self, prompt: Prompt, text: str) -> float:
        u = self.utility(prompt, text)
        logits = [-(((x - u) / self.temperature) ** 2) / 2 for x in RATING_VALUES]
        if not self.votes:
            return expected_rating(logits)
        weights = [math.exp(x - max(logits)) for x in logits]
        rng = random.Random(seed_from(self.seed, _words(prompt), text))
        return sum(rng.choices(RATING_VALUES, weights, k=self.votes)) / self.votes


def seed_from(*parts: Any) -> int:
    """Returns a seed that depends on the parts alone: equal questions give equal samples, in whatever order."""
    text = json.dumps(parts, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:7])


def _words(prompt: Prompt) -> Any:
    return prompt.text if prompt.messages is None else [m.to_list() for m in prompt.messages]
