"""Weights of a model that is spread over processes, written tensor by tensor: no process holds the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from tiltyard.distributed import processes
from tiltyard.distributed.parts import whole
from tiltyard.models.folder import WIDTHS

PATTERN, LARGEST = "model{suffix}.safetensors", "50GB"  # transformers' own
OTHERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {kind: name for name, kind in (WIDTHS | OTHERS).items()}  # of safetensors


class Plan:
    """The tensors of a folder by the names of its files, and from which parameters they come.

    Attributes:
        files: file -> names in it.
    """

    def __init__(self, sources: Mapping[str, Tensor], stands: Mapping[str, Tensor]):
        self._sources, self._stands = sources, stands
        split = split_torch_state_dict_into_shards(dict(stands), filename_pattern=PATTERN, max_shard_size=LARGEST)
        self.files: dict[str, list[str]] = split.filename_to_tensors
        self._index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename} if split.is_sharded else None

    def write(self, folder: Path) -> None:
        """Writes the files; every process calls it and gathers each tensor, rank 0 alone writes them."""
        for file, names in self.files.items():
            write_one_by_one(folder / file, {name: self._stands[name] for name in names}, self._sources.__getitem__)
        if self._index is not None and processes.is_main():
            text = json.dumps(self._index, indent=2, sort_keys=True) + "\n"
            (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def plan_of(module: Any, tensors: Mapping[str, Tensor], width_of: Callable[[str, Tensor], torch.dtype]) -> Plan | None:
    """The files of a model, as transformers names them; None if it joins or cuts weights when it writes them.

    Args:
        tensors: the module's, some of them spread, by name. width_of: the width of a tensor in the folder.
    """
    stands = {n: torch.empty(t.shape, dtype=width_of(n, t), device="meta") for n, t in tensors.items()}
    for name in module._keys_to_ignore_on_save or ():
        stands.pop(name, None)
    origin = {id(stand): tensors[name] for name, stand in stands.items()}
    written = revert_weight_conversion(module, remove_tied_weights_from_state_dict(dict(stands), module))
    if any(id(stand) not in origin or stand.dtype not in NAMES for stand in written.values()):
        return None
    return Plan({name: origin[id(stand)] for name, stand in written.items()}, written)


def write_one_by_one(path: Path, stands: Mapping[str, Tensor], tensor_of: Callable[[str], Tensor]) -> None:
    """Writes a safetensors file as safetensors itself does, with one tensor in memory at a time."""
    order = sorted(stands, key=lambda name: (-stands[name].itemsize, name))
    if not processes.is_main():
        for name in order:
            whole(tensor_of(name))
        return
    with path.open("wb") as file:
        file.write(_header(order, stands))
        for name in order:
            tensor = whole(tensor_of(name)).detach().to("cpu", stands[name].dtype).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _header(order: list[str], stands: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        stand = stands[name]
        end = at + stand.numel() * stand.itemsize
        entries[name] = {"dtype": NAMES[stand.dtype], "shape": list(stand.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
