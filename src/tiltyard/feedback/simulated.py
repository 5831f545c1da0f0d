"""A judge made of the embedded world's own rules: what it wants, how sure it is and what misleads it are settings."""

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

UNITS = tuple(to_unit(i) for i in range(1, 11))  # where the ratings 1 to 10 lie on [-1, 1]
WANTS = ("gold", "helpful", "truthful", "harmless", "length")
_FACTS = frozenset({"kind", "form", "ask", "facts"})  # what the world's prompts carry in their meta


@dataclass
class SimulatedJudge:
    """Prefers the first answer with probability sigmoid((u_1 - u_2) / temperature + position_bias).

    Its instruction is a mapping, no prose: u = sum of weight * value, where the values are the world's `gold` total,
    `helpful`, `truthful`, `harmless` and `length` in tens of words. {"gold": 1, "length": -1} is a judge that was told
    to prefer shorter answers. It is a `Judge` and a `ScoreJudge` (the score is u).

    Args:
        instruction: weights; empty means {"gold": 1}.
        temperature: how unsure it is.
        votes: 0 says the probability itself; otherwise the share of that many votes drawn with it. The draws depend
            on the seed and on the question's words (order included) alone.
        position_bias: added to the log-odds of the answer that stands first.
    """

    instruction: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 0.5
    votes: int = 0
    position_bias: float = 0.0
    seed: int = 0
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        for name in self.instruction:
            if name not in WANTS:
                raise ConfigError(
                    "the simulated judge does not know this wish",
                    where="judge.instruction",
                    got=name,
                    expected=f"weights on {', '.join(WANTS)}",
                    fix=nearest(name, WANTS),
                )
        if not self.temperature > 0:
            raise ConfigError("out of range", where="judge.temperature", got=self.temperature, expected="> 0")

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        self.usage.calls += len(pairs)
        return [self._verdict(pair) for pair in pairs]

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """The utility of every response, without noise."""
        self.usage.calls += sum(len(g.responses) for g in groups)
        return [tuple(Grade(self.utility(g.prompt, r.text)) for r in g.responses) for g in groups]

    def utility(self, prompt: Prompt, text: str) -> float:
        """How much this judge likes the answer."""
        if not prompt.meta.keys() >= _FACTS:
            raise DataError(
                "the simulated judge knows the embedded world alone, and this prompt is not about it",
                where=prompt.id,
                got=f"meta with {', '.join(map(str, prompt.meta)) or 'nothing'}",
                expected="prompts that the stage `world` wrote",
                fix="set judge.kind to model or api",
            )
        found = gold(prompt.meta, text)
        values = {
            "gold": found.total,
            "helpful": found.helpful,
            "truthful": found.truthful,
            "harmless": found.harmless,
            "length": found.length / 10,
        }
        return sum(weight * values[name] for name, weight in (self.instruction or {"gold": 1.0}).items())

    def _verdict(self, pair: Group) -> Verdict:
        one, two = (r.text for r in pair.responses)
        gap = self.utility(pair.prompt, one) - self.utility(pair.prompt, two)
        logit = gap / self.temperature + self.position_bias
        p = sigmoid(logit)
        if not self.votes:
            return Verdict(p, logit=logit)
        rng = random.Random(stream(self.seed, _words(pair.prompt), one, two))
        return Verdict(sum(rng.random() < p for _ in range(self.votes)) / self.votes)


@dataclass
class SimulatedRater(SimulatedJudge):
    """Rates single answers from 1 to 10, as a model that is asked for a `score` does; grades are on [-1, 1].

    P(i) is proportional to exp(-(x_i - u)^2 / (2 temperature^2)) with x_i = (2i - 11)/9: around the utility, as far as
    the scale goes. The grade is the expectation of x_i (Lee et al. 2023, direct RLAIF); with `votes` the mean of so
    many ratings drawn from P. The draws depend on the seed and on the question's words alone: the judge's errors are
    its own and do not average out when it is asked again.
    """

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        """The rating of every response."""
        self.usage.calls += sum(len(g.responses) for g in groups)
        return [tuple(Grade(self._rating(g.prompt, r.text)) for r in g.responses) for g in groups]

    def _rating(self, prompt: Prompt, text: str) -> float:
        u = self.utility(prompt, text)
        logits = [-(((x - u) / self.temperature) ** 2) / 2 for x in UNITS]
        if not self.votes:
            return expected_rating(logits)
        weights = [math.exp(x - max(logits)) for x in logits]
        rng = random.Random(stream(self.seed, _words(prompt), text))
        return sum(rng.choices(UNITS, weights, k=self.votes)) / self.votes


def stream(*parts: Any) -> int:
    """A seed from what is asked: the same question draws the same numbers, whatever was asked before it."""
    text = json.dumps(parts, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:7])


def _words(prompt: Prompt) -> Any:
    return prompt.text if prompt.messages is None else [list(m) for m in prompt.messages]
