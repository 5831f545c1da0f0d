"""Models as the rest of the house sees them: a language model gives log-probs, a scalar model gives numbers.

Both take a `Forest`. A decoder that uses transformers' attention interface is run packed; any other one is run through
a padded fallback that gives the same numbers (tests hold the two equal), and `packed` says which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiltyard.batch.forest import Forest, pack, padded_rows
from tiltyard.batch.logp import chunk_rows, full_log_probs, token_logp
from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError
from tiltyard.kernels import backend, fused_block, matmul
from tiltyard.models import attention, lora
from tiltyard.types import Group, Prompt, Response

DType = Literal["float32", "bfloat16", "float64"]


class Backbone:
    """A transformers model and the one way to get hidden states of a forest out of it.

    Args:
        module: a decoder with a head (`...ForCausalLM` or `...ForSequenceClassification`).
        chat: its tokenizer and template.
        dtype: arithmetic of the forward pass. Weights stay as loaded; `bfloat16` runs under autocast.
    """

    def __init__(self, module: PreTrainedModel, chat: Chat, dtype: DType = "float32"):
        self.module, self.chat, self.dtype = module, chat, dtype
        self.use_backend(backend.choose(module, dtype))
        self.binding: lora.AdapterBinding | None = None  # on whose backbone it stands; None: on its own
        self._plain_attention = module.config._attn_implementation or "sdpa"
        embeddings = module.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding):
            embeddings.padding_idx = None  # pad may equal eos, whose embedding must learn; no padding is computed here
        self.padded_reason = self._unpackable()
        self._use(attention.NAME if self.packed else self._plain_attention)

    def _unpackable(self) -> str:
        """Why this model runs padded; nothing if it can be packed."""
        return _unfit(self.module) or self._probe()

    def force_padded(self, reason: str) -> None:
        """Runs padded from now on, as for a model that cannot be packed."""
        self.padded_reason = reason
        self._use(self._plain_attention)

    def use_backend(self, chosen: backend.Backend) -> None:
        """Computes with this backend from now on."""
        self.backend = chosen
        matmul.use_onednn_linear(self.module, chosen)

    @property
    def packed(self) -> bool:
        return not self.padded_reason

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def backbone(self) -> nn.Module:
        return self.module.base_model

    @property
    def trainable(self) -> nn.Module:
        """The module that holds this model's own parameters: all, or an adapter and head on a shared backbone."""
        return self.module if self.binding is None else lora.trainable_part(self.module, self.backbone, self.binding)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that its states are computed with."""
        return () if self.binding is None else self.binding.adapters

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.trainable.parameters() if p.requires_grad]

    def shares_hidden_states(self, other: Backbone) -> bool:
        """Whether both models read the same hidden states, so that one pass of the backbone serves both."""
        same_trunk = self.backbone is other.backbone and self.packed == other.packed
        return same_trunk and self.adapters == other.adapters

    def _use(self, implementation: str) -> None:
        for part in (self.module, self.backbone):  # a head on another's backbone has a config of its own
            part.config._attn_implementation = implementation  # type: ignore[union-attr]

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Inside it the module works as transformers made it (padded batches, attention masks, generate)."""
        before = self.module.config._attn_implementation
        self._use(self._plain_attention)
        try:
            yield
        finally:
            self._use(before)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Every pass of the module stands inside it: the arithmetic that was asked for, and the model's adapters on."""
        half = self.dtype == "bfloat16"
        with (
            lora.using_adapters(self.backbone, self.adapters),
            torch.autocast(self.device.type, dtype=torch.bfloat16) if half else nullcontext(),
        ):
            yield

    def checkpoint_activations(self) -> None:
        """From now on the backward pass computes each block's activations again instead of keeping them."""
        self.module.activation_checkpointing_enable({"use_reentrant": False})
        lora.checkpoint_with_adapters(self.module, self.backbone)

    def hidden_T(self, forest: Forest, cache: Any = None) -> Tensor:
        """Last hidden states [T, d] of every token of the forest. `cache` collects keys and values for decoding."""
        if not self.packed:
            return self._padded(forest, lambda **kw: self.backbone(**kw).last_hidden_state)
        rounded = self.backend.linear == "onednn" and self.dtype == "float32" and forest.T > matmul.ROUND
        ids, position = forest.padded_to(matmul.ROUND if rounded else 1)
        with self.autocast():
            if fused_block.is_supported(self.backbone, forest, self.backend):
                hidden_T = fused_block.hidden_T(self.backbone, ids, position, forest, self.backend, cache)
                return hidden_T[: forest.T]
            out = self.backbone(
                input_ids=ids[None],
                position_ids=position[None],
                use_cache=False,
                forest=forest,
                backend=self.backend,
                cache=cache,
            )
        return out.last_hidden_state[0, : forest.T]

    def hidden_R(self, forest: Forest) -> Tensor:
        """Of those the states [R, d] that predict response tokens."""
        return self.hidden_T(forest).index_select(0, forest.predictor_R)

    def _padded(self, forest: Forest, call: Any) -> Tensor:
        """The same [T, ...] from a right-padded batch with one row a response, the prompt repeated in each."""
        rows, places = padded_rows(forest)
        ids, place_T = rows[0].to(forest.device), places.to(forest.device)
        # Padding stands on the right, where causal attention hides it from every real token already. It is not masked
        # besides: a row that may attend to nothing (padding beyond a sliding window) would be NaN, and NaN spreads.
        mask = torch.ones_like(ids)
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        with self.autocast(), self.plain():
            out = call(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False)
        return out.flatten(0, 1).index_select(0, place_T)

    def probe_forest(self) -> Forest:
        """Two small random trees, the same every time, to try the model on."""
        generator = torch.Generator().manual_seed(0)
        size = self.module.config.get_text_config().vocab_size
        draw = lambda n: tuple(torch.randint(0, size, (n,), generator=generator).tolist())  # noqa: E731
        trees = [Group(Prompt(ids=draw(4)), (Response(ids=draw(3)), Response(ids=draw(5)))) for _ in range(2)]
        return pack(trees, self.device)

    def _probe(self) -> str:
        """Runs one small random tree packed and padded; a difference means that packing is not safe for this model."""
        forest = self.probe_forest()
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                self._use(attention.NAME)
                self.padded_reason = ""
                pairs = self._packed_and_padded(forest)
        except (ModelError, TypeError, RuntimeError, AttributeError, ValueError) as error:
            return f"packing is not supported by this model ({type(error).__name__}: {str(error)[:120]})"
        finally:
            self._use(self._plain_attention)
            self.module.train(training)
        if _has_window(self.module) != any(w is not None for tile in forest.tiles for w in tile.masks):
            return "the model does not tell the attention interface about its sliding window"
        for what, (packed, padded) in pairs.items():
            scale = padded.float().abs().max().clamp_min(1e-6)
            gap = ((packed - padded).float().abs().max() / scale).item()
            if not gap < (1e-3 if self.dtype != "bfloat16" and packed.dtype != torch.bfloat16 else 5e-2):
                return f"packed and padded {what} differ by {gap:.2g} of their scale"
        return ""

    def _packed_and_padded(self, forest: Forest) -> dict[str, tuple[Tensor, Tensor]]:
        """What the probe compares: name -> the same tensor by both roads."""
        packed = self.hidden_T(forest)
        return {"hidden states": (packed, self._padded(forest, lambda **kw: self.backbone(**kw).last_hidden_state))}


def _unfit(module: PreTrainedModel) -> str:
    """Why a model cannot be packed, as far as its class and config tell."""
    if not getattr(module, "_supports_attention_backend", False):
        return "the model does not use the attention interface"
    kinds = set(getattr(module.config.get_text_config(), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"the model has layers of another kind: {', '.join(sorted(other))}"
    return ""


def _has_window(module: PreTrainedModel) -> bool:
    config = module.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (not kinds or "sliding_attention" in kinds)


class LanguageModel(Backbone):
    """A policy or reference: log-probabilities of responses."""

    decoder_agrees: bool | None = None  # whether the backend's decoder gives the modules' numbers; None: not compared

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

    def _packed_and_padded(self, forest: Forest) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = super()._packed_and_padded(forest)
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
        """Of those the logits that predict response tokens [R, V], in float32 at least; or from states [R, d]."""
        if hidden_R is not None:
            logits_R = self.logits(hidden_R)
        else:
            logits_R = self.logits_T(forest).index_select(0, forest.predictor_R)
        return logits_R.to(torch.promote_types(logits_R.dtype, torch.float32))

    @torch.no_grad()
    def full_log_probs(
        self, forest: Forest, rows: int, temperature: float, at: float, hidden_R: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole laws of the response tokens at `temperature`, `rows` at a time, and the targets' log-probs at `at`.

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
            law = torch.log_softmax(z / temperature, -1)
            yield law, (law if at == temperature else torch.log_softmax(z / at, -1)).gather(-1, target[:, None])[:, 0]

    def logp_and_negative_R(self, forest: Forest, k: int, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs [R] of the response tokens, and of one negative token each, from one pass of the backbone.

        The negative is sampled from the softmax over the k most likely tokens other than the response's own, with the
        uniform numbers `uniform_R`; the choice has no gradient, its log-prob has (Adolphs et al. 2022).
        """
        if self.packed:
            hidden_R = self.hidden_R(forest)
            cap, scale = self._transform()
            rows = chunk_rows(self.vocab_size)
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
    """A reward or value model: one number per position, read where it is asked for.

    What comes out is `gain * (raw - bias)`. A reward model's `bias` is set so that demonstrations average 0, its `gain`
    if wanted so that they have variance 1. Both are kept in `config.json` as `reward_bias` and `reward_gain`
    (transformers ignores them: there the raw score comes out).
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

    @property
    def compares(self) -> bool:
        """Whether it was trained to read two answers at once (a ranker), and so knows no score of a single one."""
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
        score = self.head(hidden.to(self.head.weight.dtype))[:, 0]
        return self.normalised(score)

    def score_B(self, forest: Forest) -> Tensor:
        """The reward of each response, read at its last token."""
        return self.at(forest, forest.last_B)

    def value_R(self, forest: Forest, hidden_R: Tensor | None = None) -> Tensor:
        """The value of the state before each response token."""
        return self.at(forest, forest.predictor_R, hidden_R)
