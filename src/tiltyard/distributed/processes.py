"""The processes that torchrun started: ranks, collectives, broadcast. With one process every function is the identity.

Importing this module does not import torch, so the command line can ask for its rank before anything heavy is loaded.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tiltyard.errors import ConfigError, TiltyardError

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")

# False from the first collective of a run until it has ended: a process that leaves in between must not wait at exit
in_collective = [False]
_own = threading.local()  # `group`: of a thread that has one of its own


def start(timeout: timedelta | None = None) -> None:
    """Joins the process group if torchrun started this process (gloo on CPU, nccl on CUDA).

    Args:
        timeout: how long a collective waits for the other processes; None is torch's default.

    Raises:
        ConfigError: see `check_start`.
    """
    if not is_distributed():
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        gpus = torch.cuda.is_available()
        check_start(torch.cuda.device_count() if gpus else 0)
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # counts and metrics are summed on the CPU even where gradients are on GPUs
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timeout)
        atexit.register(_destroy_group)


def check_start(gpus: int) -> None:
    """Checks the environment that torchrun sets, before a process waits for others that will never come.

    Args:
        gpus: of this machine; 0 for a run on CPUs.

    Raises:
        ConfigError: WORLD_SIZE stands alone, or there are more processes here than GPUs.
    """
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise ConfigError(
            "several processes are announced, and nothing says how they find each other",
            where="environment",
            got=f"WORLD_SIZE={os.environ['WORLD_SIZE']} without {', '.join(missing)}",
            expected="the variables that torchrun sets",
            fix="start it by torchrun (docs/scale.md), or unset WORLD_SIZE for a single process",
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and local >= gpus:
        raise ConfigError(
            "there are more processes on this machine than GPUs",
            where="torchrun",
            got=f"process {local} of it, counted from 0, and {gpus} GPU{'' if gpus == 1 else 's'}",
            expected=f"--nproc-per-node of at most {gpus}",
            fix="lower --nproc-per-node, or check CUDA_VISIBLE_DEVICES; on CPUs: CUDA_VISIBLE_DEVICES=",
        )


def _destroy_group() -> None:
    """At exit: threads of a process group that is not destroyed can abort the interpreter.

    Not earlier, because a group made anew in the same process may meet the addresses of the old one; and not after an
    error, because destroying it could wait for the other ranks, which torchrun ends only when this one has exited.
    """
    import torch.distributed as dist

    failed = hasattr(sys, "last_value")  # an uncaught exception ended the program
    if not in_collective[0] and not failed and dist.is_initialized():
        dist.destroy_process_group()


def is_distributed() -> bool:
    """True if torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _initialized() -> bool:
    if "torch.distributed" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    if not _initialized():
        return int(os.environ.get("RANK", "0"))
    import torch.distributed as dist

    return dist.get_rank()


def world() -> int:
    """The number of processes."""
    if not _initialized():
        return int(os.environ.get("WORLD_SIZE", "1"))
    import torch.distributed as dist

    return dist.get_world_size()


def local_world() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """True on rank 0, the process that writes files."""
    return rank() == 0


def shard(items: Sequence[Item]) -> list[tuple[int, Item]]:
    """This process's part of a list that every process holds, with each item's index in the whole list."""
    return [(i, item) for i, item in enumerate(items) if i % world() == rank()]


class LostProcess(TiltyardError, RuntimeError):
    """Another process of the run ended while this one waited for it."""


CUT = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")  # gloo, NCCL


def lost_process(error: BaseException) -> LostProcess | None:
    """The error of a collective as a sentence, if it failed because another process has ended; else None."""
    text = str(error)
    if world() == 1 or not isinstance(error, RuntimeError) or isinstance(error, TiltyardError):
        return None
    if not any(cut in text.lower() for cut in CUT):
        return None
    return LostProcess(
        "another process of this run has ended",
        where=f"process {rank()} of {world()}, counted from 0",
        got=text.splitlines()[0][:160],
        fix="torchrun's report names the first that failed, and its own message says why (-9 is often a lack of "
        "memory); the same command goes on from the last checkpoint",
    )


# --------------------------------------------------------------------------------------------------------- collectives


def new_group() -> object:
    """A group of all processes for the collectives of one more thread, which may run between this one's; None for one.

    All processes make it at the same point.
    """
    if world() == 1:
        return None
    import torch.distributed as dist

    start()
    return dist.new_group(backend="gloo")


def use_group(group: object) -> None:
    """Makes the collectives of the calling thread go through a group of `new_group`."""
    _own.group = group


def _group() -> Any:
    return getattr(_own, "group", None)


def barrier() -> None:
    """Waits until every process is here."""
    if world() > 1:
        import torch.distributed as dist

        start()
        dist.barrier(group=_group())


def sum_all(values: Tensor) -> Tensor:
    """Elementwise sum over processes."""
    return _all_reduced(values, "SUM")


def max_all(values: Tensor) -> Tensor:
    """Elementwise maximum over processes."""
    return _all_reduced(values, "MAX")


def _all_reduced(values: Tensor, operation: str) -> Tensor:
    if world() > 1:
        import torch.distributed as dist

        start()
        values = values.clone()
        dist.all_reduce(values, op=getattr(dist.ReduceOp, operation), group=_group())
    return values


def gather_objects(item: Item) -> list[Item]:
    """One picklable object from every process, in rank order, on every process."""
    if world() == 1:
        return [item]
    import torch.distributed as dist

    start()
    gathered: list[Item | None] = [None] * world()
    dist.all_gather_object(gathered, item, group=_group())
    return cast(list[Item], gathered)


def broadcast_object(item: Item) -> Item:
    """Rank 0's object on every process; the other processes wait for it.

    The first broadcast begins a run: until `finish`, a process that exits does not wait for the others.
    """
    if world() == 1:
        return item
    import torch.distributed as dist

    in_collective[0] = True
    # a long timeout: rank 0 may work alone for hours (world, labels); torchrun ends the others if it dies
    start(timedelta(days=7))
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def finish() -> None:
    """Ends a run that succeeded: after it any process may exit by itself."""
    if world() > 1:
        barrier()
        in_collective[0] = False
