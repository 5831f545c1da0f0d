"""Worlds of a few tokens whose laws can be written down: who answers what, what is preferred, how far a law is off.

Preferences are soft labels, the exact probabilities of a comparison, so one batch of all pairs is the whole expectation
over labels: what is learnt from it has no noise, and its optimum is the formula's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tiltyard.batch.forest import pack
from tiltyard.data.pairwise_prompt import PAIRS
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.posterior import all_responses, response_log_probs, total_variation
from tiltyard.sampling import Capabilities
from tiltyard.training.algorithm import Algorithm, Models, StepGroups
from tiltyard.training.self_play import SelfPlay
from tiltyard.types import Group, Preference, Prompt, Response
from training import tiny

# a token that no answer goes on after: a Llama cannot tell a token from the same one after itself
ASK = Prompt(id="ask", ids=(tiny.EOS,))
Answer = tuple[int, ...]


def answers(tokens: int, longest: int = 1) -> list[Answer]:
    """Every response over a vocabulary of `tokens` tokens, see `posterior.all_responses`."""
    return all_responses(tokens, longest, tiny.EOS)


BANDIT = answers(6)  # T1: six answers of one token
COIN = answers(2)  # T2: two
TREE = answers(3, 2)  # T3: seven answers of one or two tokens
REWARD = torch.tensor([0.3, -0.4, 0.9, 0.0, -0.8, 0.5, 0.2], dtype=torch.float64)


def policy(support: Sequence[Answer], seed: int = 0) -> LanguageModel:
    """A Llama of one layer over the tokens of these answers."""
    tokens = 1 + max(t for y in support for t in y)
    return tiny.policy(seed, vocab_size=tokens, num_hidden_layers=1, initializer_range=0.3)


def scalar(seed: int = 0) -> ScalarModel:
    return tiny.scalar(seed, vocab_size=6, num_hidden_layers=1, initializer_range=0.3)


def tilted(support: Sequence[Answer], seed: int = 0) -> Models:
    """A policy and a reference that begin with the same weights."""
    return Models(policy=policy(support, seed), ref=policy(support, seed))


def forest(support: Sequence[Answer]) -> Any:
    return pack([Group(ASK, tuple(Response(ids=y) for y in support))])


def law(model: LanguageModel, support: Sequence[Answer]) -> Tensor:
    """Log-probability of each of these responses, exactly."""
    return response_log_probs(model, ASK, support)


@torch.no_grad()
def give_law(model: LanguageModel, p: Tensor) -> None:
    """Turns the head so that the first token after `ASK` has exactly these probabilities."""
    hidden = model.hidden_T(pack([Group(ASK, (Response(ids=(0,)),))]))[0]
    model.head.weight.copy_(torch.outer(p.log(), hidden) / hidden.dot(hidden))


tv = total_variation


def beats(scores: Tensor) -> Tensor:
    """Bradley-Terry: [i, j] is the probability that i is preferred to j."""
    return torch.sigmoid(scores[:, None] - scores[None])


def pairs(support: Sequence[Answer], p: Tensor, times: Callable[[int, int], int] = lambda i, j: 1) -> list[Group]:
    """Every pair of answers, `times(i, j)` times, labelled with the probability that the first is preferred."""
    return [
        pair(support[i], support[j], float(p[i, j]))
        for i, j in itertools.combinations(range(len(support)), 2)
        for _ in range(times(i, j))
    ]


def pair(one: Answer, other: Answer, share: float) -> Group:
    return Group(ASK, (Response(ids=one), Response(ids=other)), preference=Preference(shares=(share, 1 - share)))


def demos(support: Sequence[Answer], counts: Sequence[int]) -> list[Group]:
    """Each answer so many times."""
    rows = [y for y, n in zip(support, counts, strict=True) for _ in range(n)]
    return [Group(ASK, (Response(ids=y),)) for y in rows]


def doubles(numbers: Sequence[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def shares(counts: Sequence[float]) -> Tensor:
    return doubles(counts) / sum(counts)


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function is 0, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return (low + high) / 2


@dataclass(frozen=True)
class Toy:
    """A method in a world where it is known where it ends.

    Args:
        gap: how far the models are from there: total variation of laws, or the largest error of a difference.
        within: what is near enough.
    """

    algorithm: Algorithm
    models: Models
    gap: Callable[[Models], float]
    within: float = 1e-3
    steps: int = 150
    lr: float | Mapping[str, float] = 3e-2


Toys = Mapping[str, Callable[[], Toy]]


def given(groups: Sequence[Group]) -> tiny.Given:
    """One batch of all groups, every step."""
    return tiny.Given([groups])


def to_law(support: Sequence[Answer], p: Tensor) -> Callable[[Models], float]:
    """The distance of the policy's law to this one."""
    assert abs(float(p.sum()) - 1) < 1e-12
    return lambda models: tv(law(models["policy"], support).exp(), p)


def to_scores(score: Callable[[Models], Tensor], truth: Tensor) -> Callable[[Models], float]:
    """The largest error of a difference of two scores: their zero is free."""

    @torch.no_grad()
    def gap(models: Models) -> float:
        error = score(models) - truth
        return float(error.max() - error.min())

    return gap


# ------------------------------------------------------------------------------------- groups of every shape, at random


def mixed_pairs(n: int, seed: int = 0) -> list[Group]:
    """Pairs of answers of different lengths: sure, soft and tied ones, one of them with a turn that is no answer."""
    stream = torch.Generator().manual_seed(seed)
    groups = []
    for i in range(n):
        ids = [(2 + k, *tiny.ids(tiny.length(0, 6, stream), stream), tiny.EOS) for k in range(2)]
        share = (None, 0.8, None, 0.5, 0.0)[i % 5]
        ranks = (1, 1) if i % 5 == 2 else ((1, 2), (2, 1))[i % 2]
        soft = None if share is None else (share, 1 - share)
        both = tuple(Response(ids=y) for y in ids)
        prompt = Prompt(id=str(i), ids=tiny.ids(tiny.length(1, 8, stream), stream))
        groups.append(
            Group(prompt, both, preference=Preference(ranks=ranks) if soft is None else Preference(shares=soft))
        )
    return [with_turns(groups[0]), *groups[1:]]


def level_pairs(n: int, seed: int = 0) -> list[Group]:
    """Labelled pairs whose answers all have four tokens."""
    stream = torch.Generator().manual_seed(seed)
    groups = mixed_pairs(n, seed)
    logps = (-1.0, -2.0, -1.5, -0.5)  # as if they had been sampled
    made = [tuple(Response((2 + k, *tiny.ids(2, stream), tiny.EOS), logps=logps) for k in range(2)) for _ in groups]
    return [replace(g, responses=both) for g, both in zip(groups, made, strict=True)]


def turned(group: Group) -> Group:
    """The same group with its responses, and all that is said of them, in the opposite order."""
    return replace(group, responses=group.responses[::-1], **labels_turned(group))


def labels_turned(group: Group) -> dict[str, Any]:
    """What is said of the responses, in the opposite order."""
    preference = group.preference
    if preference is not None:
        values = {name: getattr(preference, name) for name in ("ranks", "shares", "labels", "ratings")}
        preference = replace(preference, **{name: x[::-1] for name, x in values.items() if x is not None})
    return {"scores": None if group.scores is None else group.scores[::-1], "preference": preference}


def with_turns(group: Group) -> Group:
    """The first response as a dialogue of two answers with something between that no loss may use."""
    first = Response(ids=(5, 6, tiny.EOS, 7, 8, 9, tiny.EOS), loss_spans=((0, 3), (5, 7)))
    return replace(group, responses=(first, *group.responses[1:]))


def dialogues(n: int, seed: int = 0) -> list[Group]:
    groups = tiny.demonstrations(n, seed)
    return [with_turns(groups[0]), *groups[1:]]


def rankings(n: int, seed: int = 0) -> list[Group]:
    """K from 2 to 5, ties among them, and one group that is all ties."""
    return tiny.rankings(n, seed, tied=[n - 1])


def labelled(n: int, seed: int = 0) -> list[Group]:
    """One to five answers, each good or bad."""
    stream = torch.Generator().manual_seed(seed + 100)
    groups = []
    for i in range(n):
        k = 1 + (i + 3) % 5
        responses = tuple(Response(ids=(2 + j, *tiny.ids(tiny.length(0, 5, stream), stream), 1)) for j in range(k))
        scores = tuple(float((i + j) % 2) for j in range(k))
        prompt = Prompt(id=str(i), ids=tiny.ids(tiny.length(1, 6, stream), stream))
        groups.append(Group(prompt, responses, scores=scores))
    return groups


def rivals(n: int, seed: int = 0) -> list[Group]:
    """Two orders of two answers, as a ranker reads them; rows that gave 1, 2 or 3 comparisons, hard and soft."""
    groups = []
    for i, group in enumerate(mixed_pairs(n, seed)):
        made = tuple(Response(ids=r.ids, meta={PAIRS: 1 + i % 3}) for r in group.responses)
        groups.append(replace(group, responses=made, preference=Preference(ranks=(1, 2))))
    return groups


# ---------------------------------------------------------------------------------------------------- sources of moment


class Played(tiny.Given):
    """Hands out pairs and passes for a `SelfPlay` of two steps an iteration."""

    every, iteration = 2, 0

    def __call__(self, models: Models, step: int) -> StepGroups:
        self.iteration = step // self.every
        return super().__call__(models, step)


@dataclass
class Dealt:
    """A sampler without chance: over `slots` prompts of the same data row, each answer comes as often as its share.

    The slot is the prompt's `meta`. Shares of the law must be multiples of 1/slots, so that dealing is exact.
    """

    support: Sequence[Answer]
    slots: int
    laws: list[Tensor] = field(default_factory=list)
    capabilities = Capabilities()

    def sync(self, model: LanguageModel, version: int) -> None:
        self.model = model

    def close(self) -> None:
        """Nothing runs beside the trainer."""

    def generate(self, prompts: Sequence[Prompt], n: int, *_: Any) -> list[Group]:
        counts = law(self.model, self.support).exp() * self.slots
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
        deck = [y for y, count in zip(self.support, counts.round().long().tolist(), strict=True) for _ in range(count)]
        return [Group(p, (Response(ids=deck[p.meta["slot"]]),)) for p in prompts]

    def source(self, groups: Sequence[Group], every: int) -> SelfPlay:
        """Each demonstration against each slot of the deck: one step is the whole expectation."""
        prompts = [replace(ASK, meta={"slot": slot}) for slot in range(self.slots)]
        every_pair = [replace(group, prompt=prompt) for group in groups for prompt in prompts]
        return SelfPlay(every_pair, self, len(every_pair), every)
