"""Models as adapters on one frozen backbone: policy, reference, reward and value in little more memory than one."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiltyard.data.chat import Chat
from tiltyard.distributed.parts import as_parts
from tiltyard.distributed.unread import Source, sources_of
from tiltyard.errors import CheckpointError, ModelError
from tiltyard.files import give_usual_mode
from tiltyard.models.backbone import Backbone
from tiltyard.models.folder import BACKBONE
from tiltyard.models.heads import with_scalar_head
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.lora import (
    AdapterBinding,
    Lora,
    adapted_layers,
    adapter_settings,
    adapter_tensors,
    add_adapter,
    base_weights,
    copy_adapter,
    peft_config,
    reinit_adapter,
    set_active_adapters,
)
from tiltyard.models.pretrained import load_tokenizer, write_errors

M = TypeVar("M", bound=Backbone)
PEFT, WEIGHTS = "base_model.model.", "adapter_model.safetensors"  # PEFT's names


def adapt(model: M, lora: Lora, name: str = "policy", seed: int = 0) -> M:
    """Adds an adapter to a model in place and freezes all else but a scalar model's head; returns the model.

    Args:
        name: of the adapter; a backbone may hold several. seed: of its first matrix; the second starts at zero, so the
            model computes what it did before.
    """
    if adapted_layers(model.backbone):
        raise ModelError("the model has an adapter already", got=name, fix="adapt it once, then save it merged")
    model.module.requires_grad_(False)
    add_adapter(model.backbone, name, lora, seed)
    model.binding = AdapterBinding((name,), name, isinstance(model, ScalarModel))
    set_active_adapters(model.backbone, model.adapters)
    _train_head(model)
    return model


def _train_head(model: Backbone) -> None:
    for part in model.module.children() if isinstance(model, ScalarModel) else ():
        if part is not model.backbone:
            part.requires_grad_(True)


def without_adapters(model: LanguageModel) -> LanguageModel:
    """Returns the reference of an adapted model: the same module, adapters inactive; other models as they are."""
    if model.binding is None:
        return model
    base = copy.copy(model)
    base.binding = AdapterBinding()
    return base


def clone_adapter(model: LanguageModel, name: str) -> LanguageModel:
    """Returns a frozen copy of an adapted model: a second adapter on the same backbone, with the present weights."""
    assert model.binding is not None
    add_adapter(model.backbone, name, *adapter_settings(model.backbone, model.binding.trainable))
    copy_adapter(model.backbone, model.binding.trainable, name)
    twin = copy.copy(model)
    twin.binding = AdapterBinding((name,), name)
    twin.trainable.requires_grad_(False)
    return twin


def copy_weights_(model: Backbone, source: Backbone) -> None:
    """Copies the weights of another model with the same architecture or backbone, in place.

    Where parameters are spread over processes (`distributed.sharded`), each process copies its parts.
    """
    with as_parts(model.module, source.module):
        if model.binding is None or source.binding is None:
            model.module.load_state_dict(source.module.state_dict())
        elif source.binding.trainable:
            copy_adapter(model.backbone, source.binding.trainable, model.binding.trainable)
        else:
            reinit_adapter(model.backbone, model.binding.trainable)  # the source is the backbone without any adapter


def value_adapter(source: Backbone, lora: Lora, seed: int = 0) -> ScalarModel:
    """Returns a value model on another model's frozen backbone, with an adapter and a head of its own.

    From a reward model it starts with the same output: its adapter is added to the reward model's, if that has one.
    From a policy it starts at zero, on the backbone without adapters.
    """
    below = source.adapters if isinstance(source, ScalarModel) else ()
    add_adapter(source.backbone, "value", lora, seed)
    value = with_scalar_head(source, AdapterBinding((*below, "value"), "value", head=True))
    if isinstance(source, ScalarModel):
        value.head.load_state_dict(source.head.state_dict())
    return value


# ------------------------------------------------------------------------------------------------------------- on disk


def save_adapter(model: Backbone, folder: Path) -> None:
    """Writes the model's adapter, and a scalar model's head, in the form that PEFT loads, with what it was made for."""
    assert model.binding is not None
    write_adapter(model, folder)
    lora, _ = adapter_settings(model.backbone, model.binding.trainable)
    facts: dict[str, Any] = {"backbone": backbone_hash(model.backbone), "lora": lora.model_dump()}
    if isinstance(model, ScalarModel):
        facts |= {"bias": model.bias, "gain": model.gain, "compares": model.compares}
    with write_errors(folder):
        (folder / BACKBONE).write_text(json.dumps(facts, indent=2) + "\n")
        give_usual_mode(folder)


def write_adapter(model: Backbone, folder: Path) -> None:
    """Writes the files of `save_adapter` that PEFT and vLLM load, and no more."""
    assert model.binding is not None
    backbone, (lora, _) = model.backbone, adapter_settings(model.backbone, model.binding.trainable)
    own = adapter_tensors(backbone, model.binding.trainable)
    heads = [name for name, part in model.module.named_children() if part is not backbone and list(part.parameters())]
    task = {"task_type": "CAUSAL_LM"} if isinstance(model, LanguageModel) else {}
    if model.binding.head:
        task = {"task_type": "SEQ_CLS", "modules_to_save": heads}  # type: ignore[dict-item]
    inside = f"{model.module.base_model_prefix}."
    config = peft_config(_names(model, own), lora, inference_mode=True, **task)
    config.base_model_name_or_path = str(model.module.config._name_or_path)
    tensors = {f"{PEFT}{inside}{key}.weight": tensor for key, tensor in own.items()}
    tensors |= {f"{PEFT}{key}": t for key, t in _head(model).items()}
    with write_errors(folder):
        config.save_pretrained(folder)
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / WEIGHTS)


def _names(model: Backbone, own: dict[str, Tensor]) -> list[str]:
    """Names of the adapted layers for PEFT: the last parts of their paths, or the paths where those are ambiguous."""
    paths = sorted({key.rsplit(".", 1)[0] for key in own})
    last = {path.rsplit(".", 1)[-1] for path in paths}
    inside = f"{model.module.base_model_prefix}."
    held = tuple(f"{inside}{path}." for path in adapted_layers(model.backbone))
    everywhere = [name for name, _ in model.module.named_modules() if not name.startswith(held)]
    named = {name for name in everywhere if name.rsplit(".", 1)[-1] in last}
    return sorted(last) if named == {inside + path for path in paths} else paths


def _head(model: Backbone) -> dict[str, Tensor]:
    """The tensors of a scalar model outside of its backbone, by their names in the module."""
    inside = f"{model.module.base_model_prefix}."
    named = model.module.named_parameters() if isinstance(model, ScalarModel) else ()
    return {name: p for name, p in named if not name.startswith(inside)}


def backbone_hash(backbone: Any) -> str:
    """Hash of a backbone's weights, adapters left out."""
    unread = {name.replace(".base_layer.", "."): source for name, source in sources_of(backbone).items()}
    return weights_hash(base_weights(backbone), unread)


def weights_hash(weights: Mapping[str, Tensor], unread: Mapping[str, Source] = MappingProxyType({})) -> str:
    """Hash of the names, types, shapes and values of tensors.

    Args:
        unread: those that are read from files, one at a time.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        tensor = unread[name].read() if name in unread else tensor
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def reward_adapter(policy: LanguageModel, folder: Path) -> ScalarModel | None:
    """Loads the reward model of a stage's folder as a frozen adapter and head on the policy's backbone.

    None if it was trained without adapters, or on another backbone than the policy's.
    """
    where = folder.parent / "adapter"
    if policy.binding is None or folder.name != "model" or not (where / BACKBONE).exists():
        return None
    try:
        facts = json.loads((where / BACKBONE).read_text())
        tensors = load_file(where / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            "the adapter cannot be read", where=str(where), got=str(error), fix="run the stage that wrote it again"
        ) from error
    if facts["backbone"] != backbone_hash(policy.backbone):
        return None
    add_adapter(policy.backbone, "reward", Lora(**facts["lora"]))
    model = with_scalar_head(policy, AdapterBinding(("reward",), "reward", head=True))
    inside = f"{PEFT}{model.module.base_model_prefix}."
    for key, tensor in adapter_tensors(model.backbone, "reward").items():
        tensor.copy_(tensors[f"{inside}{key}.weight"])
    for key, tensor in _head(model).items():
        tensor.copy_(tensors[f"{PEFT}{key}"])
    model.bias, model.gain, model.compares = facts["bias"], facts["gain"], facts["compares"]
    model.chat = Chat(load_tokenizer(folder), max_length=policy.chat.max_length)
    model.trainable.requires_grad_(False)
    return model
