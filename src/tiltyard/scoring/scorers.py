"""Scorers: groups in, the same groups with one number a response out. They never know which algorithm asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tiltyard.batch.forest import plant
from tiltyard.data.chat import Chat
from tiltyard.errors import ConfigError, DataError, ModelError
from tiltyard.models.language import ScalarModel
from tiltyard.types import MICRO_TOKENS, Group, Prompt, Response


class RewardScorer:
    """A reward model's score of each response, read at its last token.

    Where the reward model has another tokenizer than the policy, texts are rendered again with its own template;
    otherwise the sampled ids themselves are scored. `budget` is how many packed tokens are computed at a time.
    """

    def __init__(self, model: ScalarModel, budget: int = MICRO_TOKENS):
        if model.compares:
            raise ModelError(
                "a ranker reads two answers at once and scores none by itself",
                where=str(model.chat.tokenizer.name_or_path),
                expected="a model of the stage `reward`",
                fix="train one on the same comparisons, or use the stage `candidates` with ranker=",
            )
        self.model, self.budget = model, budget
        self._compared: tuple[Any, bool] = (model.chat, True)

    @torch.no_grad()
    def __call__(self, models: Any, groups: list[Group]) -> list[Group]:
        own = [self._own(group, models) for group in groups]
        scores: list[float] = []
        training = self.model.module.training
        self.model.module.eval()
        try:
            for part in _parts(own, self.budget):
                scores += self.model.score_B(plant(part, self.model.device)).tolist()
        finally:
            self.model.module.train(training)
        left = iter(scores)
        return [replace(group, scores=tuple(next(left) for _ in group.responses)) for group in groups]

    def _own(self, group: Group, models: Any) -> Group:
        policy = getattr(models, "policy", None)
        if policy is not None and self._compared[0] is not policy.chat:
            self._compared = (policy.chat, same_tokens(policy.chat, self.model.chat))
        if policy is not None and not self._compared[1]:
            group = in_tokens_of(self.model.chat, group)
        limit = self.model.chat.max_length
        longest = len(group.prompt.ids) + max((len(r.ids) for r in group.responses), default=0)
        if limit is not None and longest > limit:
            raise DataError(
                "an answer is longer than the reward model's context",
                where=group.origin or group.prompt.id,
                got=f"{longest} tokens with its prompt",
                expected=f"at most {limit}",
                fix="lower max_tokens or max_prompt, or take a reward model with a longer context",
            )
        return group


def in_tokens_of(chat: Chat, group: Group) -> Group:
    """The group with the ids that `chat` makes of its texts; an answer that was cut off gets no end-of-turn token."""
    fresh = tuple(Response(text=r.text, meta=r.meta) for r in group.responses)
    encoded = chat.encode_group(replace(group, prompt=replace(group.prompt, ids=()), responses=fresh))
    answers = tuple(
        replace(new, ids=new.ids[:-1], loss_spans=None) if old.finish == "length" and len(new.ids) > 1 else new
        for old, new in zip(group.responses, encoded.responses, strict=True)
    )
    return replace(encoded, responses=answers)


def same_tokens(a: Any, b: Any) -> bool:
    """Whether two chats make the same ids: same vocabulary, same template, same beginning and end."""
    if a is b:
        return True
    one, two = a.tokenizer, b.tokenizer
    same = one.chat_template == two.chat_template and one.get_vocab() == two.get_vocab()
    return bool(same and (a.start_id, a.eos_id) == (b.start_id, b.eos_id))


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
        return [replace(g, scores=tuple(self._score(g, r) for r in g.responses)) for g in groups]

    def _score(self, group: Group, response: Response) -> float:
        given: Any = self.rule(group.prompt, response)
        try:
            score = float(given)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise ConfigError(
                f"the rule '{getattr(self.rule, '__name__', 'rule')}' gave no finite number",
                where=group.origin or group.prompt.id,
                got=repr(given),
                expected="a float",
                fix=f"mend the rule for the response {response.text[:80]!r}",
            )
        return score


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
                if group.scores is None:
                    raise ConfigError(
                        "a scorer of the sum gave no score", where=group.origin, got=type(scorer).__name__
                    )
                for k, score in enumerate(group.scores):
                    row[k] += weight * score
        return [replace(g, scores=tuple(row)) for g, row in zip(groups, totals, strict=True)]
