"""Loading a model without its blocks, whose weights stay in their files (`distributed.unread`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig

from tiltyard.distributed.unread import Source, leave_in_files
from tiltyard.models.folder import WIDTHS, weight_files
from tiltyard.models.lora import blocks_of

LOADER = ("dtype", "use_safetensors", "output_loading_info", "ignore_mismatched_sizes")  # the rest is the config's
NUMBERED = re.compile(r"\.\d+\.")  # the name of a weight of one layer of several


def unread_blocks(auto: Any, name: str, how: dict[str, Any], device: torch.device) -> tuple[Any, Any] | None:
    """Loads a model through transformers with one number in place of each weight of a block, then frees the blocks.

    transformers names, ties and checks the weights as always. Where a number arrives tells which weight of the files is
    which of the model, whatever their names.

    Args:
        name: of a folder or hub model. how: keyword arguments of `from_pretrained`. device: of the weights when read.

    Returns:
        The module and the loading info; None if some weight of a block is not one of the files as it stands (weights
        that are joined or cut when they are read, or of several blocks at once): the caller then loads it whole.
    """
    if how["trust_remote_code"]:
        return None  # code of the folder may read its weights as it likes
    stands, sources, rest = _stand_ins(weight_files(name), how["dtype"], device)
    if not stands:
        return None
    loader = {key: how[key] for key in LOADER}
    config = AutoConfig.from_pretrained(name, **{key: value for key, value in how.items() if key not in LOADER})
    with torch.device("meta"):
        kind = type(auto.from_config(config)) if hasattr(auto, "from_config") else auto
    with torch.random.fork_rng(devices=[]):  # a second attempt draws the same new head
        module, info = kind.from_pretrained(None, config=config, state_dict={**rest, **stands}, **loader)
    blocks = blocks_of(module.base_model)
    found = _found(module, stands)
    inside = [p for block in blocks for p in block.parameters()]
    unused = {key for key in stands if key in info["unexpected_keys"]}
    if {*found.values(), *unused} != set(stands) or {id(p) for p in inside} != set(found) or len(found) != len(inside):
        return None
    if module.can_generate():
        module.generation_config = _generation(name)
    for block in blocks:
        leave_in_files(block, {path: sources[found[id(p)]] for path, p in block.named_parameters()})
    return module, info


def _generation(name: str) -> GenerationConfig:
    """The generation settings of a model, which transformers reads only with the weights."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        return GenerationConfig.from_pretrained(name, config_file_name="config.json", _from_model_config=True)


def _stand_ins(
    files: list[Path], dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Source], dict[str, Tensor]]:
    """One number in the shape of each weight that a block may have; where these lie; all other weights."""
    stands, sources, rest = {}, {}, {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_slice(key)
                if NUMBERED.search(key) and part.get_dtype() in WIDTHS:
                    stands[key] = torch.zeros((), dtype=dtype).expand(part.get_shape())
                    sources[key] = Source(path, key, dtype, device)
                else:
                    rest[key] = file.get_tensor(key)
    return stands, sources, rest


def _found(module: nn.Module, stands: dict[str, Tensor]) -> dict[int, str]:
    """The parameters (by id) that are stand-ins themselves, neither copied nor computed from: which of them."""
    places = {tensor.data_ptr(): key for key, tensor in stands.items()}
    return {
        id(p): places[p.data_ptr()]
        for p in module.parameters()
        if p.data_ptr() in places and p.shape == stands[places[p.data_ptr()]].shape
    }
