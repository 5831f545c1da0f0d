"""Language models over packed batches: log-probs, entropies and full distributions of response tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tiltyard.batch.forest import Forest
from tiltyard.batch.logp import chunk_rows, full_log_probs, token_logp
from tiltyard.errors import ModelError
from tiltyard.models import attention
from tiltyard.models.backbone import Backbone
from tiltyard.models.padding import Call


class LanguageModel(Backbone):
    """A policy or reference: log-probabilities of responses."""

    decoding: str = ""  # the way that a padded model is sampled from, once that has been tried; see sampling.padded

    @property
    def vocab_size(self) -> int:
        return int(self.head.weight.shape[0])

    @property
    def head(self) -> nn.Linear:
        head = self.module.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError("the output head is not a linear layer", got=type(head).__name__, expected="nn.Linear")
        return head

    def logits(self, hidden: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits in float32 (or wider) from hidden states, with the model's own caps and scales.

        `head`: the output head's product, where it has been made ready for few rows.
        """
        cap, scale = self._transform()
        z = (head or self.head)(hidden)
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        z = torch.tanh(z / cap) * cap if cap else z
        return z if scale == 1.0 else z * scale

    def _rows_call(self) -> Call:
        return lambda **kw: self.module(**kw).logits

    def _packed_and_padded(self, forest: Forest, masks: attention.Masks) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = super()._packed_and_padded(forest, masks)
        logits_T = self.logits(pairs["hidden states"][0])
        return {**pairs, "logits": (logits_T, self._padded(forest, lambda **kw: self.module(**kw).logits))}

    def _transform(self) -> tuple[float | None, float]:
        config = self.module.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies
        return cap, scale / float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides

    def logp_R(
        self, forest: Forest, *, temperature: float = 1.0, entropy: bool = False, hidden_R: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """log-probs [R] in nats of the response tokens at `temperature`, and entropies [R] if asked.

        `hidden_R`: the states [R, d] that predict them, where they have been computed already.
        """
        if self.packed:
            hidden_R = self.hidden_R(forest) if hidden_R is None else hidden_R
            cap, scale = self._transform()
            head = self.head
            return token_logp(
                hidden_R,
                head.weight,
                head.bias,
                forest.target_R,
                temperature=temperature,
                softcap=cap,
                scale=scale,
                entropy=entropy,
                backend=self.backend,
            )
        log_R = torch.log_softmax(self._logits_R(forest, hidden_R) / temperature, -1)
        logp_R = log_R.gather(-1, forest.target_R[:, None])[:, 0]
        return logp_R, -(log_R.exp() * log_R).sum(-1) if entropy else None

    def logits_T(self, forest: Forest) -> Tensor:
        """The logits of every token [T, V] of a padded model."""
        return self._padded(forest, lambda **kw: self.module(**kw).logits)

    def _logits_R(self, forest: Forest, hidden_R: Tensor | None = None) -> Tensor:
        """Logits [R, V] that predict response tokens, in float32 at least; from states [R, d] if they are given."""
        if hidden_R is not None:
            logits_R = self.logits(hidden_R)
        else:
            logits_R = self.logits_T(forest).index_select(0, forest.predictor_R)
        return logits_R.to(torch.promote_types(logits_R.dtype, torch.float32))

    @torch.no_grad()
    def full_log_probs(
        self, forest: Forest, rows: int, temperature: float, at: float, hidden_R: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields log-probs [rows, V] of response tokens at `temperature`, and those of the targets at `at`.

        One forward pass (none where `hidden_R` is given) and one vocabulary product, whatever the temperatures. See
        `logp.full_log_probs`.
        """
        if self.packed:
            hidden_R = self.hidden_R(forest) if hidden_R is None else hidden_R
            cap, scale = self._transform()
            head = self.head
            yield from full_log_probs(
                hidden_R,
                head.weight,
                head.bias,
                forest.target_R,
                temperature=temperature,
                at=at,
                softcap=cap,
                scale=scale,
                rows=rows,
                backend=self.backend,
            )
            return
        for z, target in zip(self._logits_R(forest, hidden_R).split(rows), forest.target_R.split(rows), strict=True):
            log_probs = torch.log_softmax(z / temperature, -1)
            yield (
                log_probs,
                (log_probs if at == temperature else torch.log_softmax(z / at, -1)).gather(-1, target[:, None])[:, 0],
            )

    def logp_and_negative_R(self, forest: Forest, k: int, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs [R] of the response tokens, and of one negative token each, from one pass of the backbone.

        The negative is sampled from the softmax over the k most likely tokens other than the response's own, with the
        uniform numbers `uniform_R`; the choice has no gradient, its log-prob has (Adolphs et al. 2022).
        """
        if self.packed:
            hidden_R = self.hidden_R(forest)
            cap, scale = self._transform()
            rows = chunk_rows(self.vocab_size, self.device.type)
            parts = zip(hidden_R.split(rows), forest.target_R.split(rows), uniform_R.split(rows), strict=True)
            with torch.no_grad():
                negative_R = torch.cat([sample_negatives(self.logits(h), target, k, u) for h, target, u in parts])
            weights = (self.head.weight, self.head.bias)
            logp_R, _ = token_logp(hidden_R, *weights, forest.target_R, softcap=cap, scale=scale, backend=self.backend)
            negative_logp_R, _ = token_logp(
                hidden_R, *weights, negative_R, softcap=cap, scale=scale, backend=self.backend
            )
            return logp_R, negative_logp_R
        log_R = torch.log_softmax(self._logits_R(forest), -1)
        negative_R = sample_negatives(log_R.detach(), forest.target_R, k, uniform_R)
        return tuple(log_R.gather(-1, x[:, None])[:, 0] for x in (forest.target_R, negative_R))  # type: ignore[return-value]


def sample_negatives(logits_R: Tensor, target_R: Tensor, k: int, uniform_R: Tensor) -> Tensor:
    """Ids [rows] of one of the k likeliest tokens other than the target, drawn by their softmax."""
    top = logits_R.topk(min(k + 1, logits_R.shape[-1]), -1)
    own = top.indices == target_R[:, None]
    own[:, -1] |= ~own.any(-1)  # a target that is not among them: the last one is one too many
    weights = torch.softmax(top.values.masked_fill(own, -torch.inf).double(), -1)
    place = (weights.cumsum(-1) <= uniform_R.double()[:, None]).sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    # rounding may leave the sum of the weights a little below 1: never the target itself
    place = torch.where(own.gather(-1, place), weights.argmax(-1, keepdim=True), place)
    return top.indices.gather(-1, place)[:, 0]


class ScalarModel(Backbone):
    """A reward or value model: one number at any position.

    The output is `gain * (raw - bias)`. A reward model's `bias` is set so that demonstrations average 0, its `gain`
    if wanted so that they have variance 1. `fold` moves both into the head, as far as it has a place for them: heads of
    decoders have no bias in transformers, so the shift stays in `config.json` as `reward_bias`, and transformers'
    logits differ from the reward by that constant. `reward_gain` is read from folders of earlier versions.

    The score of a response is read where transformers and TRL read it: at the last token that is not the model's
    padding token. In models that are made here that is the token that closes the response; a model of others whose
    padding is that same token (pad = eos) is read one before it.
    """

    @property
    def bias(self) -> float:
        return float(getattr(self.module.config, "reward_bias", 0.0) or 0.0)

    @bias.setter
    def bias(self, value: float) -> None:
        self.module.config.reward_bias = float(value)

    @property
    def gain(self) -> float:
        return float(getattr(self.module.config, "reward_gain", 1.0) or 1.0)

    @gain.setter
    def gain(self, value: float) -> None:
        self.module.config.reward_gain = float(value)

    def normalised(self, raw: Tensor) -> Tensor:
        """`gain * (raw - bias)`."""
        shifted = raw - self.bias
        return shifted if self.gain == 1.0 else shifted * self.gain

    @torch.no_grad()
    def fold(self) -> None:
        """Moves the gain into the head's weights, and the shift into its bias if it has one; the output stays."""
        head, gain = self.head, self.gain
        if gain != 1.0:
            head.weight.mul_(gain)
            if head.bias is not None:
                head.bias.mul_(gain)
            self.bias, self.gain = self.bias * gain, 1.0
        if head.bias is not None and self.bias:
            head.bias.sub_(self.bias)
            self.bias = 0.0

    @property
    def compares(self) -> bool:
        """True for a ranker, which was trained on two responses at once and has no score of a single one."""
        return bool(getattr(self.module.config, "reads_two_answers", False))

    @compares.setter
    def compares(self, value: bool) -> None:
        self.module.config.reads_two_answers = bool(value)

    @property
    def head(self) -> nn.Linear:
        head = getattr(self.module, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise ModelError("the model has no scalar head", fix="load it with num_labels=1")
        return head

    def at(self, forest: Forest, index: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Numbers [len(index)] at positions of T, float32 at least; `hidden`: the states there, if they are known."""
        hidden = self.hidden_T(forest).index_select(0, index) if hidden is None else hidden
        weight = self.head.weight
        if weight.dtype in (torch.float16, torch.bfloat16):  # gathered so (shard_dtype): three digits are not enough
            bias = None if self.head.bias is None else self.head.bias.float()
            return self.normalised(nn.functional.linear(hidden.float(), weight.float(), bias)[:, 0])
        return self.normalised(self.head(hidden.to(weight.dtype))[:, 0])

    @property
    def pad_id(self) -> int | None:
        """The token that the score is never read at, if there is one; None: it is read at the last token."""
        pad = getattr(self.module.config.get_text_config(), "pad_token_id", None)
        return None if pad is None or pad < 0 else int(pad)

    def read_B(self, forest: Forest) -> Tensor:
        """The index in T of the token where each response's score is read: the last that is not padding."""
        place_B = forest.last_B
        if self.pad_id is None:
            return place_B
        tree_G = torch.tensor(forest.tree_start, device=forest.device)
        first_B, prompt_B = tree_G[forest.group_B], forest.prompt_last_G[forest.group_B]
        while True:
            passed_B = (forest.ids_T[place_B] == self.pad_id) & (place_B > first_B)
            if not passed_B.any():
                return place_B
            # before a response's first token stands its prompt's last one
            before_B = torch.where(place_B == forest.start_B, prompt_B, place_B - 1)
            place_B = torch.where(passed_B, before_B, place_B)

    def score_B(self, forest: Forest) -> Tensor:
        """The reward of each response, read at the last token of the row that is not padding."""
        return self.at(forest, self.read_B(forest))

    def value_R(self, forest: Forest, hidden_R: Tensor | None = None) -> Tensor:
        """The value of the state before each response token."""
        return self.at(forest, forest.predictor_R, hidden_R)
