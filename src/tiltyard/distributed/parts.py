"""Tensors and modules that are spread over processes: reading and writing whole ones, passes, what a module holds.

Torch's distributed tensors are imported only where a module has been spread (`distributed.sharded`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

TRUNK = "_tiltyard_trunk"  # of a module whose parameters are spread
# a module, and its class, its hooks and the names of its attributes without FSDP2
Before = tuple[nn.Module, type[nn.Module], dict[str, Any], set[str]]
Result = TypeVar("Result")


class Rows(NamedTuple):
    """The rows of a tensor that this process has.

    Attributes:
        tensor: them alone, on the CPU and contiguous. shape: of the whole tensor. start: the first of them in it.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    start: int = 0


def rows_of(tensor: Tensor) -> Rows:
    """This process's rows of a tensor that may be spread; all of one that is not."""
    own = local(tensor).detach()
    return Rows(own.contiguous().cpu(), tuple(tensor.shape), first_row(tensor))


def first_row(tensor: Tensor) -> int:
    """The first row that this process has of a tensor that is spread evenly by its rows, as FSDP2 does; else 0."""
    if not hasattr(tensor, "to_local"):
        return 0
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(tensor, DTensor)
    assert tuple(tensor.placements) == (Shard(0),)
    mesh = tensor.device_mesh
    return min(-(-len(tensor) // mesh.size()) * mesh.get_local_rank(), len(tensor))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process calls it, in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; all of one that is not spread."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@torch.no_grad()
def assign_(target: Tensor, source: Tensor) -> None:
    """Copies a whole tensor, which every process has, into one that may be spread."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        moved = source.to(target.device, target.dtype)
        source = distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)


def of_rows(rows: Tensor, like: Tensor) -> Tensor:
    """A tensor that is spread as another one, made of this process's rows of it; these, if that one is not spread."""
    if not hasattr(like, "to_local"):
        return rows
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    moved = rows.to(like.to_local().device)
    mesh, shape, stride = like.device_mesh, like.shape, like.stride()
    return DTensor.from_local(moved, mesh, like.placements, run_check=False, shape=shape, stride=stride)


@contextmanager
def as_parts(*modules: nn.Module) -> Iterator[None]:
    """Context: the parameters of these modules are what an optimiser step changes, also where they are gathered.

    What is written into gathered parameters is lost. Every process enters and leaves it.
    """
    whole_ones = [trunk for trunk in _trunks(modules) if trunk.whole]
    for trunk in whole_ones:
        trunk.make_parts()
    try:
        yield
    finally:
        for trunk in whole_ones:
            trunk.make_whole()


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Context: all parameters of these modules are whole in every process, which may then do different things.

    Every process enters and leaves it.
    """
    parts = spread(*modules)
    for trunk in parts:
        trunk.make_whole()
    try:
        yield
    finally:
        for trunk in parts:
            trunk.make_parts()


@torch.no_grad()
def in_pass(call: Callable[[], Result], *modules: nn.Module) -> Result:
    """Calls a pass without gradient of these modules, which gathers one block at a time.

    Every process runs as many passes as the others, each with the same calls of the same blocks. Modules that are not
    spread, or are whole at the time, compute as they are.
    """
    trunks = spread(*modules)
    for trunk in trunks:
        call = partial(trunk, call)
    try:
        return call()
    finally:
        for trunk in trunks:
            trunk.make_parts()


def spread(*modules: nn.Module) -> list[Any]:
    """The trunks of these modules whose parameters are in parts now, and that no pass has gathered."""
    return [trunk for trunk in _trunks(modules) if not (trunk.whole or trunk.passing)]


def is_spread(module: nn.Module) -> bool:
    """True if the parameters of this module are spread over processes, gathered at the moment or not."""
    return TRUNK in module.__dict__


def _trunks(modules: Sequence[nn.Module]) -> list[Any]:
    """The trunk of each module that has one, each once."""
    return list({id(m.__dict__[TRUNK]): m.__dict__[TRUNK] for m in modules if TRUNK in m.__dict__}.values())


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()`, but of a module that is gathered its whole tensors: FSDP2's hooks would give parts."""
    if not any(hasattr(part, "unshard") for part in module.modules()):
        return dict(module.state_dict())
    found = {name: p.detach() for name, p in module.named_parameters(remove_duplicate=False)}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def copy_of(module: nn.Module, shared: Mapping[int, Any]) -> nn.Module:
    """A deep copy as an ordinary module; one that is spread must be gathered, and its whole parameters are copied.

    Args:
        shared: id -> object, of what is not copied. Nothing of a spread module can be: it is whole for a while only.
    """
    trunk: Any = module.__dict__.get(TRUNK)
    if trunk is None:
        return copy.deepcopy(module, dict(shared))
    inside = {id(part) for part in module.modules()}
    parts: list[Before] = [entry for entry in trunk.before if id(entry[0]) in inside]
    memo: dict[int, Any] = {
        id(part): kind.__new__(kind) for part, kind, _, _ in parts
    }  # FSDP2's classes refuse to be copied
    for part, _, hooks, keys in parts:
        attributes = {key: value for key, value in part.__dict__.items() if key in keys} | hooks
        memo[id(part)].__dict__.update(copy.deepcopy(attributes, memo))
    copied: nn.Module = memo[id(module)]
    return copied
