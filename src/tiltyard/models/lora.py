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

from tiltyard.config import Settings
from tiltyard.errors import ConfigError, nearest


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
    """How a model stands on a backbone that is not all its own.

    Attributes:
        adapters: what is switched on while its states are computed, in the order in which they are added up.
        own: the one of them that belongs to it alone; empty: none.
        head: whether the layers outside of the backbone belong to it alone.
    """

    adapters: tuple[str, ...] = ()
    trainable: str = ""
    head: bool = False


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The model's layers: its first list of modules, whatever the family calls it and wherever it stands."""
    return next((list(part) for part in backbone.modules() if isinstance(part, nn.ModuleList)), [])


def adapted_layers(backbone: nn.Module) -> dict[str, Any]:
    """The layers that hold adapters, by their path in the backbone; none in a model without."""
    found: dict[str, Any] = backbone.__dict__.get("_lora_layers", {})
    return found


def adapter_settings(backbone: nn.Module, name: str) -> tuple[Lora, int]:
    """The settings and the seed that an adapter was made with."""
    found: tuple[Lora, int] = backbone.__dict__["_lora_settings"][name]
    return found


def target_paths(backbone: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Paths in the backbone of the blocks' linear layers, or of those with the wanted names.

    Raises:
        ConfigError: a name that no linear layer of the blocks has.
    """
    inside = {id(part) for block in blocks_of(backbone) for part in block.modules()}
    parts = ((path, backbone.get_submodule(path)) for path in base_module_paths(backbone))
    kinds = (nn.Linear, Conv1D)
    paths = [
        path for path, part in parts if id(part) in inside and isinstance(getattr(part, "base_layer", part), kinds)
    ]
    names = {path.rsplit(".", 1)[-1] for path in paths}
    for name in wanted:
        if name not in names:
            raise ConfigError(
                "no linear layer of the model's blocks has this name",
                where="lora.targets",
                got=name,
                expected=", ".join(sorted(names)),
                fix=nearest(name, names),
            )
    return [path for path in paths if not wanted or path.rsplit(".", 1)[-1] in wanted]


def add_adapter(backbone: nn.Module, name: str, lora: Lora, seed: int = 0) -> None:
    """A new adapter, which changes nothing yet: the second of its matrices starts at zero, the first by `seed`.

    Every other parameter keeps what it is, trained or not.
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
    for p in backbone.parameters():
        p.requires_grad_(before.get(id(p), True))
    set_active_adapters(backbone, active_adapters(backbone), anew=True)
    reinit_adapter(backbone, name)


def peft_config(paths: Sequence[str], lora: Lora, **more: Any) -> Any:
    """PEFT's description of an adapter in the layers with these paths."""
    from peft import LoraConfig

    law: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "bias": "none"}
    return LoraConfig(target_modules=list(paths), **law, **more)


@torch.no_grad()
def reinit_adapter(backbone: nn.Module, name: str) -> None:
    """The adapter as it was when it was added."""
    seed = adapter_settings(backbone, name)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        for layer in adapted_layers(backbone).values():
            if name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                bound = a.shape[1] ** -0.5  # PEFT's and the paper's code: Kaiming's uniform law with a = sqrt(5)
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound))
                b.zero_()


def adapter_tensors(backbone: nn.Module, name: str) -> dict[str, Tensor]:
    """An adapter's own matrices: `PATH.lora_A` and `PATH.lora_B`, in the backbone's order."""
    return {
        f"{path}.{side}": getattr(layer, side)[name].weight
        for path, layer in adapted_layers(backbone).items()
        for side in ("lora_A", "lora_B")
        if name in getattr(layer, side)
    }


@torch.no_grad()
def copy_adapter(backbone: nn.Module, source: str, target: str) -> None:
    """Makes an adapter say what another one of the same shape says."""
    theirs = adapter_tensors(backbone, source)
    for key, tensor in adapter_tensors(backbone, target).items():
        tensor.copy_(theirs[key])


# ------------------------------------------------------------------------------------------------ which are switched on


def active_adapters(backbone: nn.Module) -> tuple[str, ...]:
    found: tuple[str, ...] = backbone.__dict__.get("_lora_active", ())
    return found


def set_active_adapters(backbone: nn.Module, names: tuple[str, ...], anew: bool = False) -> None:
    """Switches these adapters on and all others off.

    PEFT's own switch also says which are trained; here that is a matter of its own, so its field is set directly.
    """
    if names != active_adapters(backbone) or anew:
        for layer in adapted_layers(backbone).values():
            layer._active_adapter = list(names)
        backbone.__dict__["_lora_active"] = names


@contextmanager
def using_adapters(backbone: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Inside it the backbone computes with these adapters."""
    before = active_adapters(backbone)
    set_active_adapters(backbone, names)
    try:
        yield
    finally:
        set_active_adapters(backbone, before)


def recompute(backbone: nn.Module, function: Any, *inputs: Any) -> Any:
    """Gradient checkpointing of one block: what is computed again is computed with the adapters that were on."""
    names = active_adapters(backbone)

    def block(*again: Any) -> Any:
        with using_adapters(backbone, names):
            return function(*again)

    return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)


# ---------------------------------------------------------------------------------------------------------- the whole


def trainable_part(module: nn.Module, backbone: nn.Module, binding: AdapterBinding) -> nn.Module:
    """What belongs to one model alone, as a module: its adapter and, if they are its own, the layers outside."""
    own = nn.ModuleDict()
    for path, layer in adapted_layers(backbone).items():
        if binding.trainable and binding.trainable in layer.lora_A:
            sides = {"A": layer.lora_A[binding.trainable], "B": layer.lora_B[binding.trainable]}
            own[path.replace(".", "/")] = nn.ModuleDict(sides)  # a point would part the name
    if binding.head:
        own.update({name: part for name, part in module.named_children() if part is not backbone})
    return own


def base_module_paths(backbone: nn.Module) -> list[str]:
    """Paths of the backbone's modules, the insides of adapted layers left out."""
    held = tuple(f"{path}." for path in adapted_layers(backbone))
    return [path for path, _ in backbone.named_modules() if not path.startswith(held)]


def base_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's tensors without adapters, under the names that they have in a backbone that never had any."""
    state = backbone.state_dict()
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}


@contextmanager
def merged_adapters(backbone: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Inside it the backbone is a plain one, without adapters, whose weights have these added to them."""
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
    weight = base.weight
    if (state := getattr(weight, "quant_state", None)) is not None:  # four bits a weight
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
        plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    else:
        plain = copy.copy(base)
    plain._parameters = dict(base._parameters)
    deltas = [layer.get_delta_weight(name) for name in names if name in layer.lora_A]
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
    """Has every block that is checkpointed recomputed with the adapters of its forward pass."""
    for part in module.modules():
        if hasattr(part, "_gradient_checkpointing_func"):
            part._gradient_checkpointing_func = partial(recompute, backbone)  # type: ignore[assignment]
