"""Several processes as one: what torchrun starts, sums and shares. With one process everything here is the identity."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")


at_rest = [True]  # False while this process is in the middle of something that the others take part in


def start(timeout: timedelta | None = None) -> None:
    """Joins the process group when torchrun started this process (gloo on CPU, nccl on CUDA); otherwise nothing.

    Args:
        timeout: how long one process may wait for the others; None is torch's own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        gpus = torch.cuda.is_available()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # sums of counts and metrics are made on the CPU even where gradients are on GPUs
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timeout)
        atexit.register(_take_down)


def _take_down() -> None:
    """At exit: the group's threads, left standing, can abort the interpreter.

    Not earlier, because a group made anew in the same process may meet the addresses of the old one; and not after an
    error, because taking it down could wait for the other ranks, which torchrun ends only when this one is gone.
    """
    failed = hasattr(sys, "last_value")  # an exception that nobody caught ended the program
    if at_rest[0] and not failed and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def sum_all(values: Tensor) -> Tensor:
    """Sum over processes, elementwise."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def max_all(values: Tensor) -> Tensor:
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_objects(own: Item) -> list[Item]:
    """One JSON-like object from every process, in rank order, on every process."""
    if world() == 1:
        return [own]
    everything: list[Item | None] = [None] * world()
    dist.all_gather_object(everything, own)
    return cast(list[Item], everything)


def shard(items: Sequence[Item]) -> list[tuple[int, Item]]:
    """This process's share of a list that every process holds, with each item's place in the whole."""
    return [(i, item) for i, item in enumerate(items) if i % world() == rank()]


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Adds up gradients over processes in one message. A process without work for a parameter contributes zero."""
    if world() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    done = 0
    for p in parameters:
        assert p.grad is not None
        p.grad.copy_(flat[done : done + p.numel()].view_as(p))
        done += p.numel()
