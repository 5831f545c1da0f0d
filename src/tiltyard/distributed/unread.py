"""Blocks of a model that stay in its files: a pass reads one at a time, and spreading reads and keeps a process's rows.

A model that is to be spread over processes (`distributed.sharded`) is loaded so. Until then its blocks' parameters have
no storage (torch's meta device); what is outside of the blocks is in memory as usual. Code that reads a block's
parameters without calling the block gets them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

SOURCES = "_tiltyard_unread"  # of a layer: name of a parameter -> where it lies
EMPTY = "_tiltyard_empty"  # of a layer whose parameters are read for a pass: those that come back after it


class Source(NamedTuple):
    """A tensor of a safetensors file, and the type and device that it has in the model."""

    file: Path
    key: str
    dtype: torch.dtype
    device: torch.device

    def read(self) -> Tensor:
        """The tensor; the file is not kept open, nor mapped into memory."""
        with safe_open(self.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.key).to(self.device, self.dtype, copy=True)
        return tensor


def leave_in_files(block: nn.Module, sources: Mapping[str, Source]) -> None:
    """Frees the parameters of a block, which each pass reads anew from their files.

    Args:
        sources: of all of its parameters, by their names in the block.
    """
    for name, source in sources.items():
        path, _, own = name.rpartition(".")
        layer = block.get_submodule(path)
        p = layer._parameters[own]
        assert p is not None
        layer._parameters[own] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        layer.__dict__.setdefault(SOURCES, {})[own] = source
    _hook(block)


def _hook(block: nn.Module) -> None:
    block.register_forward_pre_hook(_before)
    block.register_forward_hook(_after, always_call=True)


def _unhook(block: nn.Module) -> bool:
    """Takes the hooks of `leave_in_files` off; False if there are none."""
    found = False
    for hooks, own in ((block._forward_pre_hooks, _before), (block._forward_hooks, _after)):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]
            block._forward_hooks_always_called.pop(key, None)
            found = True
    return found


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Source]]]:
    for path, part in module.named_modules():
        if SOURCES in part.__dict__:
            yield path, part, part.__dict__[SOURCES]


def _before(block: nn.Module, _: Any) -> None:
    for _path, layer, sources in _layers(block):
        layer.__dict__[EMPTY] = {name: layer._parameters[name] for name in sources}
        for name, source in sources.items():
            layer._parameters[name] = nn.Parameter(source.read(), requires_grad=False)


def _after(block: nn.Module, _inputs: Any, _output: Any) -> None:
    for _path, layer, _sources in _layers(block):
        layer._parameters.update(layer.__dict__.pop(EMPTY, {}))


def blocks_unread(module: nn.Module) -> list[nn.Module]:
    """The blocks of a module that are in its files."""
    return [part for part in module.modules() if _before in part._forward_pre_hooks.values()]


def sources_of(module: nn.Module) -> dict[str, Source]:
    """The places of the parameters that are in files, by their names in the module."""
    return {
        f"{path}.{name}" if path else name: source for path, _, own in _layers(module) for name, source in own.items()
    }


def tensor_of(layer: nn.Module, name: str) -> Tensor:
    """A parameter of a layer, read if it is in a file."""
    source = layer.__dict__.get(SOURCES, {}).get(name)
    found = layer._parameters[name] if source is None else source.read()
    assert found is not None
    return found


def forget_source(layer: nn.Module, name: str) -> None:
    """Makes a parameter of a layer one that no file holds, because the caller gives it other numbers."""
    if name in (sources := layer.__dict__.get(SOURCES, {})):
        layer.__dict__[SOURCES] = {other: source for other, source in sources.items() if other != name}


def read_now(module: nn.Module) -> None:
    """Reads what is still in files: the module is an ordinary one after it."""
    for part in module.modules():
        _unhook(part)
    for _path, layer, sources in list(_layers(module)):
        for name, source in sources.items():
            empty = layer._parameters[name]
            layer._parameters[name] = nn.Parameter(source.read(), requires_grad=empty is None or empty.requires_grad)
        del layer.__dict__[SOURCES]


def take_hooks_off(modules: Iterable[nn.Module]) -> None:
    """Ends that passes read blocks; each is read by `read_now` before it is called again."""
    for module in modules:
        for part in module.modules():
            _unhook(part)


@contextmanager
def with_first_block(module: nn.Module) -> Iterator[None]:
    """Context: the first block is in memory and none has hooks, for comparisons of kernels."""
    blocks = [part for part in module.modules() if _unhook(part)]
    if blocks:
        _before(blocks[0], None)
    try:
        yield
    finally:
        if blocks:
            _after(blocks[0], None, None)
        for block in blocks:
            _hook(block)
