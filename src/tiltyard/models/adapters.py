"""Models as adapters on one frozen trunk: policy, reference, reward and value for little more memory than one."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiltyard.data.chat import Chat
from tiltyard.errors import CheckpointError, ModelError
from tiltyard.models.heads import beside
from tiltyard.models.language import LanguageModel, ScalarModel, Trunk
from tiltyard.models.lora import (
    Lora,
    Share,
    add_adapter,
    copy_adapter,
    known,
    layers_of,
    peft_config,
    plain_weights,
    redraw,
    tensors_of,
    turn,
)
from tiltyard.models.pretrained import load_tokenizer, written

M = TypeVar("M", bound=Trunk)
PEFT, WEIGHTS = "base_model.model.", "adapter_model.safetensors"  # names of PEFT's own
TRUNK = "trunk.json"  # beside an adapter: which trunk it belongs to, and what else its model needs


def adapt(model: M, lora: Lora, name: str = "policy", seed: int = 0) -> M:
    """Puts an adapter into a model, in place, and freezes everything else but a scalar model's head; returns the model.

    Args:
        name: of the adapter; a trunk may hold several. seed: of its first matrix; the second starts at zero, so the
            model says what it said before.
    """
    if layers_of(model.backbone):
        raise ModelError("the model has an adapter already", got=name, fix="adapt it once, then save it merged")
    model.module.requires_grad_(False)
    add_adapter(model.backbone, name, lora, seed)
    model.share = Share((name,), name, isinstance(model, ScalarModel))
    turn(model.backbone, model.adapters)
    _train_head(model)
    return model


def _train_head(model: Trunk) -> None:
    for part in model.module.children() if isinstance(model, ScalarModel) else ():
        if part is not model.backbone:
            part.requires_grad_(True)


def base_of(model: LanguageModel) -> LanguageModel:
    """The reference of an adapted model: the same module with its adapters off, no copy. Others are themselves."""
    if model.share is None:
        return model
    base = copy.copy(model)
    base.share = Share()
    return base


def adapter_copy(model: LanguageModel, name: str) -> LanguageModel:
    """A frozen copy of an adapted model as it is now: a second adapter on the same trunk."""
    assert model.share is not None
    add_adapter(model.backbone, name, *known(model.backbone, model.share.own))
    copy_adapter(model.backbone, model.share.own, name)
    twin = copy.copy(model)
    twin.share = Share((name,), name)
    twin.own.requires_grad_(False)
    return twin


def take_over(model: Trunk, source: Trunk) -> None:
    """The model says from now on what the source says, whose architecture or trunk it has."""
    if model.share is None or source.share is None:
        model.module.load_state_dict(source.module.state_dict())
    elif source.share.own:
        copy_adapter(model.backbone, source.share.own, model.share.own)
    else:
        redraw(model.backbone, model.share.own)  # the source is the bare trunk: the adapter starts again


def value_beside(source: Trunk, lora: Lora, seed: int = 0) -> ScalarModel:
    """A value model on another model's frozen trunk, with an adapter and a head of its own.

    From a reward model it starts as what that model says: its adapter comes on top of the reward model's, if that has
    one. From a policy it starts at zero, on the bare trunk.
    """
    below = source.adapters if isinstance(source, ScalarModel) else ()
    add_adapter(source.backbone, "value", lora, seed)
    value = beside(source, Share((*below, "value"), "value", head=True))
    if isinstance(source, ScalarModel):
        value.head.load_state_dict(source.head.state_dict())
    return value


# ------------------------------------------------------------------------------------------------------------- on disk


def save_adapter(model: Trunk, folder: Path) -> None:
    """Writes the model's adapter, and a scalar model's head, in the form that PEFT loads."""
    assert model.share is not None
    trunk, (lora, _) = model.backbone, known(model.backbone, model.share.own)
    own = tensors_of(trunk, model.share.own)
    heads = [name for name, part in model.module.named_children() if part is not trunk and list(part.parameters())]
    task = {"task_type": "CAUSAL_LM"} if isinstance(model, LanguageModel) else {}
    if model.share.head:
        task = {"task_type": "SEQ_CLS", "modules_to_save": heads}  # type: ignore[dict-item]
    inside = f"{model.module.base_model_prefix}."
    config = peft_config(_names(model, own), lora, inference_mode=True, **task)
    config.base_model_name_or_path = str(model.module.config._name_or_path)
    tensors = {f"{PEFT}{inside}{key}.weight": tensor for key, tensor in own.items()}
    tensors |= {f"{PEFT}{key}": t for key, t in _head(model).items()}
    facts: dict[str, Any] = {"trunk": trunk_hash(trunk), "lora": lora.model_dump()}
    if isinstance(model, ScalarModel):
        facts |= {"bias": model.bias, "gain": model.gain, "compares": model.compares}
    with written(folder):
        config.save_pretrained(folder)
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / WEIGHTS)
        (folder / TRUNK).write_text(json.dumps(facts, indent=2) + "\n")


def _names(model: Trunk, own: dict[str, Tensor]) -> list[str]:
    """The adapted layers by their last names, or by their paths where another layer has such a name too."""
    paths = sorted({key.rsplit(".", 1)[0] for key in own})
    last = {path.rsplit(".", 1)[-1] for path in paths}
    inside = f"{model.module.base_model_prefix}."
    held = tuple(f"{inside}{path}." for path in layers_of(model.backbone))
    everywhere = [name for name, _ in model.module.named_modules() if not name.startswith(held)]
    named = {name for name in everywhere if name.rsplit(".", 1)[-1] in last}
    return sorted(last) if named == {inside + path for path in paths} else paths


def _head(model: Trunk) -> dict[str, Tensor]:
    """The tensors of a scalar model outside of its trunk, by their names in the module."""
    inside = f"{model.module.base_model_prefix}."
    named = model.module.named_parameters() if isinstance(model, ScalarModel) else ()
    return {name: p for name, p in named if not name.startswith(inside)}


def trunk_hash(trunk: Any) -> str:
    """Hash of a trunk's weights, adapters left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(plain_weights(trunk).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def reward_beside(policy: LanguageModel, folder: Path) -> ScalarModel | None:
    """The reward model of a stage's folder as an adapter and a head on the policy's trunk, frozen.

    None where it was not trained with adapters, or on another trunk than the policy's.
    """
    where = folder.parent / "adapter"
    if policy.share is None or folder.name != "model" or not (where / TRUNK).exists():
        return None
    try:
        facts = json.loads((where / TRUNK).read_text())
        tensors = load_file(where / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            "the adapter cannot be read", where=str(where), got=str(error), fix="run the stage that wrote it again"
        ) from error
    if facts["trunk"] != trunk_hash(policy.backbone):
        return None
    add_adapter(policy.backbone, "reward", Lora(**facts["lora"]))
    model = beside(policy, Share(("reward",), "reward", head=True))
    inside = f"{PEFT}{model.module.base_model_prefix}."
    for key, tensor in tensors_of(model.backbone, "reward").items():
        tensor.copy_(tensors[f"{inside}{key}.weight"])
    for key, tensor in _head(model).items():
        tensor.copy_(tensors[f"{PEFT}{key}"])
    model.bias, model.gain, model.compares = facts["bias"], facts["gain"], facts["compares"]
    model.chat = Chat(load_tokenizer(folder), max_length=policy.chat.max_length)
    model.own.requires_grad_(False)
    return model
