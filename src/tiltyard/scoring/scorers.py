"""Scorers: groups in, the same groups with one number a response out. They never know which algorithm asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tiltyard.errors import ConfigError
from tiltyard.models.forest import plant
from tiltyard.models.language import ScalarModel
from tiltyard.types import Group, Prompt, Response


class RewardScorer:
    """A reward model's score of each response, read at its last token.

    Where the reward model has another tokenizer than the policy, texts are rendered again with its own template;
    otherwise the sampled ids themselves are scored.
    """

    def __init__(self, model: ScalarModel, budget: int = 16384):
        self.model, self.budget = model, budget

    @torch.no_grad()
    def __call__(self, models: Any, groups: list[Group]) -> list[Group]:
        scored = []
        for part in _parts(groups, self.budget):
            forest = plant([self._own(group, models) for group in part], self.model.device)
            scores = self.model.score_B(forest).tolist()
            for group in part:
                k = len(group.responses)
                scored.append(replace(group, scores=tuple(scores[:k])))
                scores = scores[k:]
        return scored

    def _own(self, group: Group, models: Any) -> Group:
        policy = getattr(models, "policy", None)
        if policy is None or same_tokens(policy.chat, self.model.chat):
            return group
        fresh = tuple(Response(text=r.text) for r in group.responses)
        return self.model.chat.encode_group(replace(group, prompt=replace(group.prompt, ids=()), responses=fresh))


def same_tokens(a: Any, b: Any) -> bool:
    """Whether two chats make the same ids: same vocabulary and same template."""
    if a is b:
        return True
    one, two = a.tokenizer, b.tokenizer
    return one.chat_template == two.chat_template and one.get_vocab() == two.get_vocab()


def _parts(groups: Sequence[Group], budget: int) -> list[list[Group]]:
    parts: list[list[Group]] = []
    held = 0
    for group in groups:
        if parts and held + group.tokens <= budget:
            parts[-1].append(group)
            held += group.tokens
        else:
            parts.append([group])
            held = group.tokens
    return parts


class RuleScorer:
    """Any function `(prompt, response) -> float`, e.g. a length penalty, a parser, a verifier."""

    def __init__(self, rule: Callable[[Prompt, Response], float]):
        self.rule = rule

    def __call__(self, models: Any, groups: list[Group]) -> list[Group]:  # noqa: ARG002 - protocol
        return [replace(g, scores=tuple(float(self.rule(g.prompt, r)) for r in g.responses)) for g in groups]


class WeightedScorer:
    """The weighted sum of several scorers."""

    def __init__(self, parts: Sequence[tuple[float, Callable[[Any, list[Group]], list[Group]]]]):
        if not parts:
            raise ConfigError("a weighted sum needs at least one scorer", where="WeightedScorer")
        self.parts = parts

    def __call__(self, models: Any, groups: list[Group]) -> list[Group]:
        totals = [[0.0] * len(g.responses) for g in groups]
        for weight, scorer in self.parts:
            for row, group in zip(totals, scorer(models, groups), strict=True):
                for k, score in enumerate(group.scores or ()):
                    row[k] += weight * score
        return [replace(g, scores=tuple(row)) for g, row in zip(groups, totals, strict=True)]
