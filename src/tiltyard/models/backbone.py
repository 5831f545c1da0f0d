"""Hidden states of packed batches: what language models and scalar models have in common.

A decoder that uses transformers' attention interface runs packed; any other one runs padded and gives the same numbers
(the tests compare them); `Backbone.packed` tells which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiltyard.batch.forest import Forest, pack, padded_rows
from tiltyard.data.chat import Chat
from tiltyard.distributed.parts import is_spread
from tiltyard.distributed.unread import with_first_block
from tiltyard.errors import ModelError
from tiltyard.kernels import backend, fused_block, matmul
from tiltyard.kernels.base import Backend
from tiltyard.kernels.layer_cache import LayerCache
from tiltyard.models import attention, lora
from tiltyard.models.padding import Call, reason_for_rows_alone, run_rows, takes_positions
from tiltyard.types import Group, Prompt, Response

DType = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True)
class Origin:
    """Facts about the files of a model, for the folder that is written of it.

    Attributes:
        width: of most of their numbers; None: a new model, or one that was made in memory.
        widths: of the tensors in the files, by name.
        notes: lines that the user should see: what was left out, completed or understood in one way of several.
    """

    width: torch.dtype | None = None
    widths: Mapping[str, torch.dtype] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Backbone:
    """A transformers model that computes the hidden states of a forest.

    Args:
        module: a decoder with a head (`...ForCausalLM` or `...ForSequenceClassification`).
        chat: its tokenizer and template.
        dtype: arithmetic of the forward pass. Weights stay as loaded; `bfloat16` rounds the factors of products (CPUs,
            for the families that the kernels know) or runs under autocast.

    Attributes:
        origin: what the files were like that it was loaded from.
    """

    origin = Origin()
    decoder_agrees: bool | None = None  # whether the backend's decoder gives the modules' numbers; None: not compared

    def __init__(self, module: PreTrainedModel, chat: Chat, dtype: DType = "float32"):
        self.module, self.chat, self.dtype = module, chat, dtype
        with with_first_block(module):
            self.use_backend(backend.choose(module, dtype))
        self.binding: lora.AdapterBinding | None = None  # on a shared backbone; None: all parameters are its own
        own = module.config._attn_implementation
        self._plain_attention = (
            "sdpa" if own in (None, "", attention.NAME) else own
        )  # the module may be another model's
        embeddings = module.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding):
            embeddings.padding_idx = (
                None  # pad may be eos, whose embedding must learn; no loss reads what padding computes
            )
        self._positioned = takes_positions(module)
        self.rows_alone = ""  # of a padded model: the reason that its rows cannot share a batch
        self.padded_reason = self._unpackable()
        self._use(attention.NAME if self.packed else self._plain_attention)

    def _unpackable(self) -> str:
        """Returns the reason that this model must run padded; empty if it can be packed.

        Raises:
            ModelError: it cannot run padded either, since it reads ahead.
        """
        reason = _unfit(self.module) or self._probe()
        if reason:
            training = self.module.training
            self.module.eval()
            with self.autocast(), self.plain():
                config, how = self.module.config.get_text_config(), {"positions": self._positioned}
                half = self.dtype == "bfloat16"
                self.rows_alone = reason_for_rows_alone(self._rows_call(), config, self.device, half=half, **how)
            self.module.train(training)
        return reason

    def _rows_call(self) -> Call:
        """The numbers of padded rows by which it is decided whether rows may share a batch."""
        return lambda **kw: self.backbone(**kw).last_hidden_state

    def force_padded(self, reason: str) -> None:
        """Makes every later pass padded, as for a model that cannot be packed."""
        self.padded_reason = reason
        self._use(self._plain_attention)

    def use_backend(self, chosen: Backend) -> None:
        """Sets the backend of all later passes."""
        self.backend = chosen
        matmul.use_onednn_linear(self.module, chosen)

    @property
    def packed(self) -> bool:
        return not self.padded_reason

    @property
    def calls_blocks_once(self) -> bool:
        """True if a pass over a forest calls each block once, however many responses it has."""
        return not self.rows_alone

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
        """The adapters that are active in its forward pass."""
        return () if self.binding is None else self.binding.adapters

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.trainable.parameters() if p.requires_grad]

    def shares_hidden_states(self, other: Backbone) -> bool:
        """True if both models have the same hidden states, so that one pass of the backbone serves both."""
        same_trunk = self.backbone is other.backbone and self.packed == other.packed
        return same_trunk and self.adapters == other.adapters

    def _use(self, implementation: str) -> None:
        for part in (self.module, self.backbone):  # a head on a shared backbone has a config of its own
            part.config._attn_implementation = implementation  # type: ignore[union-attr]

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Context: the module runs with its own attention (padded batches, attention masks, generate)."""
        before = self.module.config._attn_implementation
        self._use(self._plain_attention)
        try:
            yield
        finally:
            self._use(before)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Context of every forward pass: the arithmetic of `dtype`, and the model's adapters active.

        Copies of weights in bfloat16 are kept until its end, but not those of a model that is spread over processes:
        they would add up to the whole model.
        """
        half, kept = self.dtype == "bfloat16", not is_spread(self.module)
        with (
            lora.using_adapters(self.backbone, self.adapters),
            torch.autocast(self.device.type, torch.bfloat16, cache_enabled=kept) if half else nullcontext(),
        ):
            yield

    def checkpoint_activations(self) -> None:
        """Turns on gradient checkpointing: the backward pass recomputes each block's activations."""
        self.module.activation_checkpointing_enable({"use_reentrant": False})
        lora.checkpoint_with_adapters(self.module, self.backbone)

    def hidden_T(self, forest: Forest, cache: LayerCache | None = None, masks: attention.Masks | None = None) -> Tensor:
        """Computes the last hidden states [T, d] of every token of the forest.

        Args:
            cache: stores keys and values for decoding. masks: filled with the attention masks of the pass.
        """
        if not self.packed:
            return self._padded(forest, lambda **kw: self.backbone(**kw).last_hidden_state)
        rounded = self.backend.linear in ("onednn", "bfloat16") and forest.T > matmul.ROUND
        ids, position = forest.padded_to(matmul.ROUND if rounded else 1)
        with lora.using_adapters(self.backbone, self.adapters):
            if forest.B and fused_block.is_supported(self.backbone, forest.device, self.backend):
                hidden_T = fused_block.hidden_T(self.backbone, ids, position, forest.segments, self.backend, cache)
                return hidden_T[: forest.T]
        with self.autocast():
            out = self.backbone(
                input_ids=ids[None],
                position_ids=position[None],
                use_cache=False,
                forest=forest,
                backend=self.backend,
                cache=cache,
                masks={} if masks is None else masks,
            )
        return out.last_hidden_state[0, : forest.T]

    def hidden_R(self, forest: Forest) -> Tensor:
        """Computes the states [R, d] that predict response tokens."""
        return self.hidden_T(forest).index_select(0, forest.predictor_R)

    def _padded(self, forest: Forest, call: Any) -> Tensor:
        """The same [T, ...] from a right-padded batch with one row a response, the prompt repeated in each."""
        (ids, mask), places = padded_rows(forest)
        out = self.run_rows(ids.to(forest.device), mask.sum(1).tolist(), call)
        return out.flatten(0, 1).index_select(0, places.to(forest.device))

    def run_rows(self, ids_NL: Tensor, length_N: Sequence[int], call: Call) -> Tensor:
        """Computes `call` [N, L, ...] for right-padded rows, together or each alone as the architecture needs it."""
        with self.autocast(), self.plain():
            return run_rows(ids_NL, length_N, call, alone=bool(self.rows_alone), positions=self._positioned)

    def probe_forest(self) -> Forest:
        """Two small random trees, always the same, for the self-tests of a model."""
        generator = torch.Generator().manual_seed(0)
        size = self.module.config.get_text_config().vocab_size
        draw = lambda n: tuple(torch.randint(0, size, (n,), generator=generator).tolist())  # noqa: E731
        trees = [Group(Prompt(ids=draw(4)), (Response(ids=draw(3)), Response(ids=draw(5)))) for _ in range(2)]
        return pack(trees, self.device)

    def _probe(self) -> str:
        """Runs one small random tree packed and padded; a difference means that packing is not safe for this model."""
        forest = self.probe_forest()
        training = self.module.training
        masks: attention.Masks = {}
        self.module.eval()
        try:
            with torch.no_grad(), self.in_float32():
                self._use(attention.NAME)
                self.padded_reason = ""
                pairs = self._packed_and_padded(forest, masks)
                half = self.dtype == "bfloat16"
        except (ModelError, TypeError, RuntimeError, AttributeError, ValueError) as error:
            return f"packing is not supported by this model ({type(error).__name__}: {str(error)[:120]})"
        finally:
            self._use(self._plain_attention)
            self.module.train(training)
        if _has_window(self.module) != any(window is not None for _, window in masks):
            return "the model does not pass its sliding window to the attention interface"
        for what, (packed, padded) in pairs.items():
            scale = padded.float().abs().max().clamp_min(1e-6)
            gap = ((packed - padded).float().abs().max() / scale).item()
            if not gap < (5e-2 if half or packed.dtype == torch.bfloat16 else 1e-3):
                return f"packed and padded {what} differ by {gap:.2g} of their scale"
        return ""

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Context: a model with float32 weights that computes in bfloat16 computes in float32, which hides nothing."""
        before = self.dtype, self.backend
        if self.dtype == "bfloat16" and all(p.dtype == torch.float32 for p in self.module.parameters()):
            self.dtype, self.backend = "float32", replace(self.backend, linear="blas")
        try:
            yield
        finally:
            self.dtype, self.backend = before

    def _packed_and_padded(self, forest: Forest, masks: attention.Masks) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> the same tensor computed packed and padded, which `_probe` compares."""
        packed = self.hidden_T(forest, masks=masks)
        return {"hidden states": (packed, self._padded(forest, lambda **kw: self.backbone(**kw).last_hidden_state))}


def _unfit(module: PreTrainedModel) -> str:
    """Returns the reason that a model cannot be packed, from its class and config; empty if there is none."""
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
