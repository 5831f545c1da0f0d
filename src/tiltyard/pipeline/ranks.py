"""Under torchrun rank 0 decides and writes; the other ranks follow."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any

_at_rest = [True]  # no run is in the middle of something, on any rank


def is_main() -> bool:
    """True in the one process that writes."""
    return os.environ.get("RANK", "0") == "0"


def several() -> bool:
    """True when torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def share(value: Any) -> Any:
    """Rank 0's value on every rank: the others wait for it. Does nothing for a single process."""
    if not several():
        return value
    import torch
    import torch.distributed as dist

    _at_rest[0] = False
    if not dist.is_initialized():
        gpus = torch.cuda.is_available()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Long: the others wait here while rank 0 works alone (world, labels); torchrun ends them if it dies.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(days=7))
        atexit.register(_take_down)
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def rest() -> None:
    """The end of a run that went well: from here on any rank may leave."""
    if several():
        import torch.distributed as dist

        dist.barrier()
    _at_rest[0] = True


def _take_down() -> None:
    """At exit: the group's threads, left standing, can abort the interpreter.

    Not earlier, because a group made anew in the same process may meet the addresses of the old one; and not after an
    error, because taking it down could wait for the other ranks, which torchrun ends only when this one is gone.
    """
    import torch.distributed as dist

    if _at_rest[0] and dist.is_initialized():
        dist.destroy_process_group()
