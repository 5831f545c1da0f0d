"""LoRA: low-rank trained matrices added to the linear layers of a frozen backbone (Hu et al. 2021), through PEFT.

Adapters are injected into the module in place, so attention, sampler and heads need no change. One backbone may hold
several, by name. The `AdapterBinding` of a model on a frozen backbone names the adapters that are active in its forward
pass and the one that it trains:

    policy      active (policy)          trainable: the adapter
    reference   active ()                trainable: none; the backbone as loaded
    a reference that is renewed  (ref)   trainable: a second adapter
    reward      active (reward)          trainable: the adapter and the score head
    value       active (reward, value)   trainable: the adapter `value` and the score head; starts as the reward model

`Backbone.autocast` activates them for each pass, so all these models need the memory of one.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tiltyard.distributed.parts import assign_, state_of
from tiltyard.distributed.unread import forget_source, tensor_of
from tiltyard.errors import ConfigError, nearest
from tiltyard.records import Settings


class Lora(Settings):
    """Adapters in the linear layers of the backbone's blocks; the backbone itself stays as it is."""

    rank: Annotated[int, Field(gt=0, description="of each adapter's two matrices")] = 16
    alpha: Annotated[float, Field(gt=0, description="an adapter's output counts alpha / rank")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="of what goes into an adapter; 0 is off")] = 0.0
    targets: Annotated[
        list[str],
        Field(description="names of linear layers, e.g. q_proj; empty: all of the blocks", default_factory=list),
    ]


@dataclass(frozen=True)
class AdapterBinding:
    """The part of a model on a shared backbone.

    Attributes:
        adapters: names of the adapters that are active in its forward pass, in the order of their sum.
        trainable: the one of them that is its own; empty: none.
        head: True if the layers outside of the backbone are its own.
    """

    adapters: tuple[str, ...] = ()
    trainable: str = ""
    head: bool = False


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """Returns the model's layers: its first list of modules, whatever the family calls it."""
    return next((list(part) for part in backbone.modules() if isinstance(part, nn.ModuleList)), [])


def adapted_layers(backbone: nn.Module) -> dict[str, Any]:
    """Returns the layers that hold adapters, by their path in the backbone."""
    result: dict[str, Any] = backbone.__dict__.get("_lora_layers", {})
    return result


def adapter_settings(backbone: nn.Module, name: str) -> tuple[Lora, int]:
    """Returns the settings and the seed that an adapter was made with."""
    result: tuple[Lora, int] = backbone.__dict__["_lora_settings"][name]
    return result


def target_paths(backbone: nn.Module, names: Sequence[str]) -> list[str]:
    """Returns the paths of the blocks' linear layers, or of those with these names.

    Raises:
        ConfigError: a name that no linear layer of the blocks has.
    """
    inside = {id(part) for block in blocks_of(backbone) for part in block.modules()}
    parts = ((path, backbone.get_submodule(path)) for path in base_module_paths(backbone))
    kinds = (nn.Linear, Conv1D)
    paths = [
        path for path, part in parts if id(part) in inside and isinstance(getattr(part, "base_layer", part), kinds)
    ]
    known = {path.rsplit(".", 1)[-1] for path in paths}
    for name in names:
        if name not in known:
            raise ConfigError(
                "no linear layer of the model's blocks has this name",
                where="lora.targets",
                got=name,
                expected=", ".join(sorted(known)),
                fix=nearest(name, known),
            )
    return [path for path in paths if not names or path.rsplit(".", 1)[-1] in names]


def add_adapter(backbone: nn.Module, name: str, lora: Lora, seed: int = 0) -> None:
    """Adds an adapter whose output starts at zero: its second matrix is zero, the first is initialised by `seed`.

    Every other parameter stays trainable or frozen as it was.
    """
    config = peft_config(target_paths(backbone, lora.targets), lora)
    before = {id(p): p.requires_grad for p in backbone.parameters()}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of several adapters in one model, which is meant here
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        inject_adapter_in_model(config, backbone, adapter_name=name)
    backbone.__dict__["_lora_layers"] = {p: m for p, m in backbone.named_modules() if isinstance(m, LoraLayer)}
    backbone.__dict__.setdefault("_lora_settings", {})[name] = (lora, seed)
    for layer in adapted_layers(backbone).values():
        for side in (layer.lora_A, layer.lora_B):
            if name in side and side[name].weight.is_meta:  # PEFT put it where the layer's own weight is: in a file
                side[name].to_empty(device=next(p.device for p in backbone.parameters() if not p.is_meta))
    for p in backbone.parameters():
        p.requires_grad_(before.get(id(p), True))
    set_active_adapters(backbone, active_adapters(backbone), anew=True)
    reinit_adapter(backbone, name)


def peft_config(paths: Sequence[str], lora: Lora, **more: Any) -> Any:
    """PEFT's description of an adapter in the layers with these paths."""
    from peft import LoraConfig

    settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "bias": "none"}
    return LoraConfig(target_modules=list(paths), **settings, **more)


@torch.no_grad()
def reinit_adapter(backbone: nn.Module, name: str) -> None:
    """Initialises an adapter as when it was added."""
    seed = adapter_settings(backbone, name)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        for layer in adapted_layers(backbone).values():
            if name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                bound = a.shape[1] ** -0.5  # PEFT's and the paper's code: Kaiming uniform with a = sqrt(5)
                assign_(a, torch.empty(a.shape).uniform_(-bound, bound))
                b.zero_()


def adapter_tensors(backbone: nn.Module, name: str) -> dict[str, Tensor]:
    """Returns an adapter's matrices: `PATH.lora_A` and `PATH.lora_B`, in the backbone's order."""
    return {
        f"{path}.{side}": getattr(layer, side)[name].weight
        for path, layer in adapted_layers(backbone).items()
        for side in ("lora_A", "lora_B")
        if name in getattr(layer, side)
    }


@torch.no_grad()
def copy_adapter(backbone: nn.Module, source: str, target: str) -> None:
    """Copies an adapter's weights into another one of the same shape."""
    theirs = adapter_tensors(backbone, source)
    for key, tensor in adapter_tensors(backbone, target).items():
        tensor.copy_(theirs[key])


# ------------------------------------------------------------------------------------------------ which are switched on


def active_adapters(backbone: nn.Module) -> tuple[str, ...]:
    result: tuple[str, ...] = backbone.__dict__.get("_lora_active", ())
    return result


def set_active_adapters(backbone: nn.Module, names: tuple[str, ...], anew: bool = False) -> None:
    """Activates these adapters and no others.

    PEFT's own method also changes what is trained, so its field is set directly.
    """
    if names != active_adapters(backbone) or anew:
        for layer in adapted_layers(backbone).values():
            layer._active_adapter = list(names)
        backbone.__dict__["_lora_active"] = names


@contextmanager
def using_adapters(backbone: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Context: the backbone computes with these adapters."""
    before = active_adapters(backbone)
    set_active_adapters(backbone, names)
    try:
        yield
    finally:
        set_active_adapters(backbone, before)


def recompute(backbone: nn.Module, function: Any, *inputs: Any) -> Any:
    """Gradient checkpointing of one block that recomputes with the adapters of the forward pass."""
    names = active_adapters(backbone)

    def block(*again: Any) -> Any:
        with using_adapters(backbone, names):
            return function(*again)

    return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)


# ---------------------------------------------------------------------------------------------------------- the whole


def trainable_part(module: nn.Module, backbone: nn.Module, binding: AdapterBinding) -> nn.Module:
    """Returns a model's own parameters as a module: its adapter and, if they are its own, the layers outside."""
    own = nn.ModuleDict()
    for path, layer in adapted_layers(backbone).items():
        if binding.trainable and binding.trainable in layer.lora_A:
            sides = {"A": layer.lora_A[binding.trainable], "B": layer.lora_B[binding.trainable]}
            own[path.replace(".", "/")] = nn.ModuleDict(sides)  # a point would part the name
    if binding.head:
        own.update({name: part for name, part in module.named_children() if part is not backbone})
    return own


def base_module_paths(backbone: nn.Module) -> list[str]:
    """Returns the paths of the backbone's modules without those inside adapted layers."""
    held = tuple(f"{path}." for path in adapted_layers(backbone))
    return [path for path, _ in backbone.named_modules() if not path.startswith(held)]


def base_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Returns the backbone's tensors without adapters, named as in a backbone without any."""
    state = state_of(backbone)
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}


@contextmanager
def merged_adapters(backbone: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Context: the backbone is one without adapters whose weights have these adapters merged."""
    layers = adapted_layers(backbone)
    for path, layer in layers.items():
        backbone.set_submodule(path, _merged(layer, names))
    backbone.__dict__["_lora_layers"] = {}
    try:
        yield
    finally:
        backbone.__dict__["_lora_layers"] = layers
        for path, layer in layers.items():
            backbone.set_submodule(path, layer)


@torch.no_grad()
def _merged(layer: Any, names: tuple[str, ...]) -> nn.Module:
    base = layer.get_base_layer()
    weight = tensor_of(base, "weight")
    if (state := getattr(weight, "quant_state", None)) is not None:  # four bits a weight
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
        plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    else:
        plain = copy.copy(base)
    plain._parameters = dict(base._parameters)
    deltas = [layer.get_delta_weight(name) for name in names if name in layer.lora_A]
    forget_source(plain, "weight")
    plain._parameters["weight"] = nn.Parameter(sum(deltas, start=weight).detach(), requires_grad=False)
    return plain


@contextmanager
def dequantized(module: Any) -> Iterator[None]:
    """Context: a module loaded in 4 bits is saved as the full-precision one that `merged_adapters` makes of it."""
    before = getattr(module, "hf_quantizer", None), getattr(module.config, "quantization_config", None)
    if before[0] is not None:
        module.hf_quantizer = None
        del module.config.quantization_config
    try:
        yield
    finally:
        if before[0] is not None:
            module.hf_quantizer, module.config.quantization_config = before


def checkpoint_with_adapters(module: nn.Module, backbone: nn.Module) -> None:
    """Makes gradient checkpointing recompute each block with the adapters of its forward pass."""
    for part in module.modules():
        if hasattr(part, "_gradient_checkpointing_func"):
            part._gradient_checkpointing_func = partial(recompute, backbone)  # type: ignore[assignment]
