"""A trained reward model as a scorer: one number a response, read at its last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tiltyard.batch.batch import Batch
from tiltyard.batch.passes import each_micro
from tiltyard.data.chat import Chat
from tiltyard.errors import DataError, ModelError
from tiltyard.models.language import ScalarModel
from tiltyard.scoring.base import Cost, Scale
from tiltyard.types import MICRO_TOKENS, Group, Prompt, Response, same_for_same


class RewardScorer:
    """A reward model's score of each response, read at its last token.

    Args:
        model: of the stage `reward`.
        chat: of the policy whose responses are scored. Where its tokenizer or template differs from the reward
            model's, texts are rendered again with the reward model's own. None: the groups' ids are the reward
            model's own. Texts without ids are rendered in any case.
        budget: packed tokens computed at a time.
        name: of its metric, `reward/NAME`.

    Raises:
        ModelError: the model is a ranker, which compares two responses and scores none by itself.
    """

    scale = Scale()
    together = True

    def __init__(
        self, model: ScalarModel, chat: Chat | None = None, *, budget: int = MICRO_TOKENS, name: str = "reward"
    ):
        if model.compares:
            raise ModelError(
                "a ranker reads two responses at once and scores none by itself",
                where=str(model.chat.tokenizer.name_or_path),
                expected="a model of the stage `reward`",
                fix="train one on the same comparisons, or use the stage `candidates` with ranker=",
            )
        self.model, self.budget, self.name = model, budget, name
        self._encode_again = chat is not None and not same_tokens(chat, model.chat)
        self._cost = Cost()

    @torch.no_grad()
    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the model's scores.

        Raises:
            DataError: a response that is longer, with its prompt, than the model's context.
        """
        encoded = [self._encoded(group) for group in groups]
        scores: list[float] = []
        training = self.model.module.training
        self.model.module.eval()
        try:
            batch = Batch.of(encoded, range(len(encoded)), len(encoded), self.model.device, self.budget)
            for part_B in each_micro(batch, lambda part: self.model.score_B(part.forest), self.model):
                scores += part_B.tolist()
        finally:
            self.model.module.train(training)
        self._cost += Cost(calls=len(scores), tokens_in=sum(g.tokens for g in encoded))
        remaining = iter(scores)
        return [
            replace(group, scores=tuple(same_for_same(one, [next(remaining) for _ in one.responses])))
            for group, one in zip(groups, encoded, strict=True)
        ]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuses conversations where the model's own tokenizer has no chat template.

        Raises:
            ModelError: nothing says how this model reads a conversation.
        """
        if any(prompt.messages for prompt in prompts):
            require_template(self.model)

    def take_cost(self) -> Cost:
        """Responses scored and packed tokens read since the last call."""
        cost, self._cost = self._cost, Cost()
        return cost

    def _encoded(self, group: Group) -> Group:
        if self._encode_again or not group.prompt.ids:
            group = in_tokens_of(self.model.chat, group)
        limit = self.model.chat.max_length
        longest = len(group.prompt.ids) + max((len(r.ids) for r in group.responses), default=0)
        if limit is not None and longest > limit:
            raise DataError(
                "a response is longer than the reward model's context",
                where=group.origin or group.prompt.id,
                got=f"{longest} tokens with its prompt",
                expected=f"at most {limit}",
                fix="lower max_tokens or max_prompt, or take a reward model with a longer context",
            )
        return group


def in_tokens_of(chat: Chat, group: Group) -> Group:
    """The group with the ids that `chat` makes of its texts.

    A response that was cut gets no end-of-turn token, except where the model reads whole turns: it has never seen one
    without.
    """
    fresh = tuple(Response(text=r.text, meta=r.meta) for r in group.responses)
    encoded = chat.encode_group(replace(group, prompt=replace(group.prompt, ids=()), responses=fresh))
    responses = tuple(
        replace(new, ids=new.ids[:-1], loss_spans=None) if _is_open(old, new) and not chat.whole_turn else new
        for old, new in zip(group.responses, encoded.responses, strict=True)
    )
    return replace(encoded, responses=responses)


def _is_open(old: Response, new: Response) -> bool:
    return old.finish == "length" and len(new.ids) > 1


def require_template(model: ScalarModel) -> None:
    """Refuses a reward model of others whose tokenizer has no chat template.

    Raises:
        ModelError: nothing says how it reads a conversation.
    """
    if not (model.chat.default_template and getattr(model.module.config, "reads_whole_turn", False)):
        return
    where = str(model.chat.tokenizer.name_or_path)
    raise ModelError(
        "the reward model's tokenizer has no chat template, so nothing says how it reads a conversation",
        where=where,
        got="no chat_template in its tokenizer_config.json, and no chat_template.jinja",
        expected="the template that the model was trained with",
        fix=f"write that template into {where}/chat_template.jinja (its model card shows the format), in a copy of the "
        "folder if it is a name of the hub",
    )


def same_tokens(a: Any, b: Any) -> bool:
    """True if two chats encode to the same ids: same vocabulary, template, first and last token.

    A reward model's folder may have a padding token more, which stands in no text.
    """
    if a is b:
        return True
    same = same_vocabulary(a, b) and a.tokenizer.chat_template == b.tokenizer.chat_template
    same = same and a.whole_turn == b.whole_turn
    return bool(same and (a.start_id, a.eos_id) == (b.start_id, b.eos_id))


def same_vocabulary(a: Any, b: Any) -> bool:
    """True if the same ids are the same tokens for two chats, a padding token that one of them has apart."""
    one, two = a.tokenizer, b.tokenizer
    apart = one.get_vocab().items() ^ two.get_vocab().items() if one is not two else set()
    return {token for token, _ in apart} <= {one.pad_token, two.pad_token}


def check_vocabularies(reader: Any, writer: Any, where: str, fix: str) -> None:
    """Checks that a model can read the token ids of another, whose log-probs it gives or values it predicts.

    Args:
        reader, writer: their chats. where: the setting that names the reader.

    Raises:
        ModelError: other tokenizers: the ids would be other words, which no shape shows where there are enough of them.
    """
    if same_vocabulary(reader, writer):
        return
    raise ModelError(
        "this model has another tokenizer: the ids of the model's responses would be other words to it",
        where=where,
        got=f"{reader.tokenizer.name_or_path}, {len(reader.tokenizer):,} tokens",
        expected=f"the tokenizer of {writer.tokenizer.name_or_path}, {len(writer.tokenizer):,} tokens",
        fix=fix,
    )
