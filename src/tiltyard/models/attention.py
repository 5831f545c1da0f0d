"""One attention function for every Hugging Face decoder that uses the attention interface.

It is registered under the name `tiltyard` and finds its batch in the keyword arguments that transformers hands down
from the model call to every layer:

* `forest`: packed trees (training, scoring). Tensors arrive as [1, H, T, D].
* `forest` and `cache`: the same, and keys and values of every prompt are kept for decoding (prefill).
* `cache` alone: one new token per running row (decoding). Tensors arrive as [rows, H, 1, D].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from tiltyard.batch.forest import AttentionTile, Forest
from tiltyard.errors import ModelError
from tiltyard.kernels import tree_attention
from tiltyard.kernels.base import TORCH, Backend
from tiltyard.kernels.layer_cache import LayerCache

NAME = "tiltyard"
Masks = dict[tuple[int, int | None], Tensor | None]  # (tile, window) -> its mask, for the layers of one pass
UNSUPPORTED = ("s_aux", "indices", "block_indices", "bias", "position_bias")  # attention sinks, sparse choices, biases


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k') v on [n, H, L, D]; plain causal where `mask` is None. Grouped keys are repeated here."""
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    if softcap is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
    # Gemma 2 caps the attention logits, which the fused kernels do not know
    logits = q @ k.transpose(-1, -2) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    logits = torch.tanh(logits / softcap) * softcap
    if mask is None:
        length = q.shape[-2]
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    return functional.dropout(logits.masked_fill(~mask, float("-inf")).softmax(-1), dropout) @ v


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - transformers' signature
    scaling: float | None = None,
    dropout: float = 0.0,
    forest: Forest | None = None,
    cache: LayerCache | None = None,
    masks: Masks | None = None,
    backend: Backend = TORCH,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over packed trees or a decoding cache; returns [batch, tokens, H, D] as transformers expects."""
    if odd := [name for name in UNSUPPORTED if others.get(name) is not None]:
        raise ModelError(
            "the packed attention does not support this", got=", ".join(odd), fix="the padded path is used"
        )
    if forest is None:
        if cache is None:
            raise ModelError("the model was called without a forest or a cache", fix="call it through LanguageModel")
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        new = (query[:, :, 0], key[:, :, 0], value[:, :, 0])
        return cache.attend(module.layer_idx, *new, scale, sliding_window, softcap)[:, None], None  # type: ignore[arg-type]
    if cache is not None:
        cache.prefill(module.layer_idx, key[0], value[0])  # type: ignore[arg-type]
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    plain = sliding_window is None and softcap is None and not dropout
    if plain and tree_attention.is_supported(q_THD, v_THD, backend):
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return tree_attention.attention(q_THD, k_THD, v_THD, forest.segments, scale)[None], None
    outs = []
    masks = {} if masks is None else masks
    for number, tile in enumerate(forest.tiles):
        q, k, v = (_lay(x, tile.index, tile.n, tile.length) for x in (q_THD, k_THD, v_THD))
        out = attend(q, k, v, _mask(tile, number, sliding_window, masks), scaling, softcap, dropout)
        outs.append(out.transpose(1, 2).reshape(tile.n * tile.length, *out.shape[1::2]))
    flat = outs[0] if len(outs) == 1 else torch.cat(outs)
    return forest.untile(flat, query.shape[2])[None], None


def _mask(tile: AttentionTile, number: int, window: int | None, masks: Masks) -> Tensor | None:
    """A tile's mask, built once for all layers of a pass with the same window."""
    if (number, window) not in masks:
        unlimited = window is None or tile.within(window)
        masks[number, window] = (
            _mask(tile, number, None, masks) if unlimited and window is not None else tile.mask(window)
        )
    return masks[number, window]


def _lay(x_THD: Tensor, index: Tensor, n: int, length: int) -> Tensor:
    return x_THD.index_select(0, index).view(n, length, *x_THD.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, forest_attention)
