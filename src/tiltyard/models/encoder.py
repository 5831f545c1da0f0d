"""Encoders: models with bidirectional attention, for masked-language-model pretraining and as reward models.

An encoder cannot be packed: a prompt's states depend on the response. Each response is one row behind its prompt, run
through transformers' own module with an attention mask and nothing else; the encoder numbers its
positions itself. Rows of like length share a batch. A module that gives a row another result beside a longer one is
noticed by a probe, and its rows are then run with rows of their own length only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from tiltyard.batch.forest import MAX_WASTE, Forest, padded_rows
from tiltyard.batch.logp import token_logp
from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError
from tiltyard.models.backbone import Backbone, DType
from tiltyard.models.language import ScalarModel

CLOSE = 1e-3  # a probe's two results may differ by this share of their size
CLOSE_HALF = 5e-2  # in bfloat16


def is_encoder(config: Any) -> bool:
    """True if a config is of an encoder: transformers has a masked language model of it and it is no decoder."""
    names = config.architectures or []
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        return False
    if any("ForCausalLM" in name for name in names):
        return False
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING or any("ForMaskedLM" in name for name in names)


class Rows(NamedTuple):
    """Some responses of a forest (`response`: their indices), each a row behind its prompt."""

    ids: Tensor
    mask: Tensor
    response: Tensor


class Encoder(Backbone):
    """A transformers encoder. It has no states of a forest: a prompt's depend on the response that is read with it."""

    def __init__(self, module: PreTrainedModel, chat: Chat, dtype: DType = "float32"):
        embeddings: Any = module.get_input_embeddings()
        pad = getattr(embeddings, "padding_idx", None)
        super().__init__(module, chat, dtype)
        if pad is not None and pad not in chat.stop_ids:
            embeddings.padding_idx = pad  # here padding is computed, and must stay what it was (MobileBERT looks at it)
        self._takes_mask = "attention_mask" in inspect.signature(module.forward).parameters
        self._mixes_lengths = self._takes_mask and self._probe_lengths()

    def _unpackable(self) -> str:
        return "an encoder reads both ways, so every response is a row of its own with its prompt"

    @property
    def calls_blocks_once(self) -> bool:
        return False  # a pass is made of batches of like length

    def hidden_T(self, forest: Forest, cache: Any = None, masks: Any = None) -> Tensor:  # noqa: ARG002 - the backbone's signature
        raise ModelError(
            "an encoder cannot stand where a decoder is needed",
            got=type(self.module).__name__,
            expected="a decoder: it must write, or be valued token by token",
            fix="use the encoder as a reward model, and a decoder here",
        )

    def run(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The module's logits of a padded batch."""
        logits: Tensor = self._call(ids, mask).logits
        return logits

    def _call(self, ids: Tensor, mask: Tensor, **asked: Any) -> Any:
        known = {"attention_mask": mask} if self._takes_mask else {}
        with self.autocast():
            return self.module(input_ids=ids, **known, **asked)

    @property
    def pad_id(self) -> int:
        """The padding token: the model's own, because some encoders number positions by it."""
        pad = getattr(self.module.config, "pad_token_id", None)
        return self.chat.pad_id if pad is None else int(pad)

    def rows(self, forest: Forest) -> Iterator[Rows]:
        """The forest's responses as padded batches of rows of like length."""
        if forest.B == 0:
            return
        (ids, mask), _ = padded_rows(forest)
        ids, mask = ids[: forest.B], mask[: forest.B]  # behind them stand prompts without responses
        ids = ids.where(mask > 0, self.pad_id)
        length_B = mask.sum(1)
        for part in _of_like_length(length_B.tolist(), MAX_WASTE if self._mixes_lengths else 1.0):
            chosen = torch.tensor(part)
            longest = int(length_B[chosen].max())
            own_ids, own_mask = (x[chosen, :longest].to(forest.device) for x in (ids, mask))
            yield Rows(own_ids, own_mask, chosen.to(forest.device))

    @torch.no_grad()
    def _probe_lengths(self) -> bool:
        """True if a short row has the same result alone and in a batch with a longer one."""
        ids, mask = self._probe_ids(2, 9), torch.ones(2, 9, dtype=torch.long, device=self.device)
        ids[0, 5:], mask[0, 5:] = self.pad_id, 0
        training = self.module.training
        self.module.eval()
        alone, beside = (
            self._call(i, m, output_hidden_states=True) for i, m in ((ids[:1, :5], mask[:1, :5]), (ids, mask))
        )
        self.module.train(training)
        return self._same(beside.hidden_states[-1][0, :5], alone.hidden_states[-1][0]) and self._same(
            beside.logits[0, : len(alone.logits[0])], alone.logits[0]
        )

    def _probe_ids(self, rows: int, length: int) -> Tensor:
        words = torch.arange(self.module.config.get_text_config().vocab_size)
        words = words[words != self.pad_id]
        picked = torch.randint(0, len(words), (rows, length), generator=torch.Generator().manual_seed(0))
        return words[picked].to(self.device)

    def _same(self, found: Tensor, expected: Tensor) -> bool:
        scale = expected.float().abs().max().clamp_min(1e-6)
        gap = (found - expected).float().abs().max() / scale
        return bool(gap < (CLOSE if self.dtype != "bfloat16" else CLOSE_HALF))


def _of_like_length(lengths: list[int], waste: float) -> list[list[int]]:
    """Places of rows in parts, each of which has at most `waste` slots a real token when padded to its longest."""
    parts: list[list[int]] = []
    real = 0
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if parts and (len(parts[-1]) + 1) * lengths[row] <= waste * (real + lengths[row]):
            parts[-1].append(row)
            real += lengths[row]
        else:
            parts.append([row])
            real = lengths[row]
    return parts


class MaskedModel(Encoder):
    """An encoder with a language head: log-probabilities of tokens given the text on both sides of them.

    Raises:
        ModelError: the tokenizer has no mask token, or the model's vocabulary has no place for it.
    """

    def __init__(self, module: PreTrainedModel, chat: Chat, dtype: DType = "float32"):
        super().__init__(module, chat, dtype)
        mask, size = chat.tokenizer.mask_token_id, int(module.config.vocab_size)
        if mask is None or mask >= size:
            raise ModelError(
                "the tokenizer has no mask token" if mask is None else "the mask token is beyond the vocabulary",
                where=str(chat.tokenizer.name_or_path),
                got=None if mask is None else f"id {mask}, vocabulary of {size}",
                expected="a mask token that the model has an embedding for",
                fix="use a model that was made for masked language modelling, or one from scratch (arch)",
            )
        self.mask_id = int(mask)
        self._head = self._probe_head()

    @cached_property
    def words(self) -> Tensor:
        """Ids of all tokens that are not special: what may be masked, and what may stand in for another."""
        tokenizer = self.chat.tokenizer
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        size, known = int(self.module.config.vocab_size), set(tokenizer.get_vocab().values())  # ids may have gaps
        return torch.tensor([i for i in sorted(known - special) if i < size], dtype=torch.long)

    def cloze_logp_R(self, forest: Forest, ids_R: Tensor, masked_R: Tensor) -> Tensor:
        """log p [R] of the true response tokens at their own places, where the text has `ids_R` instead of them.

        Only tokens with `masked_R` above 0 are computed; the others have 0, which is no log-probability.
        """
        own_R = torch.maximum(forest.predictor_R + 1, forest.start_B[forest.response_R])
        ids_T = forest.ids_T.index_copy(0, own_R, ids_R)
        prompt_B = torch.tensor(forest.prompt_length, device=forest.device)[forest.group_B]
        column_R = own_R - forest.start_B[forest.response_R] + prompt_B[forest.response_R]
        wanted_R = masked_R > 0
        places, found = [], []
        for rows in self.rows(replace(forest, ids_T=ids_T)):
            row_B = torch.full((forest.B,), -1, device=forest.device)
            row_B[rows.response] = torch.arange(len(rows.response), device=forest.device)
            place = torch.nonzero(wanted_R & (row_B[forest.response_R] >= 0)).flatten()
            if len(place):
                row = row_B[forest.response_R[place]]
                places.append(place)
                found.append(self._logp(rows, row, column_R[place], forest.target_R[place]))
        dtype = torch.promote_types(next(self.module.parameters()).dtype, torch.float32)
        logp_R = torch.zeros(forest.R, device=forest.device, dtype=found[0].dtype if found else dtype)
        return logp_R.index_put((torch.cat(places),), torch.cat(found)) if found else logp_R

    def _logp(self, rows: Rows, row: Tensor, column: Tensor, target: Tensor) -> Tensor:
        if self._head is None:
            logits = self.run(rows.ids, rows.mask)[row, column]
            log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
            return log_probs.gather(-1, target[:, None])[:, 0]
        hidden = self._before_head(self._head, rows, row, column)
        return token_logp(hidden, self._head.weight, self._head.bias, target, backend=self.backend)[0]

    def _before_head(self, head: nn.Linear, rows: Rows, row: Tensor, column: Tensor) -> Tensor:
        """The input of the head at some positions. The head itself gets no rows: its product is computed in chunks."""
        kept: list[Tensor] = []

        def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept.append(inputs[0][row, column])
            return (inputs[0][:0], *inputs[1:])

        handle = head.register_forward_pre_hook(take)
        try:
            self.run(rows.ids, rows.mask)
        finally:
            handle.remove()
        (hidden,) = kept
        return hidden

    @torch.no_grad()
    def _probe_head(self) -> nn.Linear | None:
        """The output layer, if logits are its product and nothing else; None sends all logits the plain way."""
        try:
            head = self.module.get_output_embeddings()
        except AttributeError:
            return None
        size = int(self.module.config.vocab_size)
        if not isinstance(head, nn.Linear) or head.out_features != size:
            return None
        ids = self._probe_ids(2, 6)
        rows = Rows(ids, torch.ones_like(ids), torch.arange(2, device=self.device))
        row, column = (x.flatten() for x in torch.meshgrid(torch.arange(2), torch.arange(6), indexing="ij"))
        training = self.module.training
        self.module.eval()
        try:
            expected = self.run(rows.ids, rows.mask).flatten(0, 1)
            with self.autocast():
                found = nn.functional.linear(self._before_head(head, rows, row, column), head.weight, head.bias)
        except (ValueError, RuntimeError, IndexError):  # it does more with its logits than hand them out
            return None
        finally:
            self.module.train(training)
        return head if self._same(found, expected) else None


class EncoderScalar(Encoder, ScalarModel):
    """A reward model on an encoder: the logit of its sequence classifier for prompt and response in one row.

    It reads the whole response at once, so an unfinished one has no value and it cannot be a value model.
    """

    @property
    def head(self) -> nn.Linear:
        """The classifier's last layer, whatever the family calls it."""
        head = self.module.get_submodule(classifier_name(self.module, 1))
        assert isinstance(head, nn.Linear)
        return head

    def score_B(self, forest: Forest) -> Tensor:
        """The reward of each response, from the whole row."""
        parts = [(rows.response, self.run(rows.ids, rows.mask)[:, 0]) for rows in self.rows(forest)]
        if not parts:
            return torch.zeros(0, device=forest.device)
        score = torch.cat([score for _, score in parts])
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        order = torch.cat([response for response, _ in parts]).argsort()
        return self.normalised(score[order])

    def at(self, forest: Forest, index: Tensor, hidden: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the scalar model's signature
        raise ModelError(
            "an encoder reads the whole response, so it has no value before each token",
            got=type(self.module).__name__,
            expected="a decoder as the value model",
            fix="set value_init=model: the value model then starts from the policy",
        )


def classifier_name(module: PreTrainedModel, labels: int) -> str:
    """The name of a sequence classifier's last layer inside its module, whatever the family calls it.

    Raises:
        ModelError: it has none with this number of outputs.
    """
    inside = {id(part) for part in module.base_model.modules()}
    last = [(n, p) for n, p in module.named_modules() if isinstance(p, nn.Linear) and id(p) not in inside]
    if not last or last[-1][1].out_features != labels:
        what = "the model has no scalar head" if labels == 1 else f"the model has no head of {labels} labels"
        raise ModelError(what, got=type(module).__name__, fix=f"load it with num_labels={labels}")
    return last[-1][0]
