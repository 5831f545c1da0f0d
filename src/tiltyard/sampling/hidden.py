"""Hidden states that a sampler keeps for the training step: what they take in memory, and whether to keep them.

The sampler has computed the states from which the step's entropy, KL and values follow; kept, they save a forward pass.
Results with and without them differ by rounding only, so the choice is made once, at the start of a run.
"""

from __future__ import annotations

from typing import NamedTuple

import psutil
import torch

from tiltyard.models.language import LanguageModel
from tiltyard.sampling.base import Sampler

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
        size, free = (f"{n / 2**20:,.1f} MiB" for n in (self.bytes, self.free))
        return f"{'kept' if self.keep else 'computed again'}: {self.reason} ({size} at most, {free} free)"


def hidden_state_bytes(responses: int, max_tokens: int, width: int, dtype: str = "float32") -> int:
    """Peak memory in bytes of the hidden states of a step: responses x max_tokens x width, twice while copied."""
    return COPIES * responses * max_tokens * width * _BYTES.get(dtype, 4)


def free_memory(device: torch.device) -> int:
    """Free bytes on the device; of the host's memory for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def plan_hidden(sampler: Sampler, model: LanguageModel, responses: int, max_tokens: int) -> HiddenPlan:
    """Plans to keep hidden states if the sampler can and if they fit into `SHARE` of the free memory.

    Args:
        responses: sampled by this process before a step learns from them.
        max_tokens: longest response.
    """
    width = int(model.module.config.get_text_config().hidden_size)
    size, free = hidden_state_bytes(responses, max_tokens, width, model.dtype), free_memory(model.device)
    if not sampler.capabilities.hidden:
        return HiddenPlan(False, size, free, "the sampler has none")
    if size > SHARE * free:
        return HiddenPlan(False, size, free, f"they would take more than {SHARE:.0%} of the free memory")
    return HiddenPlan(True, size, free, f"they take less than {SHARE:.0%} of the free memory")
