"""Scalar heads on a language model's backbone: on a copy of it, or on the policy's own backbone.

A head on the policy's own backbone costs d weights: one forward pass of the backbone gives log-probs and values, one
backward pass trains both, and the backbone's gradient is the sum of both losses' gradients.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tiltyard.errors import ModelError
from tiltyard.models.backbone import Backbone
from tiltyard.models.classifiers import scalar_class
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.lora import AdapterBinding, merged_adapters
from tiltyard.models.vocabulary import closing_id


def value_head(policy: LanguageModel) -> ScalarModel:
    """Returns a value model that is a head of zeros on the policy's own backbone.

    Raises:
        ModelError: an architecture whose sequence classifier has another backbone, or whose logits are not its output
            head's product with the states that a value can be read from.
    """
    if not policy.packed:
        _check_states(policy)
    return with_scalar_head(policy, AdapterBinding(policy.adapters, head=True))


def with_scalar_head(model: Backbone, binding: AdapterBinding) -> ScalarModel:
    """Returns a scalar model on another model's backbone, with a head of zeros."""
    with model.plain():
        module = classifier(model, model.backbone)
        made = ScalarModel(module.train(model.module.training), model.chat, model.dtype)
    made.binding, made.origin = binding, model.origin
    return made


def scalar_from(model: LanguageModel) -> ScalarModel:
    """Returns a reward or value model: a copy of a language model's backbone with a new scalar head of zeros."""
    with model.plain(), merged_adapters(model.backbone, model.adapters):
        module = classifier(model, copy.deepcopy(model.backbone))
    made = ScalarModel(module.eval(), model.chat, model.dtype)
    made.origin = model.origin
    return made


def classifier(model: Backbone, backbone: nn.Module) -> PreTrainedModel:
    """transformers' sequence classifier around a backbone of the model's kind, with one label and a head of zeros."""
    config = copy.deepcopy(model.module.config)
    config.num_labels = 1
    config.reads_whole_turn = False  # see `models.load.reads_whole_turn`
    config.__dict__.pop("quantization_config", None)  # it is saved in full precision
    config.pad_token_id = model.chat.pad_id if model.chat.pad_id != closing_id(model.chat) else None
    with torch.device("meta"):  # its backbone is replaced
        module: Any = scalar_class(config)._from_config(config)
    if type(module.base_model) is not type(backbone) or not isinstance(getattr(module, "score", None), nn.Linear):
        raise ModelError(
            "this architecture's classifier is no scalar head on the backbone of its language model",
            where=str(model.chat.tokenizer.name_or_path),
            got=f"{type(module).__name__} on {type(module.base_model).__name__}",
            expected=f"a head called `score` on {type(backbone).__name__}",
        )
    setattr(module, module.base_model_prefix, backbone)
    weight = next(backbone.parameters())
    module.score = nn.Linear(module.score.in_features, 1, bias=False, device=weight.device, dtype=weight.dtype)
    nn.init.zeros_(module.score.weight)
    return module


@torch.no_grad()
def _check_states(policy: LanguageModel) -> None:
    """Log-probs and values are read from the same states: a padded model's logits must be what its head makes of them.

    A packed model was held to that when it was loaded.
    """
    forest, training = policy.probe_forest(), policy.module.training
    policy.module.eval()
    expected_T, found_T = policy.logits_T(forest), policy.logits(policy.hidden_T(forest))
    policy.module.train(training)
    gap = float((found_T - expected_T).abs().max() / expected_T.abs().max().clamp_min(1e-6))
    if not gap < (5e-2 if policy.dtype == "bfloat16" else 1e-3):
        raise ModelError(
            "this model's logits are not its output head's product with its backbone's states",
            where=str(policy.chat.tokenizer.name_or_path),
            got=f"a difference of {gap:.2g} of their scale",
            fix="set value_init=model: the value model then has a backbone of its own",
        )
