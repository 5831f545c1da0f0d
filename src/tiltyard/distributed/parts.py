"""Tensors that are spread over processes: reading them whole, writing a whole one, and which a module holds.

Torch's distributed tensors are imported only where a module has been spread (`distributed.sharded`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TRUNK = "_tiltyard_trunk"  # of a module whose parameters are spread


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


@contextmanager
def as_parts(*modules: nn.Module) -> Iterator[None]:
    """Context: the parameters of these modules are what an optimiser step changes, also where they are gathered.

    What is written into gathered parameters is lost. Every process enters and leaves it.
    """
    trunks: dict[int, Any] = {id(m.__dict__[TRUNK]): m.__dict__[TRUNK] for m in modules if TRUNK in m.__dict__}
    gathered = [trunk for trunk in trunks.values() if trunk.whole]
    for trunk in gathered:
        trunk.make_parts()
    try:
        yield
    finally:
        for trunk in gathered:
            trunk.make_whole()


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
