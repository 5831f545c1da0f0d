"""Scalar heads on a language model's trunk: on a copy of it, or on the very trunk that the policy has.

A head on the policy's own trunk costs its d weights and nothing else: one pass of the trunk gives log-probs and values,
one backward pass trains both, and the trunk learns what both losses ask of it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError
from tiltyard.models.language import LanguageModel, ScalarModel, Trunk
from tiltyard.models.lora import Share, merged
from tiltyard.types import Group, Message, Prompt, Response


def value_head(policy: LanguageModel) -> ScalarModel:
    """A value model that is a head on the policy's own trunk; the head starts at zero.

    Raises:
        ModelError: an architecture whose sequence classifier has another trunk, or whose logits are not its output
            head's product with the states that a value can be read from.
    """
    if not policy.packed:
        _check_states(policy)
    return beside(policy, Share(policy.adapters, head=True))


def beside(model: Trunk, share: Share) -> ScalarModel:
    """A scalar model on another model's very trunk, with a head of zeros."""
    with model.plain():
        module = classifier(model, model.backbone)
        made = ScalarModel(module.train(model.module.training), model.chat, model.dtype)
    made.share = share
    return made


def scalar_from(model: LanguageModel) -> ScalarModel:
    """A reward or value model: a copy of a language model's trunk with a new scalar head that starts at zero."""
    with model.plain(), merged(model.backbone, model.adapters):
        module = classifier(model, copy.deepcopy(model.backbone))
    return ScalarModel(module.eval(), model.chat, model.dtype)


def classifier(model: Trunk, trunk: nn.Module) -> PreTrainedModel:
    """transformers' sequence classifier around a trunk of the model's kind, with one label and a head of zeros."""
    config = copy.deepcopy(model.module.config)
    config.num_labels = 1
    config.__dict__.pop("quantization_config", None)  # whatever the trunk's weights are, it is written at full width
    config.pad_token_id = model.chat.pad_id if model.chat.pad_id != closing_id(model.chat) else None
    with torch.device("meta"):  # its own trunk is thrown away
        module: Any = AutoModelForSequenceClassification.from_config(config)
    if type(module.base_model) is not type(trunk) or not isinstance(getattr(module, "score", None), nn.Linear):
        raise ModelError(
            "this architecture's classifier is no scalar head on the trunk of its language model",
            where=str(model.chat.tokenizer.name_or_path),
            got=f"{type(module).__name__} on {type(module.base_model).__name__}",
            expected=f"a head called `score` on {type(trunk).__name__}",
        )
    setattr(module, module.base_model_prefix, trunk)
    weight = next(trunk.parameters())
    module.score = nn.Linear(module.score.in_features, 1, bias=False, device=weight.device, dtype=weight.dtype)
    nn.init.zeros_(module.score.weight)
    return module


def closing_id(chat: Chat) -> int:
    """The id that ends every encoded answer."""
    group = Group(Prompt(messages=(Message("user", "Hi"),)), (Response(text="Hi"),))
    return chat.encode_group(group).responses[0].ids[-1]


@torch.no_grad()
def _check_states(policy: LanguageModel) -> None:
    """Log-probs and values are read from the same states: a padded model's logits must be what its head makes of them.

    A packed model was held to that when it was loaded.
    """
    forest, training = policy.small_forest(), policy.module.training
    policy.module.eval()
    expected_T, found_T = policy.logits_T(forest), policy.logits(policy.hidden_T(forest))
    policy.module.train(training)
    gap = float((found_T - expected_T).abs().max() / expected_T.abs().max().clamp_min(1e-6))
    if not gap < (5e-2 if policy.dtype == "bfloat16" else 1e-3):
        raise ModelError(
            "this model's logits are not its output head's product with its trunk's states",
            where=str(policy.chat.tokenizer.name_or_path),
            got=f"a difference of {gap:.2g} of their scale",
            fix="set value_init=model: the value model then has a trunk of its own",
        )
