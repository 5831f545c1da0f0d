"""A trained ranker at work: verdicts on pairs of responses, and scores against a baseline response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tiltyard.batch.batch import split_by_tokens
from tiltyard.batch.forest import pack
from tiltyard.data.pairwise_prompt import both_orders
from tiltyard.errors import DataError, ModelError
from tiltyard.models.language import ScalarModel
from tiltyard.scoring.base import Cost, Scale
from tiltyard.types import MICRO_TOKENS, Group, Response


@dataclass
class Position:
    """Position bias of a ranker over `asked` pairs, as sums that can be added.

    `even` sums (s(y1|y2) + s(y2|y1)) / 2, which a ranker without a leaning to either place has at 0 on average (a
    constant of the head shifts it too); `flips` counts pairs whose two orders, read alone by their sign, contradict
    each other.
    """

    asked: int = 0
    even: float = 0.0
    flips: int = 0


class Ranker:
    """logit rho(x, y1, y2) = s(x; y1 | y2) - s(x; y2 | y1) by a model of the stage `ranker`.

    Calling it with groups of two responses gives the logits that the first is better: the `compare` of
    `training.select`. Texts are rendered with the ranker's own template, so any policy's responses can be compared.

    Args:
        model: its `compares` must be true.
        budget: packed tokens computed at a time.

    Attributes:
        position: a running tally of what asking in one order alone would have made of the pairs.
    """

    def __init__(self, model: ScalarModel, budget: int = MICRO_TOKENS):
        if not model.compares:
            raise ModelError(
                "a reward model scores one response and cannot compare two",
                where=str(model.chat.tokenizer.name_or_path),
                expected="a model of the stage `ranker` (`compares` is true)",
                fix="give it as reward=, or train a ranker on the same comparisons",
            )
        self.model, self.budget, self.position = model, budget, Position()

    def __call__(self, pairs: Sequence[Group]) -> list[float]:
        """For each group of two responses the logit that the first is the better one."""
        return self.logit_P(pairs).tolist()

    def take_position(self) -> Position:
        """The tally so far; counting begins anew."""
        taken, self.position = self.position, Position()
        return taken

    def logit_P(self, pairs: Sequence[Group]) -> Tensor:
        """[P] in float64; exactly the negative when the two responses change places."""
        score_P2 = self._score_P2(pairs)
        self.position.asked += len(score_P2)
        self.position.even += float(score_P2.mean(1).sum())
        self.position.flips += int((score_P2.prod(1) > 0).sum())
        return score_P2[:, 0] - score_P2[:, 1]

    @torch.no_grad()
    def _score_P2(self, pairs: Sequence[Group]) -> Tensor:
        """Raw scores of both orders. A pair is sorted by its words first, so a swapped one is the same computation."""
        for pair in pairs:
            if len(pair.responses) != 2:
                raise DataError(
                    "a ranker compares two responses",
                    where=pair.origin or pair.prompt.id,
                    got=f"{len(pair.responses)} responses",
                    expected="groups of two (training.select makes them)",
                )
        swapped = [_key(g.responses[0]) > _key(g.responses[1]) for g in pairs]
        shown = self._encoded(pairs, swapped)
        scores: list[float] = []
        training = self.model.module.training
        self.model.module.eval()
        try:
            for part in split_by_tokens(shown, self.budget):
                scores += self.model.score_B(pack(part, self.model.device)).tolist()
        finally:
            self.model.module.train(training)
        score_P2 = torch.tensor(scores, dtype=torch.float64).reshape(len(pairs), 2)
        swap_P = torch.tensor(swapped, dtype=torch.bool)
        same_P = torch.tensor([g.responses[0].text == g.responses[1].text for g in shown], dtype=torch.bool)
        score_P2[same_P, 1] = score_P2[same_P, 0]  # one text twice: a tie to the last bit
        return torch.where(swap_P[:, None], score_P2.flip(1), score_P2)

    def _encoded(self, pairs: Sequence[Group], swapped: Sequence[bool]) -> list[Group]:
        chat, asked = self.model.chat, []
        for pair, swap in zip(pairs, swapped, strict=True):
            one, other = pair.responses[::-1] if swap else pair.responses
            prompt = replace(pair.prompt, ids=())
            asked.append(Group(prompt, both_orders(prompt, one, other), origin=pair.origin))
        shown = chat.encode_groups(asked)
        for group in shown:
            longest = len(group.prompt.ids) + max(len(r.ids) for r in group.responses)
            if chat.max_length is not None and longest > chat.max_length:
                raise DataError(
                    "two responses with their prompt are longer than the ranker's context",
                    where=group.origin or group.prompt.id,
                    got=f"{longest} tokens",
                    expected=f"at most {chat.max_length}",
                    fix="lower max_tokens or max_prompt, or take a ranker with a longer context",
                )
        return shown


def _key(response: Response) -> tuple[str, str]:
    return response.text, response.finish


class BaselineScorer:
    """A ranker as a reward: r(x, y) = logit rho(x, y, y_b) against a baseline response of each prompt (RSO, eq. 7).

    The logit, not the probability: for Bradley-Terry preferences it is r(x, y) - r(x, y_b), and the baseline's own
    reward is a constant of the prompt that no method notices. For the same reason scores of different prompts are not
    comparable.

    Args:
        ranker: compares the responses.
        baselines: for each prompt a group with one response; found by the prompt, and by `origin` where one prompt
            has several baselines.
        name: of its metric, `reward/NAME`.
    """

    scale = Scale(comparable=False)

    def __init__(self, ranker: Ranker, baselines: Sequence[Group], name: str = "ranker"):
        self.ranker, self.name = ranker, name
        self._baselines: dict[tuple[object, ...], dict[str, Response]] = {}
        for group in baselines:
            self._baselines.setdefault(_prompt_key(group), {})[group.origin] = group.responses[0]
        self._cost = Cost()

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the logits that each response is better than its prompt's baseline.

        Raises:
            DataError: a prompt without a baseline, or a pair longer than the ranker's context.
        """
        pairs = [
            replace(group, responses=(response, baseline), scores=None, preference=None)
            for group in groups
            for baseline in [self._baseline(group)]
            for response in group.responses
        ]
        logits = self.ranker(pairs) if pairs else []
        self._cost += Cost(calls=2 * len(pairs), tokens_in=2 * sum(pair.tokens for pair in pairs))
        remaining = iter(logits)
        return [replace(group, scores=tuple(next(remaining) for _ in group.responses)) for group in groups]

    def take_cost(self) -> Cost:
        """Pairs read, in both orders, and about how many tokens since the last call."""
        cost, self._cost = self._cost, Cost()
        return cost

    def _baseline(self, group: Group) -> Response:
        by_origin = self._baselines.get(_prompt_key(group), {})
        if len(by_origin) == 1:
            return next(iter(by_origin.values()))
        if group.origin not in by_origin:
            raise DataError(
                "a baseline response for each prompt is needed",
                where=group.origin or group.prompt.id,
                got=f"{len(by_origin)} baselines for this prompt" + (", none of this origin" if by_origin else ""),
                expected="one group with one response for each prompt that is scored",
            )
        return by_origin[group.origin]


def _prompt_key(group: Group) -> tuple[object, ...]:
    return group.prompt.id, group.prompt.text, group.prompt.messages, group.prompt.ids
