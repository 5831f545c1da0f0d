"""Hidden states that a sampler keeps for the training step: what they take in memory, and whether to keep them.

The sampler has computed the states from which the step's entropy, KL and values follow; kept, they save a forward pass.
Results with and without them differ by rounding only, so the choice is made once, at the start of a run.
"""

from __future__ import annotations

from typing import NamedTuple

import psutil
import torch

from tiltyard.sampling.base import Capabilities

SHARE = 0.1  # of the free memory that hidden states may take
COPIES = 2  # while they are sorted by response, and while they are packed into the batch
_BYTES = {"float64": 8}  # of a number; float32 otherwise: what a layer norm gives under autocast too


class HiddenPlan(NamedTuple):
    """The choice to keep hidden states or not; their peak memory and the free memory at the start, in bytes."""

    keep: bool
    bytes: int
    free: int
    reason: str

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:,.1f} MiB"
        if self.keep:
            return f"kept for the training step, {size} at most"
        return f"computed again by the training step: {self.reason} ({size})"


def hidden_state_bytes(responses: int, max_tokens: int, width: int, dtype: str = "float32") -> int:
    """Peak memory in bytes of the hidden states of a step: responses x max_tokens x width, twice while copied."""
    return COPIES * responses * max_tokens * width * _BYTES.get(dtype, 4)


def free_memory(device: torch.device) -> int:
    """Free bytes on the device; of the host's memory for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def plan_hidden(capabilities: Capabilities, size: int, free: int) -> HiddenPlan:
    """Plans to keep hidden states if the sampler can and if they fit into `SHARE` of the free memory.

    Args:
        size: their peak memory in bytes, see `hidden_state_bytes`.
        free: free memory in bytes, see `free_memory`.
    """
    if not capabilities.hidden:
        return HiddenPlan(False, size, free, "the sampler cannot keep them")
    if size > SHARE * free:
        return HiddenPlan(False, size, free, f"kept they would take more than {SHARE:.0%} of the free memory")
    return HiddenPlan(True, size, free, f"they fit into {SHARE:.0%} of the free memory")
