"""Sequence classifiers of decoder families: transformers' own, and where it has none the same head on the decoder."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from tiltyard.errors import ModelError

SUFFIX = "ForSequenceClassification"


def scalar_class(config: Any) -> Any:
    """The class of a scalar model on the decoder of a config.

    Families without a sequence classifier in transformers (Granite, Cohere, Ernie 4.5, Mamba, ...) get the one that
    transformers gives to most others: one bias-free linear layer `score` over the decoder's last states. Their folders
    name the class as transformers would (`GraniteForSequenceClassification`); this module is needed to load them.

    Raises:
        ModelError: the family has no decoder that such a head can stand on.
    """
    kind = type(config)
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind]
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_MAPPING:
        return _own(kind, config)
    if getattr(config, "auto_map", None):
        return AutoModelForSequenceClassification  # code of the model's own folder
    raise ModelError(
        "no reward or value model can be made of this family: transformers has neither a sequence classifier nor a "
        "decoder of it",
        got=kind.__name__,
        expected="a decoder that AutoModelForCausalLM knows, or an encoder",
        fix="take a model of another family as the start of the reward model",
    )


def is_own(module: Any) -> bool:
    """True if transformers by itself could not load this scalar model."""
    return type(module) in _OWN.values()


_OWN: dict[type, Any] = {}


def _own(kind: type, config: Any) -> Any:
    """The class that this module makes for a family: one for all its configs."""
    if kind not in _OWN:
        causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        decoder: Any = MODEL_MAPPING[kind]
        with torch.device("meta"):
            parts = dict(causal._from_config(copy.deepcopy(config)).named_children())
        prefix = next((name for name, part in parts.items() if type(part) is decoder), None)
        family = next((part for part in decoder.__mro__ if _is_family(part)), None)
        if prefix is None or family is None:
            raise ModelError(
                "no reward or value model can be made of this family: its language model stands on another decoder",
                got=f"{causal.__name__}, not on {decoder.__name__}",
                fix="take a model of another family as the start of the reward model",
            )
        name = re.sub(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$", "", causal.__name__) + SUFFIX
        # transformers looks into a class's module for what the family can do (experts)
        members = {"base_model_prefix": prefix, "__module__": causal.__module__}
        _OWN[kind] = type(name, (GenericForSequenceClassification, family), members)
    return _OWN[kind]


def _is_family(part: type) -> bool:
    base = part is not PreTrainedModel and issubclass(part, PreTrainedModel)
    return base and part.__name__.endswith("PreTrainedModel")
