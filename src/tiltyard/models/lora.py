"""LoRA: small trained matrices beside the linear layers of a frozen trunk (Hu et al. 2021), through PEFT.

Adapters are put into the module in place, so attention, sampler and heads stay what they are. One trunk may hold
several by name. A model that stands on a frozen trunk says with its `Share` which of them its states are computed with
and what is its own:

    policy      adapters (policy)          own: the adapter
    reference   adapters ()                own: nothing; the trunk as it was loaded
    a reference that is renewed  (ref)     own: a second adapter
    reward      adapters (reward)          own: the adapter and the score head
    value       adapters (reward, value)   own: the adapter value and the score head; starts as what the reward says

`Trunk.autocast` switches them on for each pass, so that all these models live in the memory of one.
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
    """Adapters in the linear layers of the trunk's blocks; the trunk itself stays as it is."""

    rank: Annotated[int, Field(gt=0, description="of each adapter's two matrices")] = 16
    alpha: Annotated[float, Field(gt=0, description="an adapter's output counts alpha / rank")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="of what goes into an adapter; 0 is off")] = 0.0
    targets: Annotated[
        list[str],
        Field(description="names of linear layers, e.g. q_proj; empty: all of the blocks", default_factory=list),
    ]


@dataclass(frozen=True)
class Share:
    """How a model stands on a trunk that is not all its own.

    Attributes:
        adapters: what is switched on while its states are computed, in the order in which they are added up.
        own: the one of them that belongs to it alone; empty: none.
        head: whether the layers outside of the trunk belong to it alone.
    """

    adapters: tuple[str, ...] = ()
    own: str = ""
    head: bool = False


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The model's layers: its first list of modules, whatever the family calls it and wherever it stands."""
    return next((list(part) for part in trunk.modules() if isinstance(part, nn.ModuleList)), [])


def layers_of(trunk: nn.Module) -> dict[str, Any]:
    """The layers that hold adapters, by their path in the trunk; none in a model without."""
    found: dict[str, Any] = trunk.__dict__.get("_lora_layers", {})
    return found


def known(trunk: nn.Module, name: str) -> tuple[Lora, int]:
    """The settings and the seed that an adapter was made with."""
    found: tuple[Lora, int] = trunk.__dict__["_lora_known"][name]
    return found


def targets_of(trunk: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Paths in the trunk of the blocks' linear layers, or of those with the wanted names.

    Raises:
        ConfigError: a name that no linear layer of the blocks has.
    """
    inside = {id(part) for block in blocks_of(trunk) for part in block.modules()}
    parts = ((path, trunk.get_submodule(path)) for path in plain_modules(trunk))
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


def add_adapter(trunk: nn.Module, name: str, lora: Lora, seed: int = 0) -> None:
    """A new adapter, which changes nothing yet: the second of its matrices starts at zero, the first by `seed`.

    Every other parameter keeps what it is, trained or not.
    """
    config = peft_config(targets_of(trunk, lora.targets), lora)
    before = {id(p): p.requires_grad for p in trunk.parameters()}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of several adapters in one model, which is meant here
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        inject_adapter_in_model(config, trunk, adapter_name=name)
    trunk.__dict__["_lora_layers"] = {p: m for p, m in trunk.named_modules() if isinstance(m, LoraLayer)}
    trunk.__dict__.setdefault("_lora_known", {})[name] = (lora, seed)
    for p in trunk.parameters():
        p.requires_grad_(before.get(id(p), True))
    turn(trunk, turned_on(trunk), anew=True)
    redraw(trunk, name)


def peft_config(paths: Sequence[str], lora: Lora, **more: Any) -> Any:
    """PEFT's description of an adapter in the layers with these paths."""
    from peft import LoraConfig

    law: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "bias": "none"}
    return LoraConfig(target_modules=list(paths), **law, **more)


@torch.no_grad()
def redraw(trunk: nn.Module, name: str) -> None:
    """The adapter as it was when it was added."""
    seed = known(trunk, name)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        for layer in layers_of(trunk).values():
            if name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                bound = a.shape[1] ** -0.5  # PEFT's and the paper's code: Kaiming's uniform law with a = sqrt(5)
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound))
                b.zero_()


def tensors_of(trunk: nn.Module, name: str) -> dict[str, Tensor]:
    """An adapter's own matrices: `PATH.lora_A` and `PATH.lora_B`, in the trunk's order."""
    return {
        f"{path}.{side}": getattr(layer, side)[name].weight
        for path, layer in layers_of(trunk).items()
        for side in ("lora_A", "lora_B")
        if name in getattr(layer, side)
    }


@torch.no_grad()
def copy_adapter(trunk: nn.Module, source: str, target: str) -> None:
    """Makes an adapter say what another one of the same shape says."""
    theirs = tensors_of(trunk, source)
    for key, tensor in tensors_of(trunk, target).items():
        tensor.copy_(theirs[key])


# ------------------------------------------------------------------------------------------------ which are switched on


def turned_on(trunk: nn.Module) -> tuple[str, ...]:
    found: tuple[str, ...] = trunk.__dict__.get("_lora_on", ())
    return found


def turn(trunk: nn.Module, names: tuple[str, ...], anew: bool = False) -> None:
    """Switches these adapters on and all others off.

    PEFT's own switch also says which are trained; here that is a matter of its own, so its field is set directly.
    """
    if names != turned_on(trunk) or anew:
        for layer in layers_of(trunk).values():
            layer._active_adapter = list(names)
        trunk.__dict__["_lora_on"] = names


@contextmanager
def turned(trunk: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Inside it the trunk computes with these adapters."""
    before = turned_on(trunk)
    turn(trunk, names)
    try:
        yield
    finally:
        turn(trunk, before)


def recompute(trunk: nn.Module, function: Any, *inputs: Any) -> Any:
    """Gradient checkpointing of one block: what is computed again is computed with the adapters that were on."""
    names = turned_on(trunk)

    def block(*again: Any) -> Any:
        with turned(trunk, names):
            return function(*again)

    return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)


# ---------------------------------------------------------------------------------------------------------- the whole


def part_of(module: nn.Module, trunk: nn.Module, share: Share) -> nn.Module:
    """What belongs to one model alone, as a module: its adapter and, if they are its own, the layers outside."""
    own = nn.ModuleDict()
    for path, layer in layers_of(trunk).items():
        if share.own and share.own in layer.lora_A:
            sides = {"A": layer.lora_A[share.own], "B": layer.lora_B[share.own]}
            own[path.replace(".", "/")] = nn.ModuleDict(sides)  # a point would part the name
    if share.head:
        own.update({name: part for name, part in module.named_children() if part is not trunk})
    return own


def plain_modules(trunk: nn.Module) -> list[str]:
    """Paths of the trunk's modules, the insides of adapted layers left out."""
    held = tuple(f"{path}." for path in layers_of(trunk))
    return [path for path, _ in trunk.named_modules() if not path.startswith(held)]


def plain_weights(trunk: nn.Module) -> dict[str, Tensor]:
    """The trunk's tensors without adapters, under the names that they have in a trunk that never had any."""
    state = trunk.state_dict()
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}


@contextmanager
def merged(trunk: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Inside it the trunk is a plain one, without adapters, whose weights have these added to them."""
    layers = layers_of(trunk)
    for path, layer in layers.items():
        trunk.set_submodule(path, _merged(layer, names))
    trunk.__dict__["_lora_layers"] = {}
    try:
        yield
    finally:
        trunk.__dict__["_lora_layers"] = layers
        for path, layer in layers.items():
            trunk.set_submodule(path, layer)


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
def full_width(module: Any) -> Iterator[None]:
    """Inside it a module whose weights were loaded in 4 bits is written as the ordinary one that `merged` makes it."""
    before = getattr(module, "hf_quantizer", None), getattr(module.config, "quantization_config", None)
    if before[0] is not None:
        module.hf_quantizer = None
        del module.config.quantization_config
    try:
        yield
    finally:
        if before[0] is not None:
            module.hf_quantizer, module.config.quantization_config = before


def remembering(module: nn.Module, trunk: nn.Module) -> None:
    """Has every block that is checkpointed recomputed with the adapters of its forward pass."""
    for part in module.modules():
        if hasattr(part, "_gradient_checkpointing_func"):
            part._gradient_checkpointing_func = partial(recompute, trunk)  # type: ignore[assignment]
