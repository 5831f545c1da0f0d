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
    """Rank 0's value on every rank: the others wait for it. Does nothing for a single process."""
    if not several():
        return value
    import torch.distributed as dist

    from tiltyard.distributed import processes

    processes.at_rest[0] = False
    # Long: the others wait here while rank 0 works alone (world, labels); torchrun ends them if it dies.
    processes.start(timedelta(days=7))
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def rest() -> None:
    """The end of a run that went well: from here on any rank may leave."""
    if several():
        from tiltyard.distributed import processes

        processes.barrier()
        processes.at_rest[0] = True
