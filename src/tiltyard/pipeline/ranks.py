"""Under torchrun rank 0 decides and writes; the other ranks follow."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


def is_main() -> bool:
    """True in the one process that writes."""
    return os.environ.get("RANK", "0") == "0"


def several() -> bool:
    """True when torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def share(value: Any) -> Any:
    """Rank 0's value on every rank; also a barrier. Does nothing for a single process."""
    if not several():
        return value
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        gpus = torch.cuda.is_available()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Long: the others wait here while rank 0 works alone (world, labels); torchrun ends them if it dies.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(days=7))
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
