"""Getting encoders: from a folder or hub name, or from scratch by preset; with a language head, or as reward models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerBase,
)

from tiltyard.data.chat import Chat
from tiltyard.data.tokenizer import for_encoder, id_count
from tiltyard.errors import ModelError
from tiltyard.models.backbone import DType
from tiltyard.models.encoder import EncoderScalar, MaskedModel, classifier_name, is_encoder
from tiltyard.models.folder import adapter_config, take_scale
from tiltyard.models.labels import Chosen, take_labels
from tiltyard.models.pretrained import (
    TORCH_DTYPE,
    Quantize,
    context_length,
    from_pretrained,
    load_config,
    load_tokenizer,
    preset_shape,
    resolve,
)
from tiltyard.models.vocabulary import check_vocabulary


def masked_from_scratch(
    preset: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, context: int = 1024, dtype: DType = "float32"
) -> MaskedModel:
    """A ModernBERT-shaped encoder with random weights and tied embeddings, of the same sizes as `from_scratch`."""
    width, layers, heads, _, inner = preset_shape(preset)
    config = ModernBertConfig(
        vocab_size=id_count(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=context,
        classifier_pooling="mean",  # its tokenizer has no [CLS] whose state could stand for the whole row
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = ModernBertForMaskedLM(config)
    return MaskedModel(module.to(TORCH_DTYPE[dtype]).eval(), Chat(tokenizer, max_length=context), dtype)


def load_masked_model(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    trust_remote_code: bool = False,
    quantize: Quantize = "none",
) -> MaskedModel:
    """Loads any encoder that `AutoModelForMaskedLM` supports, with its tokenizer, which must have a mask token."""
    name = resolve(source)
    if not is_encoder(load_config(name, trust_remote_code)):
        raise ModelError(
            "this model is no encoder, so tokens inside a text cannot be predicted from both sides",
            where=name,
            expected="an encoder (a masked language model)",
            fix="train a decoder with pretrain instead of mlm",
        )
    how: dict[str, Any] = {"device": device, "quantize": quantize}
    module, origin = from_pretrained(AutoModelForMaskedLM, name, dtype, trust_remote_code, **how)
    chat = _encoder_chat(name, module, trust_remote_code)
    notes = (*origin.notes, *check_vocabulary(chat, module, name))
    model = MaskedModel(module.eval(), chat, dtype)
    model.origin = replace(origin, notes=notes)
    return model


def _encoder_chat(name: str, module: nn.Module, trust: bool) -> Chat:
    limit = context_length(module.config)
    # RoBERTa's kind counts positions from behind the pad id: the table's first places are never used
    tables = (p for n, p in module.named_modules() if n.endswith("position_embeddings") and isinstance(p, nn.Embedding))
    lost = [table.padding_idx + 1 for table in tables if table.padding_idx is not None]
    tokenizer = for_encoder(load_tokenizer(name, trust_remote_code=trust))
    return Chat(tokenizer, max_length=limit and limit - max(lost, default=0))


def encoder_scalar(
    name: str, config: Any, chosen: Chosen | None, device: str, dtype: DType, seed: int, trust: bool, quantize: Quantize
) -> EncoderScalar:
    """A reward model on an encoder. New layers below a new last layer are initialised by `seed`.

    Args:
        chosen: the labels of its classifier that make the score; None: it has no classifier yet.
    """
    fresh = chosen is None
    known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    backbone = f"{known.base_model_prefix}." if known else ""

    def may_miss(key: str) -> bool:
        return not key.startswith(backbone) or "pooler" in key  # pretraining on masks alone leaves no pooler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, origin = from_pretrained(
            AutoModelForSequenceClassification,
            name,
            dtype,
            trust,
            device=device,
            quantize=quantize,
            may_miss=may_miss if fresh or adapter_config(name) else None,
            num_labels=1 if chosen is None else chosen.total,
        )
    if chosen is not None and not chosen.alone:
        take_labels(module, classifier_name(module, chosen.total), chosen.weights)
    chat = _encoder_chat(name, module, trust)
    notes = (*origin.notes, *check_vocabulary(chat, module, name))
    model = EncoderScalar(module.eval(), chat, dtype)
    model.origin = replace(origin, notes=notes)
    take_scale(model, name)
    head = model.head
    if fresh:
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    return model
