"""Getting models: from a folder or hub name, or from scratch by preset.

Weights are read from safetensors only; code from a hub is never run unless `trust_remote_code` is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from tiltyard.data.chat import Chat
from tiltyard.data.tokenizer import id_count
from tiltyard.errors import ConfigError, ModelError
from tiltyard.models.adapters import clone_adapter
from tiltyard.models.backbone import Backbone, DType
from tiltyard.models.classifiers import SUFFIX, scalar_class
from tiltyard.models.encoder import EncoderScalar, is_encoder
from tiltyard.models.folder import adapter_config, base_of, has_scale, take_scale
from tiltyard.models.generation import mend_generation, take_ends
from tiltyard.models.heads import scalar_from, value_head
from tiltyard.models.labels import Chosen, adapter_labels, choose, label_names, take_labels
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load_encoder import encoder_scalar, load_masked_model, masked_from_scratch
from tiltyard.models.lora import blocks_of, merged_adapters
from tiltyard.models.pretrained import (
    PRESETS,
    TORCH_DTYPE,
    Blocks,
    Quantize,
    context_length,
    from_pretrained,
    load_config,
    load_tokenizer,
    pick_device,
    preset_shape,
    resolve,
)
from tiltyard.models.saving import check_saving, save_model
from tiltyard.models.vocabulary import check_vocabulary, closing_id

__all__ = [
    "PRESETS",
    "check_saving",
    "freeze_bottom",
    "from_scratch",
    "frozen_copy",
    "load_language_model",
    "load_masked_model",
    "load_reward_model",
    "load_scalar_model",
    "load_tokenizer",
    "masked_from_scratch",
    "pick_device",
    "save_model",
    "scalar_from",
    "set_dropout",
    "value_from",
    "value_head",
]


def from_scratch(
    preset: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, context: int = 1024, dtype: DType = "float32"
) -> LanguageModel:
    """A Llama-shaped decoder with random weights and tied embeddings, sized by `preset` (1m, 12m, 60m)."""
    width, layers, heads, kv_heads, inner = preset_shape(preset)
    config = LlamaConfig(
        vocab_size=id_count(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = LlamaForCausalLM(config)
    return LanguageModel(module.to(TORCH_DTYPE[dtype]), Chat(tokenizer, max_length=context), dtype)


def load_language_model(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    trust_remote_code: bool = False,
    quantize: Quantize = "none",
    blocks: Blocks = "memory",
) -> LanguageModel:
    """Loads any decoder that `AutoModelForCausalLM` supports, with its tokenizer and chat template.

    `quantize=4bit` is for a backbone that stays as it is (CUDA only, see docs/memory.md). With `blocks=files` the
    weights of the blocks stay in their files and each pass reads them, until the model is spread over processes.
    """
    name = resolve(source)
    if is_encoder(load_config(name, trust_remote_code)):
        raise ModelError(
            "this model is an encoder: it reads both ways and cannot write",
            where=name,
            expected="a decoder (a causal language model)",
            fix="use it as the model of a reward stage, or go on training it with mlm",
        )
    how: dict[str, Any] = {"device": device, "quantize": quantize, "blocks": blocks}
    module, origin = from_pretrained(AutoModelForCausalLM, name, dtype, trust_remote_code, **how)
    chat = Chat(load_tokenizer(name, trust_remote_code=trust_remote_code), max_length=context_length(module.config))
    notes = [*origin.notes, *take_ends(module, chat), *mend_generation(module, name)]
    notes += check_vocabulary(chat, module, name)
    model = LanguageModel(module.eval(), chat, dtype)
    model.origin = replace(origin, notes=tuple(notes))
    return model


def load_scalar_model(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    seed: int = 0,
    trust_remote_code: bool = False,
    quantize: Quantize = "none",
    labels: Mapping[str, float] | None = None,
    blocks: Blocks = "memory",
) -> ScalarModel:
    """Loads a reward or value model. Of a language model's folder the backbone is loaded and a new zero head is added.

    The new head starts at zero, so an untrained reward model scores everything 0 and a pairwise loss starts at ln 2.
    An encoder's folder gives a reward model that reads whole responses (`EncoderScalar`), which is no value model.

    Args:
        labels: of a classifier of several labels: the score is the sum of these logits times these weights, by name or
            index.
        blocks: see `load_language_model`; an encoder is read as a whole.

    Raises:
        ModelError: a classifier of several labels without `labels`, which are then listed; or labels that it has not.
    """
    name = resolve(source)
    config = load_config(name, trust_remote_code)
    fresh = not has_scalar_head(name, config)
    chosen = None if fresh and not labels else _chosen_labels(name, config, fresh, labels or {})
    if is_encoder(config):
        return encoder_scalar(name, config, chosen, device, dtype, seed, trust_remote_code, quantize)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    whole = not fresh and reads_whole_turn(name, config)
    chat = Chat(tokenizer, max_length=context_length(config), whole_turn=whole)
    new: dict[str, Any] = {"num_labels": 1 if chosen is None else chosen.total}
    # a head of others reads its score at the token that their config implies, one that began here at the closing token
    if fresh or (has_scale(name) and not _is_classifier(config)):
        new["pad_token_id"] = chat.pad_id if chat.pad_id != closing_id(chat) else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, origin = from_pretrained(
            scalar_class(config),
            name,
            dtype,
            trust_remote_code,
            device=device,
            quantize=quantize,
            blocks=blocks,
            may_miss=(lambda key: key.startswith("score.")) if fresh or adapter_config(name) else None,
            **new,
        )
    _make_scalar(module, chosen, fresh, name)
    notes = [*origin.notes, *check_vocabulary(chat, module, name)]
    module.config.reads_whole_turn = whole
    model = ScalarModel(module.eval(), chat, dtype)
    model.origin = replace(origin, notes=tuple(notes))
    take_scale(model, name)
    model.fold()  # a factor beside the weights is of earlier versions
    return model


def load_reward_model(source: str | Path, **options: Any) -> ScalarModel:
    """Loads a model that is to score responses, with the options of `load_scalar_model`.

    Raises:
        ModelError: its head was never trained (a language model's folder): every score would be 0.
    """
    model = load_scalar_model(source, **options)
    if bool(model.head.weight.any()):
        return model
    raise ModelError(
        "not a trained reward model: it would score every response the same",
        where=str(source),
        got=f"{type(model.module).__name__} without a score head, or with one that is all zeros",
        expected="a model whose score head was trained on comparisons",
        fix=f"train one (tiltyard train reward model={source} data=...), or name the folder of a reward model",
    )


def _make_scalar(module: nn.Module, chosen: Chosen | None, fresh: bool, name: str) -> None:
    """Gives the head of a classifier one output: the chosen sum of its labels, or zeros where it is new."""
    head = getattr(module, "score", None)
    if chosen is not None and isinstance(head, nn.Linear) and not chosen.alone:
        take_labels(module, "score", chosen.weights)
        head = module.score
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError("this architecture has no scalar head in transformers", where=name)
    if fresh:
        nn.init.zeros_(head.weight)


def has_scalar_head(name: str, config: Any) -> bool:
    """True if a folder holds the weights of a scalar head: a classifier, or an adapter with one."""
    adapter = adapter_config(name)
    if adapter is not None and base_of(name) != name:
        return "score" in (adapter.get("modules_to_save") or ()) or adapter.get("task_type") == "SEQ_CLS"
    return _is_classifier(config)


def _is_classifier(config: Any) -> bool:
    return any(SUFFIX in kind for kind in (config.architectures or []))


def _chosen_labels(name: str, config: Any, fresh: bool, labels: Mapping[str, float]) -> Chosen:
    if fresh:
        raise ModelError(
            "labels were chosen, and the model is no classifier",
            where=name,
            got=", ".join(config.architectures or []) or "no architectures in config.json",
            expected="a sequence classifier, whose labels have names",
            fix="leave label and labels out, or name a reward model",
        )
    if adapter_config(name) is not None and base_of(name) != name:
        return choose([f"LABEL_{i}" for i in range(adapter_labels(name) or 1)], labels, name)
    return choose(label_names(config), labels, name)


def reads_whole_turn(name: str, config: Any) -> bool:
    """True if a reward model reads the template's text behind the end of a turn too, as models of others do.

    Models that are made here say so in their config, or (older ones) have a shift in it or `backbone.json` beside it.
    """
    said = getattr(config, "reads_whole_turn", None)
    if said is not None:
        return bool(said)
    ours = hasattr(config, "reward_bias") or hasattr(config, "reads_two_answers")
    return not ours and not (Path(name) / "backbone.json").exists()


def value_from(source: ScalarModel) -> ScalarModel:
    """Returns a value model that is a trainable copy of the reward model."""
    check_values(source)
    with source.plain(), merged_adapters(source.backbone, source.adapters):
        module = copy.deepcopy(source.module)
    value = ScalarModel(module.requires_grad_(True), source.chat, source.dtype)
    value.origin = source.origin
    return value


def check_values(source: ScalarModel) -> None:
    """Refuses a reward model that has no value before each token."""
    if isinstance(source, EncoderScalar):
        raise ModelError(
            "the value model cannot start as a copy of a reward model that is an encoder",
            got=type(source.module).__name__,
            expected="a decoder, which has a value before each token",
            fix="set value_init=model: the value model then starts from the policy",
        )


def frozen_copy(model: LanguageModel, name: str = "ref") -> LanguageModel:
    """A reference: the same weights, no gradient, evaluation mode; of an adapter a second one on the same backbone.

    Args:
        name: of the second adapter.
    """
    if model.binding is not None:
        return clone_adapter(model, name)
    with model.plain():
        module = copy.deepcopy(model.module)
    twin = LanguageModel(module.eval().requires_grad_(False), model.chat, model.dtype)
    twin.origin = model.origin
    return twin


def freeze_bottom(model: Backbone, layers: int) -> int:
    """Freezes the embeddings and the lowest `layers` blocks; returns the number of frozen parameters.

    A head tied to the embeddings is frozen with them (that is what tying means).
    """
    if layers <= 0:
        return 0
    blocks = blocks_of(model.backbone)
    if layers > len(blocks):
        raise ConfigError(
            "cannot freeze that many layers", where="freeze_layers", got=layers, expected=f"0 to {len(blocks)}"
        )
    embeddings = [part for part in model.backbone.modules() if isinstance(part, nn.Embedding)]  # positions too
    for part in [*embeddings, *blocks[:layers]]:
        part.requires_grad_(False)
    return sum(p.numel() for p in model.module.parameters() if not p.requires_grad)


DROPOUTS = ("attention_dropout", "hidden_dropout", "activation_dropout", "dropout", "layerdrop")


def set_dropout(module: nn.Module, p: float | Literal["model"]) -> None:
    """Sets every dropout of a model to `p`; `model` leaves the architecture's own values. 0 is the toolkit's default:
    policy, reference and value must agree at step 0, and dropout would make their log-probs differ (methods 2.1)."""
    if p == "model":
        return
    own: Any = (getattr(part, "lora_dropout", None) for part in module.modules())
    adapters = {id(part) for parts in own if parts is not None for part in parts.values()}
    for part in module.modules():
        if isinstance(part, nn.Dropout) and id(part) not in adapters:  # an adapter's dropout is a setting of its own
            part.p = p
        for name in DROPOUTS:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, p if name != "layerdrop" else 0.0)
